"""A trained network from its checkpoint, ready to be evaluated on this machine's copy of the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dear_core import build, distributed
from dear_core.config import RunConfig
from dear_core.errors import InputError
from dear_core.models.clip import tower_hash
from dear_core.models.dear import DEAR
from dear_core.training.checkpoint import Checkpoint


def config(saved: Checkpoint, changes: Mapping[str, Any]) -> RunConfig:
    """The checkpoint's config with changes of places and views, not of the network.

    The branches' weights come from the checkpoint, so the files that they started from may be gone.
    """
    unused = {"model.side4video.pretrained": None, "model.videomamba.pretrained": None}
    return saved.config.replace({**unused, **changes})


def moved(data_root: str | None) -> dict[str, Any]:
    """The changes that say where the data set lies now."""
    if data_root is None:
        return {}
    places = ("data.videos", "data.annotations", "data.depth_root", "data.cache_dir")
    return {"data.root": data_root, **dict.fromkeys(places)}


def network(path: Path, saved: Checkpoint, run: RunConfig) -> DEAR:
    """The network of ``saved`` on this worker's device; torch's CPU threads are set as in training.

    Raises:
        InputError: the tower is not the one that it was trained beside, or the weights do not fit.
    """
    torch.set_num_threads(saved.threads)
    made = build.model(run, sum(len(texts) for texts in saved.classes.values()))
    if made.tower is not None and tower_hash(made.tower) != saved.tower:
        raise InputError(
            f"{path}: was trained beside another frozen tower than {run.model.tower.name} "
            f"({run.model.tower.pretrained or 'random'}) gives here; use the weights it was trained with"
        )
    try:
        made.load_trainable_state(saved.model)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return made.to(distributed.device()).eval()
