"""The selective scan in plain torch: a readable loop, and a chunked form for any device and dtype.

Why: Mamba's recurrence h[l] = a[l] * h[l-1] + x[l] needs no custom kernel to be right. The loop is
what the tests compare with. The chunked form takes about 2*sqrt(L) vectorised steps instead of L and
runs wherever torch does: float64, GPUs without Mamba's CUDA kernel, machines without numba.

What it does not do: it is not the fast path on a CPU (`scan_numba`), and it stores every state.

Legend: B clips, D channels, L time steps, N states a channel, K chunks, S steps a chunk.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Direction(NamedTuple):
    """What one scan reads; any strides. `reverse` lets time run from the last step to the first."""

    u_BDL: Tensor
    delta_BDL: Tensor
    A_DN: Tensor
    B_BNL: Tensor
    C_BNL: Tensor
    D_D: Tensor
    bias_D: Tensor
    reverse: bool


def selective_scan_reference(
    u_BDL: Tensor,
    delta_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor,
    z_BDL: Tensor | None = None,
    delta_bias_D: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The definition (Mamba, arXiv 2312.00752, equations 2 and 4), one step at a time -> y_BDL."""
    if delta_bias_D is not None:
        delta_BDL = delta_BDL + delta_bias_D[:, None]
    if delta_softplus:
        delta_BDL = F.softplus(delta_BDL)
    state_BDN = u_BDL.new_zeros(*u_BDL.shape[:2], A_DN.shape[1])
    ys = []
    for step in range(u_BDL.shape[2]):
        delta_BD1 = delta_BDL[:, :, step, None]
        drive_BDN = delta_BD1 * u_BDL[:, :, step, None] * B_BNL[:, None, :, step]
        state_BDN = torch.exp(delta_BD1 * A_DN) * state_BDN + drive_BDN
        ys.append((state_BDN * C_BNL[:, None, :, step]).sum(-1))
    y_BDL = torch.stack(ys, dim=-1) + u_BDL * D_D[:, None]
    return y_BDL if z_BDL is None else y_BDL * F.silu(z_BDL)


def scan_chunked(direction: Direction, *, softplus: bool) -> Tensor:
    """One scan in the dtype of u, by operations that torch differentiates -> y_BDL."""
    u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, bias_D, reverse = direction
    delta_BDL = delta_BDL + bias_D[:, None]
    if softplus:
        delta_BDL = F.softplus(delta_BDL)
    delta_LBD1 = delta_BDL.permute(2, 0, 1).unsqueeze(-1)
    drive_LBD1 = (delta_BDL * u_BDL).permute(2, 0, 1).unsqueeze(-1)
    B_LB1N, C_LB1N = (x.permute(2, 0, 1).unsqueeze(2) for x in (B_BNL, C_BNL))
    decay_LBDN, drive_LBDN = torch.exp(delta_LBD1 * A_DN), drive_LBD1 * B_LB1N
    if reverse:
        h_LBDN = linear_scan(decay_LBDN.flip(0), drive_LBDN.flip(0)).flip(0)
    else:
        h_LBDN = linear_scan(decay_LBDN, drive_LBDN)
    return (h_LBDN * C_LB1N).sum(-1).permute(1, 2, 0) + u_BDL * D_D[:, None]


def linear_scan(a: Tensor, x: Tensor) -> Tensor:
    """h[l] = a[l] * h[l-1] + x[l] over the first axis, h[-1] = 0; a and x of one shape [L, ...]."""
    assert a.shape == x.shape, f"a {list(a.shape)} and x {list(x.shape)} must have one shape"
    return _LinearScan.apply(a, x)


class _LinearScan(torch.autograd.Function):
    """The gradient of a linear scan is the same scan run backwards with a moved by one step."""

    @staticmethod
    def forward(ctx, a, x):
        h = _scan(a, x)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h = ctx.saved_tensors
        a_next = torch.cat([a[1:], torch.zeros_like(a[:1])])
        g = _scan(a_next.flip(0), dh.flip(0)).flip(0)
        h_last = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
        return g * h_last, g


def _scan(a: Tensor, x: Tensor) -> Tensor:
    """The scan itself: within all chunks at once, then over chunk ends, then the two joined."""
    L = x.shape[0]
    S = max(1, math.isqrt(L))
    K = -(-L // S)
    pad = K * S - L
    if pad:
        tail = x.new_zeros(pad, *x.shape[1:])
        a, x = torch.cat([a, tail]), torch.cat([x, tail])
    local_KS = x.reshape(K, S, *x.shape[1:]).clone()
    decay_KS = a.reshape(K, S, *a.shape[1:]).clone()  # becomes the product since the chunk's start
    for step in range(1, S):
        local_KS[:, step].addcmul_(decay_KS[:, step], local_KS[:, step - 1])
        decay_KS[:, step].mul_(decay_KS[:, step - 1])
    carry = torch.zeros_like(local_KS[0, 0])
    for chunk in range(K):
        local_KS[chunk].addcmul_(decay_KS[chunk], carry)
        carry = local_KS[chunk, -1]
    return local_KS.reshape(K * S, *x.shape[1:])[:L]
