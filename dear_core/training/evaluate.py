"""One deterministic pass over a split: every clip counts exactly once on any number of workers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from dear_core import distributed
from dear_core.training.metrics import Meter, Scores


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[dict], *, num_classes: int, precision: str = "fp32"
) -> Scores:
    """Scores of ``model``; the model is left in the mode it came in.

    Args:
        model: {modality: (B,C,T,H,W)} to logits (B,K).
        batches: ``{"clip", "label"}``, this worker's share of the split.
        num_classes: K.
        precision: ``bf16`` runs the forward pass under autocast.
    """
    device = distributed.device()
    meter, was_training = Meter(num_classes, device), model.training
    model.eval()
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits_BK = model(to_device(batch["clip"], device))
        meter.add(logits_BK, batch["label"].to(device))
    model.train(was_training)
    return meter.scores()


def to_device(clip: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: video.to(device, non_blocking=True) for name, video in clip.items()}
