"""Batch normalisation for tokens whose channels come last, exact over several processes.

Why: Side4Video normalises with BatchNorm3d on [B, D, T, h, w]. Its tokens live here as [..., D], and
statistics over all but the channel are the same numbers in either layout, so no transposition is
needed. With data-parallel training a rank sees few clips; the statistics are then those of the whole
batch, on any backend (torch's SyncBatchNorm runs on CUDA only).

What it does not do: it starts no process group, and it does not synchronise in eval mode.

Legend: R rows (the product of all leading axes), D channels, W ranks.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Moments(NamedTuple):
    """What a batch adds to the running statistics: its mean and unbiased variance."""

    mean_D: Tensor
    variance_D: Tensor


class ChannelLastBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis of [..., D]; the state keys are those of BatchNorm3d(D).

    In training, when a process group of more than one rank runs, mean and variance are taken over
    the rows of all ranks (each may have a different number) and the gradient is exact.
    Weight and bias gradients stay local sums, as a data-parallel wrapper expects.

    `normalise` and `track` are the two halves of a call, for callers that may compute a batch twice
    (gradient checkpointing) but must count it once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> the same shape. Raises ValueError for another last axis."""
        y, moments = self.normalise(x)
        self.track(moments)
        return y

    def normalise(self, x: Tensor) -> tuple[Tensor, Moments | None]:
        """The output and, where the batch's own statistics were used in training, those statistics.

        Changes nothing. Raises ValueError as `forward` does.
        """
        if x.ndim < 2 or x.shape[-1] != self.num_features:
            raise ValueError(f"expected a tensor [..., {self.num_features}], got shape {list(x.shape)}")
        if self.training and _world_size() > 1:
            return self._over_all_ranks(x)
        # One image of R x 1 pixels in channels-last memory: torch's CPU kernels are about twice as
        # fast on it as on the equal [R, D] matrix.
        rows = x.reshape(1, -1, 1, self.num_features).permute(0, 3, 1, 2)
        own = self.training or self.running_mean is None
        running = (None, None) if own else (self.running_mean, self.running_var)
        y, mean_D, invstd_D = torch.native_batch_norm(
            rows, self.weight, self.bias, *running, own, 0.0, self.eps
        )
        y = y.permute(0, 2, 3, 1).reshape(x.shape)
        if not self.training:
            return y, None
        count = rows.shape[2]
        with torch.no_grad():
            variance_D = (invstd_D.float().pow(-2) - self.eps) * (count / max(count - 1, 1))
        return y, Moments(mean_D.detach(), variance_D)

    @torch.no_grad()
    def track(self, moments: Moments | None) -> None:
        """Move the running statistics by one training step."""
        if moments is None or not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(moments.mean_D.to(self.running_mean.dtype), share)
        self.running_var.lerp_(moments.variance_D.to(self.running_var.dtype), share)

    def _over_all_ranks(self, x: Tensor) -> tuple[Tensor, Moments]:
        rows_RD = x.reshape(-1, self.num_features)
        y_RD, mean_D, var_D, count = _SyncNorm.apply(rows_RD, self.weight, self.bias, self.eps)
        with torch.no_grad():
            unbiased_D = var_D * (count / (count - 1).clamp(min=1))
        return y_RD.reshape(x.shape), Moments(mean_D, unbiased_D)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _global_moments(rows_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [D], biased variance [D] and row count (0-d) over all ranks.

    Ranks exchange (mean, variance, count), not sums of squares, so nothing cancels for channels
    whose mean is large beside their spread (Chan, Golub & LeVeque 1979, the parallel update).
    """
    D = rows_RD.shape[1]
    count = max(rows_RD.shape[0], 1)  # a rank without rows sends zeros with weight zero
    mean_D = rows_RD.sum(0) / count
    var_D = (rows_RD - mean_D).square().sum(0) / count
    packed = torch.cat([mean_D, var_D, mean_D.new_tensor([rows_RD.shape[0]])])
    parts = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, packed)
    parts_WK = torch.stack(parts)
    means_WD, vars_WD, counts_W1 = parts_WK[:, :D], parts_WK[:, D : 2 * D], parts_WK[:, 2 * D :]
    total = counts_W1.sum()
    share_W1 = counts_W1 / total
    mean_D = (share_W1 * means_WD).sum(0)
    var_D = (share_W1 * (vars_WD + (means_WD - mean_D).square())).sum(0)
    return mean_D, var_D, total


class _SyncNorm(torch.autograd.Function):
    """Normalise by the statistics of all ranks; the backward sums its two averages over ranks."""

    @staticmethod
    def forward(ctx, rows_RD, weight_D, bias_D, eps):
        work = rows_RD.to(torch.promote_types(rows_RD.dtype, torch.float32))
        mean_D, var_D, total = _global_moments(work)
        invstd_D = (var_D + eps).rsqrt()
        unit_RD = (work - mean_D) * invstd_D
        ctx.save_for_backward(unit_RD, invstd_D, weight_D, total)
        ctx.mark_non_differentiable(mean_D, var_D, total)
        y_RD = unit_RD if weight_D is None else torch.addcmul(bias_D, unit_RD, weight_D)
        return y_RD.to(rows_RD.dtype), mean_D, var_D, total

    @staticmethod
    def backward(ctx, dy_RD, _dmean, _dvar, _dtotal):
        unit_RD, invstd_D, weight_D, total = ctx.saved_tensors
        dtype = dy_RD.dtype
        dy_RD = dy_RD.to(unit_RD.dtype)
        dbias_D, dweight_D = dy_RD.sum(0), (dy_RD * unit_RD).sum(0)
        sums_2D = torch.stack([dbias_D, dweight_D])
        dist.all_reduce(sums_2D)
        mean_dy_D, mean_dy_unit_D = sums_2D / total
        scale_D = invstd_D if weight_D is None else invstd_D * weight_D
        dx_RD = (dy_RD - mean_dy_D - unit_RD * mean_dy_unit_D) * scale_D
        if weight_D is None:
            return dx_RD.to(dtype), None, None, None
        return dx_RD.to(dtype), dweight_D.to(weight_D), dbias_D.to(weight_D), None
