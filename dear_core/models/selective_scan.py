"""Mamba's selective scan behind one function, whatever the machine offers.

Why: the model calls `selective_scan` (or `scan_directions` for two at once) and the fastest exact path
is taken:
  CUDA with mamba_ssm     Mamba's own fused kernel; under torch.compile, which cannot trace it, ours
  CUDA without it         a Triton kernel (`scan_triton`), both directions in one launch
  CPU                     a numba kernel (`scan_numba`), where numba is installed
  anything else           chunked torch operations (`scan_torch`): float64, other devices
All are compared with `selective_scan_reference` in the tests, values and gradients. The two kernels are
torch operators (`dear::scan_forward`, `dear::scan_backward`), so that compiled graphs do not break at
them; they recompute the states in the backward pass from those at the start of every chunk.

What it does not do: it keeps no state between calls (no streaming), takes no complex A, and is not twice
differentiable.

Legend: B clips, D channels, L time steps, N states a channel.
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dear_core.models.scan_torch import Direction, scan_chunked, selective_scan_reference

__all__ = ["Direction", "scan_directions", "selective_scan", "selective_scan_reference"]

TENSORS = 7  # of a Direction


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
    *,
    reverse: bool = False,
) -> Tensor:
    """Run the recurrence over L and return y_BDL in u's dtype.

    delta is first biased and put through softplus; then h[l] = exp(delta*A) h[l-1] + delta*u*B,
    y = C.h + D*u, and y * silu(z) where z is given (Mamba, arXiv 2312.00752, section 3.2).
    With `reverse`, h[l] follows h[l+1]: the scan of the flipped sequence, flipped back.
    Any strides are read as they are; the quickest have stride 1 over D (or N).

    Raises ValueError if the shapes do not fit together.
    """
    bias_D = torch.zeros_like(D_D) if delta_bias_D is None else delta_bias_D
    direction = Direction(u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, bias_D, reverse)
    (y_BDL,) = scan_directions([direction], delta_softplus=delta_softplus)
    return y_BDL if z_BDL is None else y_BDL * F.silu(z_BDL.to(y_BDL.dtype))


def scan_directions(directions: Sequence[Direction], *, delta_softplus: bool = True) -> list[Tensor]:
    """Several scans of equal shapes, in one launch where the device gains by it -> y_BDL of each.

    Raises ValueError if the shapes do not fit together.
    """
    for direction in directions:
        _check(direction)
    first = directions[0].u_BDL
    compiling = torch.compiler.is_compiling()
    if first.is_cuda and first.dtype != torch.float64 and not compiling and _mamba_kernel() is not None:
        return [_mamba(direction, delta_softplus) for direction in directions]
    work = torch.promote_types(first.dtype, torch.float32)
    if not _has_operator(first, work):
        wide = [_cast(direction, work, work) for direction in directions]
        ys = [scan_chunked(direction, softplus=delta_softplus) for direction in wide]
        return [y.to(first.dtype) for y in ys]
    narrow = first.dtype if first.is_cuda else work  # the CPU's kernel reads float32
    ready = [_cast(direction, narrow, work) for direction in directions]
    tensors = [tensor for direction in ready for tensor in direction[:TENSORS]]
    reverse = tuple(direction.reverse for direction in ready)
    return [y.to(first.dtype) for y in _Scan.apply(delta_softplus, reverse, *tensors)]


def _cast(direction: Direction, stream: torch.dtype, weight: torch.dtype) -> Direction:
    """u, delta, B and C to one dtype, A, D and the bias to another."""
    u, delta, A, B, C, D, bias, reverse = direction
    u, delta, B, C = (x.to(stream) for x in (u, delta, B, C))
    A, D, bias = (x.to(weight) for x in (A, D, bias))
    return Direction(u, delta, A, B, C, D, bias, reverse)


def _mamba(direction: Direction, softplus: bool) -> Tensor:
    """Mamba's kernel reads time as the last, contiguous axis, and runs forwards only."""
    u, delta, A, B, C, D, bias, reverse = _cast(direction, direction.u_BDL.dtype, torch.float32)
    if reverse:
        u, delta, B, C = (x.flip(-1) for x in (u, delta, B, C))
    u, delta, B, C = (x.contiguous() for x in (u, delta, B, C))
    y = _mamba_kernel()(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=softplus)
    return y.flip(-1) if reverse else y


