"""One deterministic pass over a split: every clip counts exactly once on any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from dear_core import distributed
from dear_core.training.heads import Heads
from dear_core.training.metrics import Meter, Scores

Bad = list[tuple[int, str]]
"""Clips that could not be read: number in the split, and why."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict],
    heads: Heads,
    *,
    precision: str = "fp32",
    on_bad: Callable[[Bad], None] = lambda bad: None,
    on_batch: Callable[[dict, torch.Tensor], None] = lambda batch, scores_BK: None,
) -> Scores:
    """Scores of ``model``; the model is left in the mode it came in.

    Args:
        model: {modality: (B,C,T,H,W)} to logits (B,K).
        batches: ``{"clip", "labels", "views", "bad"}``, this worker's share of the split.
        heads: the stretches of K.
        precision: ``bf16`` runs the forward pass under autocast.
        on_bad: told of clips that could not be read, as they are met; they are counted and left out.
        on_batch: told of every batch and its scores (B,K); a batch with a label of -1 is told, not scored.
    """
    device = distributed.device()
    meter, was_training = Meter(heads, device), model.training
    model.eval()
    for batch in batches:
        if batch["bad"]:
            meter.add_bad(len(batch["bad"]))
            on_bad(batch["bad"])
        if batch["clip"]:
            logits_BK = predict(model, batch, heads, precision)
            on_batch(batch, logits_BK)
            if (batch["labels"] >= 0).all():
                meter.add(logits_BK, batch["labels"].to(device))
    model.train(was_training)
    return meter.scores()


def predict(model: nn.Module, batch: dict, heads: Heads, precision: str = "fp32") -> torch.Tensor:
    """Scores (B,K) of the clips of a batch, their views averaged; ``model`` is in evaluation mode."""
    device = distributed.device()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits_NK = model(to_device(batch["clip"], device))
    return heads.average_views(logits_NK, batch["views"])


def to_device(clip: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: video.to(device, non_blocking=True) for name, video in clip.items()}
