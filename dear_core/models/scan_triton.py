"""The selective scan as Triton kernels: one or two directions in one launch, forward and backward.

Why: an NVIDIA GPU without mamba-ssm (which needs nvcc to build) still deserves a fused scan, and one
direction at a small batch does not fill a GPU: two directions here share a launch. No state but every
16th is written to memory; the backward recomputes the rest. The gradients of B and C, which sum over
channels, are written as one part for each group of 64 channels and added by torch in a fixed order,
so equal inputs give equal bits.

What it does not do: it is no autograd function (`selective_scan` makes one of it), does not multiply
by a gate, and takes float32, bfloat16 and float16 only. Nothing of Triton is imported before use.

Legend: B clips, D channels, L time steps, N states a channel, X N padded to a power of
two, P programs a clip.
"""

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dear_core.models.scan_torch import Direction

EVERY = 2  # chunks between the states that are kept: every 16 steps, 2/3 of the bytes of u, delta, y in bf16
FORWARD_REGISTERS = 128  # a thread; four programs of 128 threads then share a multiprocessor
ALIGNMENT = 8  # elements of 16 bits in the widest load


class Gradients(NamedTuple):
    """One direction's gradients, shaped as its inputs; A's, D's and bias's are float32."""

    du_BDL: Tensor
    ddelta_BDL: Tensor
    dA_DN: Tensor
    dB_BNL: Tensor
    dC_BNL: Tensor
    dD_D: Tensor
    dbias_D: Tensor


