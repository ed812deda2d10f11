"""A run's state on disk: trainable weights, optimiser, position, figures, and the config that made it.

The frozen tower is named with its hash, never stored. Files are written atomically and read with
``weights_only=True``, so a file cannot run code.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dear_core.config import RunConfig, load
from dear_core.errors import InputError

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    config: RunConfig
    classes: dict[str, tuple[str, ...]]
    """Texts of the classes of every head."""
    model: Mapping[str, torch.Tensor]
    """Trainable weights and buffers; no frozen tower."""
    tower: str | None
    """Hash of the frozen tower's weights, None without one."""
    epoch: int
    """Epochs done."""
    step: int
    """Optimiser steps done."""
    figures: Mapping[str, float]
    """Validation figures at this epoch: loss, top1, top5."""
    threads: int
    """CPU threads that computed them; float sums depend on it in the last digit."""
    best_top1: float = 0.0
    seconds: float = 0.0
    """Training time so far, over all restarts."""
    optimizer: Mapping[str, Any] | None = field(default=None, repr=False)
    """None in a checkpoint that is only for evaluation."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    state = {name: value for name, value in vars(checkpoint).items() if name != "config"}
    state |= {"format": FORMAT, "config": checkpoint.config.model_dump(mode="json")}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, temporary)
    temporary.replace(path)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU.

    Raises:
        InputError: no such file, truncated, holding code, or not one of this project's checkpoints.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; RESULTS/runs/KEY/last.pt is one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError):
        raise InputError(
            f"{path}: not readable as a checkpoint; truncated, or holding more than tensors"
        ) from None
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not a DEAR checkpoint of format {FORMAT}")
    config = load(state.pop("config"))
    classes = {head: tuple(texts) for head, texts in state.pop("classes").items()}
    return Checkpoint(config=config, classes=classes, **state)
