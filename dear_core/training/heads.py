"""What is recognised: one set of classes, or several beside each other (a verb and a noun).

The network gives one row of scores; each head owns a stretch of it. Legend: B clips, H heads, K all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """Number of classes of every head by its name, in the order of the scores."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, classes: dict[str, tuple[str, ...]]) -> Heads:
        return cls(tuple(classes), tuple(len(texts) for texts in classes.values()))

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def split(self, scores_BK: Tensor) -> tuple[Tensor, ...]:
        """The stretch of each head."""
        return scores_BK.split(self.sizes, dim=-1)

    def one_hot(self, labels_BH: Tensor) -> Tensor:
        """Targets (B,K) float: a row has one 1 in each head's stretch."""
        parts = [F.one_hot(labels_BH[:, h], size) for h, size in enumerate(self.sizes)]
        return torch.cat(parts, dim=1).float()

    def loss(self, logits_BK: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy (B,) in nats, the mean over the heads; targets are (B,H) classes or (B,K) shares."""
        wanted = self.split(targets) if targets.is_floating_point() else targets.unbind(dim=1)
        losses = [
            F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
            for logits, target in zip(self.split(logits_BK.float()), wanted, strict=True)
        ]
        return torch.stack(losses).mean(0)

    def hits(self, logits_BK: Tensor, labels_BH: Tensor) -> Tensor:
        """Whether (B,) the best class of every head is the right one."""
        best_BH = torch.stack([logits.argmax(1) for logits in self.split(logits_BK)], dim=1)
        return (best_BH == labels_BH).all(1)

    def average_views(self, logits_NK: Tensor, views: int) -> Tensor:
        """Log of the mean probabilities (N / views, K) of every ``views`` neighbouring rows."""
        if views == 1:
            return logits_NK
        means = []
        for logits in self.split(logits_NK.float()):
            log_p = logits.log_softmax(1).unflatten(0, (-1, views))
            means.append(log_p.logsumexp(1) - torch.tensor(float(views)).log().to(log_p.device))
        return torch.cat(means, dim=1)
