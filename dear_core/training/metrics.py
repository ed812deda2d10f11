"""Validation scores: sums that add up over batches and workers, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dear_core import distributed
from dear_core.training.heads import Heads


@dataclass(frozen=True)
class Scores:
    """Of one pass over a split. Accuracies are shares in [0, 1]; ``loss`` is plain cross-entropy in nats.

    With several heads ``top1`` and ``top5`` are of the combination: top-1 is right where every head is,
    top-5 ranks combinations by the product of their probabilities, and ``heads`` has each by itself.
    """

    clips: int
    loss: float
    top1: float
    top5: float
    correct: tuple[int, ...]
    """Top-1 hits of each class, the heads' classes one after the other."""
    total: tuple[int, ...]
    """Clips of each class."""
    bad: int = 0
    """Clips that could not be read; they are in no other figure."""
    heads: dict[str, float] = field(default_factory=dict)
    """``verb_top1``, … where there are several."""

    def figures(self) -> dict[str, float]:
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, **self.heads}

    def per_class(self) -> list[float | None]:
        """Top-1 of each class; None for a class without clips."""
        return [c / n if n else None for c, n in zip(self.correct, self.total, strict=True)]


class Meter:
    """Adds up batches; ``scores()`` sums over workers. Counts are exact, the loss is summed in float64."""

    def __init__(self, heads: Heads, device: torch.device) -> None:
        self.heads = heads
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros(heads.total, dtype=torch.int64, device=device)
        self._total = torch.zeros(heads.total, dtype=torch.int64, device=device)
        self._clips = torch.zeros((), dtype=torch.int64, device=device)
        self._bad = torch.zeros((), dtype=torch.int64, device=device)
        # top-1 and top-5 hits of the combination and, where there are several, of each head
        self._hits = torch.zeros(1 + len(heads.names), 2, dtype=torch.int64, device=device)

    def add(self, logits_BK: Tensor, labels_BH: Tensor) -> None:
        logits_BK = logits_BK.float()
        self._loss += self.heads.loss(logits_BK, labels_BH).double().sum()
        self._clips += len(labels_BH)
        parts, start = self.heads.split(logits_BK), 0
        for number, (logits, size) in enumerate(zip(parts, self.heads.sizes, strict=True)):
            labels_B = labels_BH[:, number]
            first_B, five_B = _hits(logits, labels_B)
            self._hits[1 + number] += torch.stack([first_B.sum(), five_B.sum()])
            stretch = slice(start, start + size)
            self._correct[stretch] += torch.bincount(labels_B[first_B], minlength=size)
            self._total[stretch] += torch.bincount(labels_B, minlength=size)
            start += size
        self._hits[0] += torch.stack([hits.sum() for hits in _joint_hits(parts, labels_BH)])

    def add_bad(self, count: int) -> None:
        self._bad += count

    def scores(self) -> Scores:
        for tensor in (self._loss, self._correct, self._total, self._clips, self._bad, self._hits):
            distributed.sum_(tensor)
        clips = int(self._clips)
        shares = (self._hits.double() / max(clips, 1)).tolist()
        each = zip(self.heads.names, shares[1:], strict=True) if len(self.heads.names) > 1 else ()
        return Scores(
            clips=clips,
            loss=round(float(self._loss) / max(clips, 1), 6),
            top1=shares[0][0],
            top5=shares[0][1],
            correct=tuple(self._correct.tolist()),
            total=tuple(self._total.tolist()),
            bad=int(self._bad),
            heads={f"{name}_top{k}": pair[i] for name, pair in each for i, k in enumerate((1, 5))},
        )


def _hits(scores_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Whether (B,) the label is the best class, and whether it is among the best five."""
    best = scores_BK.topk(min(5, scores_BK.shape[1]), dim=1).indices
    hits = best == labels_B[:, None]
    return hits[:, 0], hits.any(1)


def _joint_hits(parts: tuple[Tensor, ...], labels_BH: Tensor) -> tuple[Tensor, Tensor]:
    """Of combinations of a class a head, ranked by the product of their probabilities."""
    scores_B1, labels_B = parts[0].log_softmax(1), labels_BH[:, 0]
    for number, logits in enumerate(parts[1:], start=1):
        size = logits.shape[1]
        scores_B1 = (scores_B1[:, :, None] + logits.log_softmax(1)[:, None, :]).flatten(1)
        labels_B = labels_B * size + labels_BH[:, number]
    return _hits(scores_B1 if len(parts) > 1 else parts[0], labels_B)
