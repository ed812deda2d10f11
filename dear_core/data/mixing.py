"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch with itself.

lambda and the box are drawn by torchvision's v2 transforms. What they would do with them is done here: they
pair every sample with its neighbour in the batch, which may be the same clip under repeated augmentation, so
a random pairing is drawn instead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2


class Mixing:
    """Mixes each sample of a batch, and its targets, with another one; one draw for all modalities.

    Args:
        mixup: alpha of mixup's Beta(alpha, alpha); 0: no mixup.
        cutmix: the same of CutMix; where both are on, each batch takes one of them with probability 1/2.
    """

    def __init__(self, *, mixup: float, cutmix: float) -> None:
        self.ways: list[v2.MixUp | v2.CutMix] = []
        if mixup > 0:
            self.ways.append(v2.MixUp(alpha=mixup))
        if cutmix > 0:
            self.ways.append(v2.CutMix(alpha=cutmix))

    def __call__(self, clip: dict[str, Tensor], targets_BK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The mixed batch; the given one is left as it is.

        Args:
            clip: {modality: (B,C,T,H,W)}, H and W the same for all.
            targets_BK: float, the share of each class; several heads side by side keep their sums.

        Draws come from torch's global random state (the CPU's, whatever device the batch is on).
        """
        if not self.ways:
            return clip, targets_BK
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        videos = list(clip.values())
        drawn = way.make_params(videos)
        partner = _partners(len(targets_BK)).to(targets_BK.device)
        if isinstance(way, v2.MixUp):
            share = drawn["lam"]
            mixed = {name: torch.lerp(video[partner], video, share) for name, video in clip.items()}
        else:
            share = drawn["lam_adjusted"]
            mixed = {name: _paste(video, partner, drawn["box"]) for name, video in clip.items()}
        return mixed, torch.lerp(targets_BK[partner], targets_BK, share)


def _partners(batch: int) -> Tensor:
    """Whom each sample is mixed with: a random cycle through the batch, so nobody (but one alone) itself."""
    order = torch.randperm(batch)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _paste(video_BCTHW: Tensor, partner: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """``video`` with the partner's pixels in ``box`` (left, top, right, bottom), in every frame."""
    left, top, right, bottom = box
    mixed = video_BCTHW.clone()
    mixed[..., top:bottom, left:right] = video_BCTHW[..., top:bottom, left:right][partner]
    return mixed
