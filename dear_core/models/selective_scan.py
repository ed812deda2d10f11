"""Mamba's selective scan behind one function, whatever the machine offers.

Why: the model calls `selective_scan` and the fastest exact path is taken:
  CUDA with mamba_ssm     Mamba's own fused kernel
  CPU, 32 bits or fewer   a numba kernel (`scan_numba`), where numba is installed
  anything else           chunked torch operations (`scan_torch`): float64, other GPUs, no numba
All are compared with `selective_scan_reference` in the tests, values and gradients.

What it does not do: it keeps no state between calls (no streaming) and takes no complex A.

Legend: B clips, D channels, L time steps, N states a channel.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dear_core.models.scan_torch import scan_chunked, selective_scan_reference

__all__ = ["selective_scan", "selective_scan_reference"]


def selective_scan(
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
    """Run the recurrence over L and return y_BDL in u's dtype.

    delta is first biased and put through softplus; then h[l] = exp(delta*A) h[l-1] + delta*u*B,
    y = C.h + D*u, and y * silu(z) where z is given (Mamba, arXiv 2312.00752, section 3.2).
    On the meta device only the shape is computed.

    Raises ValueError if the shapes do not fit together.
    """
    _check(u_BDL, delta_BDL, A_DN, B_BNL, C_BNL)
    if u_BDL.is_cuda and u_BDL.dtype != torch.float64 and _mamba_kernel() is not None:
        dtype = u_BDL.dtype
        return _mamba_kernel()(
            u_BDL,
            delta_BDL.to(dtype),
            A_DN.float(),
            B_BNL.to(dtype),
            C_BNL.to(dtype),
            D_D.float(),
            z=None if z_BDL is None else z_BDL.to(dtype),
            delta_bias=None if delta_bias_D is None else delta_bias_D.float(),
            delta_softplus=delta_softplus,
        )
    work = torch.promote_types(u_BDL.dtype, torch.float32)
    u, delta, A, B, C, D = (x.to(work) for x in (u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D))
    if delta_bias_D is not None:
        delta = delta + delta_bias_D.to(work)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    y = torch.addcmul(_core(u)(u, delta, A, B, C), u, D[:, None])
    if z_BDL is not None:
        y = y * F.silu(z_BDL.to(work))
    return y.to(u_BDL.dtype)


def _core(u_BDL: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The path that sums C.h for this device and dtype."""
    if u_BDL.is_meta:
        return _shape_only
    if u_BDL.device.type == "cpu" and u_BDL.dtype == torch.float32 and _numba_scan() is not None:
        return _numba_scan()
    return scan_chunked


def _shape_only(u_BDL: Tensor, *_inputs: Tensor) -> Tensor:
    return torch.empty_like(u_BDL)


@functools.cache
def _mamba_kernel() -> Callable[..., Tensor] | None:
    """mamba_ssm's function, or None: it is an optional extra that needs a CUDA build to import."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


@functools.cache
def _numba_scan() -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """The numba path, imported at its first use (numba takes half a second to import)."""
    try:
        from dear_core.models.scan_numba import scan_compiled
    except ImportError:
        return None
    return scan_compiled


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be [B, D, L] and A [D, N], got {list(u.shape)}, {list(A.shape)}")
    batch, channels, length = u.shape
    want = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, A.shape[1])),
        "B": (B, (batch, A.shape[1], length)),
        "C": (C, (batch, A.shape[1], length)),
    }
    for name, (tensor, shape) in want.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
