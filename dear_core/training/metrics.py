"""Validation scores: sums that add up over batches and workers, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dear_core import distributed


@dataclass(frozen=True)
class Scores:
    """Of one pass over a split. Accuracies are shares in [0, 1]; ``loss`` is plain cross-entropy in nats."""

    clips: int
    loss: float
    top1: float
    top5: float
    correct: tuple[int, ...]
    """Top-1 hits of each class."""
    total: tuple[int, ...]
    """Clips of each class."""

    def figures(self) -> dict[str, float]:
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5}

    def per_class(self) -> list[float | None]:
        """Top-1 of each class; None for a class without clips."""
        return [c / n if n else None for c, n in zip(self.correct, self.total, strict=True)]


class Meter:
    """Adds up batches; ``scores()`` sums over workers. Counts are exact, the loss is summed in float64."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._total = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        logits_BK = logits_BK.float()
        self._loss += F.cross_entropy(logits_BK, labels_B, reduction="none").double().sum()
        best = logits_BK.topk(min(5, self.num_classes), dim=1).indices
        hits = best == labels_B[:, None]
        self._top5 += hits.any(1).sum()
        self._correct += torch.bincount(labels_B[hits[:, 0]], minlength=self.num_classes)
        self._total += torch.bincount(labels_B, minlength=self.num_classes)

    def scores(self) -> Scores:
        for tensor in (self._loss, self._correct, self._total, self._top5):
            distributed.sum_(tensor)
        clips = int(self._total.sum())
        return Scores(
            clips=clips,
            loss=round(float(self._loss) / clips, 6),
            top1=int(self._correct.sum()) / clips,
            top5=int(self._top5) / clips,
            correct=tuple(self._correct.tolist()),
            total=tuple(self._total.tolist()),
        )