@dataclass(frozen=True)
class Tile:
    """How a program's states lie over threads, see `scan_triton_kernels`.

    A thread has M*J states of J channels, a warp K*Q = 32 lanes, a program G warps; S steps a chunk.
    """

    S: int
    M: int
    J: int
    G: int
    K: int
    Q: int

    @property
    def channels(self) -> int:
        return self.J * self.G * self.K

    @property
    def states(self) -> int:
        return self.M * self.Q

    @classmethod
    def of(cls, states: int) -> "Tile":
        """At N = 16: 4 states of 2 channels a thread, 64 channels a program.

        Chosen by the instructions that Triton 3.8 makes for sm_90, divided by steps and states: forward
        9.5, backward 32 (Triton 3.6: 10 and 34). With 1 channel a thread it is 11 and 38, as sums over
        channels take more shuffles; with 4 channels, or chunks of 16 steps, the backward spills; with 8
        states of 1 channel, B and C change places by shuffles (17 forward).
        """
        padded = 1 << max(0, states - 1).bit_length()
        lanes = min(32, max(1, padded // 4))
        return cls(S=max(8, lanes), M=padded // lanes, J=2, G=4, K=32 // lanes, Q=lanes)


@functools.cache
def available() -> bool:
    """Whether Triton can be imported."""
    try:
        _kernels()
    except ImportError:
        return False
    return True


def starts_shape(u_BDL: Tensor, A_DN: Tensor) -> tuple[int, ...]:
    """The shape of one direction's kept states."""
    batch, channels, length = u_BDL.shape
    tile = Tile.of(A_DN.shape[1])
    programs, kept = -(-channels // tile.channels), -(-length // (tile.S * EVERY))
    return batch, programs, kept, tile.channels, tile.states


def scan_forward(
    directions: Sequence[Direction], *, softplus: bool, save: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """y_BDL of each direction, and what `scan_backward` needs of its states (empty without `save`).

    t = delta + bias, dt = softplus(t) or t; h[l] = exp(dt*A) h[l-1] + dt*u*B; y = C.h + D*u.
    One or two directions of the same shapes; any strides. y has u's dtype and, if u is dense, strides.
    """
    directions = _alike(directions)
    u_BDL, _, A_DN, *_ = directions[0]
    tile = Tile.of(A_DN.shape[1])
    size = starts_shape(u_BDL, A_DN) if save else (0,)
    ys = [torch.empty_like(one.u_BDL) for one in directions]
    starts = [one.A_DN.new_empty(size) for one in directions]
    _launch(
        _kernels().forward,
        [[*_inputs(one), start, y] for one, start, y in zip(directions, starts, ys, strict=True)],
        directions,
        [*_strides(directions[0]), *ys[0].stride()],
        tile,
        SOFTPLUS=softplus,
        SAVE=save,
        maxnreg=FORWARD_REGISTERS,
    )
    return ys, starts


def scan_backward(
    directions: Sequence[Direction], starts: Sequence[Tensor], dys: Sequence[Tensor], *, softplus: bool
) -> list[Gradients]:
    """The gradients of each direction's inputs, from those of its y and its `starts`."""
    directions, dys = _alike(directions), _one_layout(list(dys))
    u_BDL, _, A_DN, *_ = directions[0]
    (batch, channels, length), states = u_BDL.shape, A_DN.shape[1]
    tile = Tile.of(states)
    programs = -(-channels // tile.channels)
    tensors, outputs = [], []
    for one, start, dy in zip(directions, starts, dys, strict=True):
        new = functools.partial(torch.empty, dtype=torch.float32, device=u_BDL.device)
        parts = [new(programs, batch, length, tile.states) for _ in ("B", "C")]
        sums = [new(batch, channels) for _ in ("D", "bias")]
        dA_BDX = new(batch, channels, tile.states)
        out = [torch.empty_like(one.u_BDL), torch.empty_like(one.delta_BDL), dA_BDX, *parts, *sums]
        outputs.append(out)
        tensors.append([*_inputs(one), start, dy, *out])
    strides = [*_strides(directions[0]), *dys[0].stride(), *outputs[0][0].stride(), *outputs[0][1].stride()]
    _launch(_kernels().backward, tensors, directions, strides, tile, batch, SOFTPLUS=softplus)
    return [_summed(one, out, states) for one, out in zip(directions, outputs, strict=True)]


def _summed(one: Direction, out: list[Tensor], states: int) -> Gradients:
    """Add up the parts that clips and groups of channels left."""
    du, ddelta, dA_BDX, dB_PBLX, dC_PBLX, dD_BD, dbias_BD = out
    dA_DN = dA_BDX.sum(0)[:, :states].contiguous()
    dB_BLN, dC_BLN = (
        part.sum(0)[..., :states].to(tensor.dtype).contiguous()
        for part, tensor in ((dB_PBLX, one.B_BNL), (dC_PBLX, one.C_BNL))
    )
    dB_BNL, dC_BNL = dB_BLN.transpose(1, 2), dC_BLN.transpose(1, 2)
    return Gradients(du, ddelta, dA_DN, dB_BNL, dC_BNL, dD_BD.sum(0), dbias_BD.sum(0))


def _launch(
    kernel,
    tensors: list[list[Tensor]],
    directions: list[Direction],
    strides: list[int],
    tile: Tile,
    *sizes: int,
    **options: int,
) -> None:
    """Start `kernel` once for all directions."""
    u_BDL, states = directions[0].u_BDL, directions[0].A_DN.shape[1]
    batch, channels, length = u_BDL.shape
    programs = -(-channels // tile.channels)
    # The strides of B and C over clips and time, as multiples of the widest load that they allow.
    vector = ALIGNMENT
    while any(strides[index] % vector for index in (6, 8, 9, 11)):
        vector //= 2
    for index in (6, 8, 9, 11):
        strides[index] //= vector
    arguments = [
        (*own, length - 1 if one.reverse else 0, -1 if one.reverse else 1)
        for own, one in zip(tensors, directions, strict=True)
    ]
    with torch.cuda.device_of(u_BDL):
        kernel[(programs * batch, len(directions))](
            arguments[0], arguments[-1], tuple(strides), length, channels, states, programs, *sizes,
            EVERY=EVERY, VEC=vector, S=tile.S, M=tile.M, J=tile.J, G=tile.G, K=tile.K, Q=tile.Q,
            num_warps=tile.G, num_stages=1, **options,
        )  # fmt: skip


def _inputs(one: Direction) -> list[Tensor]:
    return list(one[:7])


def _strides(one: Direction) -> list[int]:
    """Of u, delta, B and C."""
    return [step for tensor in (one.u_BDL, one.delta_BDL, one.B_BNL, one.C_BNL) for step in tensor.stride()]


def _alike(directions: Sequence[Direction]) -> list[Direction]:
    """The directions as the kernels want them: same shapes, dtypes and strides; A, D, bias contiguous."""
    directions = [Direction(*one) for one in directions]
    assert len(directions) in (1, 2), f"one or two directions, got {len(directions)}"
    columns = []
    for name, *column in zip(Direction._fields[:7], *(one[:7] for one in directions), strict=True):
        kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in column}
        assert len(kinds) == 1, f"{name} must have one shape and dtype in both directions, got {kinds}"
        columns.append(_one_layout(column, plain=name in ("A_DN", "D_D", "bias_D")))
    flags = [one.reverse for one in directions]
    return [Direction(*own) for own in zip(*columns, flags, strict=True)]


def _one_layout(tensors: list[Tensor], *, plain: bool = False) -> list[Tensor]:
    """The tensors with equal strides: contiguous if `plain`, and where their strides differ."""
    if plain or len({tensor.stride() for tensor in tensors}) > 1:
        return [tensor.contiguous() for tensor in tensors]
    return tensors


@functools.cache
def _kernels() -> types.ModuleType:
    """The kernels, imported at their first use."""
    from dear_core.models import scan_triton_kernels

    return scan_triton_kernels