class _Scan(torch.autograd.Function):
    """Ties the two operators together; keeps the inputs and each chunk's first states."""

    @staticmethod
    def forward(ctx, softplus: bool, reverse: tuple[bool, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        save = any(ctx.needs_input_grad)
        outputs = torch.ops.dear.scan_forward(list(tensors), list(reverse), softplus, save)
        ys, starts = outputs[: len(reverse)], outputs[len(reverse) :]
        if save:
            ctx.softplus, ctx.reverse = softplus, reverse
            ctx.save_for_backward(*tensors, *starts)
        return tuple(ys)

    @staticmethod
    def backward(ctx, *dys: Tensor) -> tuple[Tensor | None, ...]:
        count = TENSORS * len(ctx.reverse)
        saved = list(ctx.saved_tensors)  # read once: checkpointing computes them at the reading
        tensors, starts = saved[:count], saved[count:]
        gradients = torch.ops.dear.scan_backward(tensors, starts, list(dys), list(ctx.reverse), ctx.softplus)
        return None, None, *gradients


def _directions(tensors: Sequence[Tensor], reverse: Sequence[bool]) -> list[Direction]:
    groups = [tensors[index : index + TENSORS] for index in range(0, len(tensors), TENSORS)]
    return [
        Direction(*(x.detach() for x in group), flag) for group, flag in zip(groups, reverse, strict=True)
    ]


@torch.library.custom_op("dear::scan_forward", mutates_args=())
def _scan_forward(tensors: list[Tensor], reverse: list[bool], softplus: bool, save: bool) -> list[Tensor]:
    """Seven tensors a direction -> the y of each, then the kept states of each."""
    directions = _directions(tensors, reverse)
    if tensors[0].is_cuda:
        ys, starts = _triton_scan().scan_forward(directions, softplus=softplus, save=save)
        return [*ys, *starts]
    done = [_numba_scan().scan_forward(one, softplus=softplus, save=save) for one in directions]
    return [y for y, _ in done] + [starts for _, starts in done]


@_scan_forward.register_fake
def _(tensors: list[Tensor], reverse: list[bool], softplus: bool, save: bool) -> list[Tensor]:
    directions = _directions(tensors, reverse)
    ys = [torch.empty_like(one.u_BDL) for one in directions]
    shapes = [(0,) for _ in directions]
    if save and not tensors[0].is_meta:
        kernel = _triton_scan() if tensors[0].is_cuda else _numba_scan()
        shapes = [kernel.starts_shape(one.u_BDL, one.A_DN) for one in directions]
    return ys + [
        one.u_BDL.new_empty(shape, dtype=torch.float32) for one, shape in zip(directions, shapes, strict=True)
    ]


@torch.library.custom_op("dear::scan_backward", mutates_args=())
def _scan_backward(
    tensors: list[Tensor], starts: list[Tensor], dys: list[Tensor], reverse: list[bool], softplus: bool
) -> list[Tensor]:
    """The gradients of all seven tensors of each direction."""
    directions = _directions(tensors, reverse)
    if tensors[0].is_cuda:
        done = _triton_scan().scan_backward(directions, starts, dys, softplus=softplus)
    else:
        jobs = zip(directions, starts, dys, strict=True)
        kernel = _numba_scan().scan_backward
        done = [kernel(one, start, dy, softplus=softplus) for one, start, dy in jobs]
    return [gradient for gradients in done for gradient in gradients]


@_scan_backward.register_fake
def _(
    tensors: list[Tensor], starts: list[Tensor], dys: list[Tensor], reverse: list[bool], softplus: bool
) -> list[Tensor]:
    gradients = []
    for u, delta, A, B, C, D, bias, _reverse in _directions(tensors, reverse):
        dB, dC = (x.new_empty(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2) for x in (B, C))
        gradients += [torch.empty_like(u), torch.empty_like(delta), torch.empty_like(A), dB, dC]
        gradients += [torch.empty_like(D), torch.empty_like(bias)]
    return gradients


@register_flop_formula(torch.ops.dear.scan_forward)
def _forward_flops(shapes, *_others, **_outputs) -> int:
    """9*B*L*D*N + 2*B*L*D a direction, the convention that `flops` explains."""
    groups = [shapes[index : index + TENSORS] for index in range(0, len(shapes), TENSORS)]
    return sum(math.prod(group[0]) * (9 * group[2][1] + 2) for group in groups)


@register_flop_formula(torch.ops.dear.scan_backward)
def _backward_flops(shapes, *_others, **_outputs) -> int:
    """Twice the forward; states that are computed again are not counted."""
    return 2 * _forward_flops(shapes)


def _has_operator(u_BDL: Tensor, work: torch.dtype) -> bool:
    if work != torch.float32:
        return False
    if u_BDL.is_cuda:
        return torch.version.hip is None and _has_kernel("cuda")
    return u_BDL.is_meta or (u_BDL.device.type == "cpu" and _has_kernel("cpu"))


@torch.compiler.assume_constant_result
def _has_kernel(device: str) -> bool:
    return (_triton_scan() if device == "cuda" else _numba_scan()) is not None


@functools.cache
def _mamba_kernel() -> Callable[..., Tensor] | None:
    """mamba_ssm's function, or None: it is an optional extra that needs a CUDA build to import."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


@functools.cache
def _numba_scan() -> ModuleType | None:
    """The numba path, imported at its first use (numba takes half a second to import)."""
    try:
        from dear_core.models import scan_numba
    except ImportError:
        return None
    return scan_numba


@functools.cache
def _triton_scan() -> ModuleType | None:
    """The Triton path; torch for CUDA on Linux brings Triton along."""
    try:
        import triton  # noqa: F401

        from dear_core.models import scan_triton
    except ImportError:
        return None
    return scan_triton


def _check(direction: Direction) -> None:
    u, delta, A, B, C, D, bias, _reverse = direction
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be [B, D, L] and A [D, N], got {list(u.shape)}, {list(A.shape)}")
    batch, channels, length = u.shape
    want = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, A.shape[1])),
        "B": (B, (batch, A.shape[1], length)),
        "C": (C, (batch, A.shape[1], length)),
        "D": (D, (channels,)),
        "delta_bias": (bias, (channels,)),
    }
    for name, (tensor, shape) in want.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
