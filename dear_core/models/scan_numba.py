"""The selective scan compiled for CPUs by numba, forward and backward.

Why: a CPU has no Mamba kernel, and vectorised torch operations write every state [B,D,L,N] to memory
several times. Here a block of channels stays in the cache while time runs: the inner loops run over
channels, so LLVM turns them into SIMD, exp included (a polynomial, as libm's would be called one
element at a time). Bias, softplus and the direct term D*u are done on the way, so delta and y cross the
memory once. Only the state at the start of each chunk is kept; the backward recomputes the rest.

What it does not do: float32 on the CPU only, and no gradients by itself (see `selective_scan`).

Legend: B clips, D channels, L time steps, N states a channel, S steps a chunk, K chunks, W channels a
block, P blocks a clip. A task is one block of one clip. A sheet is a tensor of three axes as a flat
array, its strides over clips, channels (or states) and steps, and the place of its first step; time that
runs backwards is a negative stride.
"""

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from dear_core.models.numba_simd import LOG2_E, compiled, exp2, share_out
from dear_core.models.scan_torch import Direction

WIDTH = 64  # W: 16 SSE, 8 AVX or 4 AVX-512 vectors; a block's states take 4 KB at N = 16
STEPS = 16  # S: a chunk's states and decays take 2 x 64 KB at N = 16, within any L2 cache
# log(1 + y) / y on [0, 1], interpolated at the 10 Chebyshev nodes, highest power first (error 5e-9)
LOG1P_POLYNOMIAL = (
    -0.0031760570031637565,
    0.019542527193507055,
    -0.056373612704807494,
    0.10543623782748641,
    -0.15269667066800405,
    0.19663274254514557,
    -0.24951616262325693,
    0.3332971049886077,
    -0.4999989264806066,
    0.9999999946562921,
)


@intrinsic
def _log1p_ratio(typingctx, y):
    """log(1 + y) / y in float32 for y in [0, 1]."""

    def codegen(_context, builder, _signature, args):
        f32 = ir.FloatType()
        value = ir.Constant(f32, float(np.float32(LOG1P_POLYNOMIAL[0])))
        for coefficient in LOG1P_POLYNOMIAL[1:]:
            product = builder.fmul(value, args[0], flags=("contract",))
            number = ir.Constant(f32, float(np.float32(coefficient)))
            value = builder.fadd(product, number, flags=("contract",))
        return value

    return types.float32(types.float32), codegen


@compiled
def _load(sheet, b, channel, step, channels, steps, tile_SW):
    """Copy a corner of one clip into a [S, W] tile; what lies outside reads as zero."""
    flat, stride_b, stride_d, stride_l, first = sheet
    corner = first + b * stride_b + channel * stride_d + step * stride_l
    if channels < WIDTH or steps < STEPS:
        tile_SW[:] = np.float32(0.0)
    if stride_d == 1:
        for s in range(steps):
            row = corner + s * stride_l
            values = flat[row : row + channels]  # an index into a slice needs no test for its sign
            for d in range(channels):
                tile_SW[s, d] = values[d]
    else:
        for d in range(channels):
            column = corner + d * stride_d
            for s in range(steps):
                tile_SW[s, d] = flat[column + s * stride_l]


@compiled
def _store(tile_SW, sheet, b, channel, step, channels, steps):
    """The inverse of `_load`."""
    flat, stride_b, stride_d, stride_l, first = sheet
    corner = first + b * stride_b + channel * stride_d + step * stride_l
    if stride_d == 1:
        for s in range(steps):
            row = corner + s * stride_l
            values = flat[row : row + channels]
            for d in range(channels):
                values[d] = tile_SW[s, d]
    else:
        for d in range(channels):
            column = corner + d * stride_d
            for s in range(steps):
                flat[column + s * stride_l] = tile_SW[s, d]


@compiled
def _load_states(sheet, b, step, steps, tile_SN):
    """Copy some steps of B or C into a [S, N] tile."""
    flat, stride_b, stride_n, stride_l, first = sheet
    for s in range(steps):
        row = first + b * stride_b + (step + s) * stride_l
        if stride_n == 1:
            values = flat[row : row + tile_SN.shape[1]]
            for n in range(tile_SN.shape[1]):
                tile_SN[s, n] = values[n]
        else:
            for n in range(tile_SN.shape[1]):
                tile_SN[s, n] = flat[row + n * stride_n]


@compiled
def _step_sizes(delta_SW, bias_W, softplus, sigmoid_SW):
    """Raw delta to step sizes, in place; sigmoid_SW gets their derivative."""
    for s in range(STEPS):
        for d in range(WIDTH):
            raw = delta_SW[s, d] + bias_W[d]
            if softplus:
                small = exp2(-abs(raw) * np.float32(LOG2_E))
                delta_SW[s, d] = max(raw, np.float32(0.0)) + small * _log1p_ratio(small)
                over = np.float32(1.0) / (np.float32(1.0) + small)
                sigmoid_SW[s, d] = over if raw >= np.float32(0.0) else small * over
            else:
                delta_SW[s, d] = raw
                sigmoid_SW[s, d] = np.float32(1.0)


@compiled
def _forward(first, stride, size, softplus, save, u, delta, B, C, y, A_PNW, D_PW, bias_PW, starts_BPKNW):
    """Run the tasks first, first + stride, ...; y is filled, and the chunks' first states if `save`."""
    clips, channels, L = size
    P, N = A_PNW.shape[0], A_PNW.shape[1]
    u_SW = np.empty((STEPS, WIDTH), np.float32)
    delta_SW, y_SW, drop_SW = np.empty_like(u_SW), np.empty_like(u_SW), np.empty_like(u_SW)
    B_SN, C_SN = np.empty((STEPS, N), np.float32), np.empty((STEPS, N), np.float32)
    h_NW = np.empty((N, WIDTH), np.float32)
    rate_NW = np.empty_like(h_NW)
    for task in range(first, clips * P, stride):
        b, p = task // P, task % P
        width = min(WIDTH, channels - p * WIDTH)
        rate_NW[:] = A_PNW[p] * np.float32(LOG2_E)
        h_NW[:] = np.float32(0.0)
        for k in range((L + STEPS - 1) // STEPS):
            steps = min(STEPS, L - k * STEPS)
            _load(u, b, p * WIDTH, k * STEPS, width, steps, u_SW)
            _load(delta, b, p * WIDTH, k * STEPS, width, steps, delta_SW)
            _load_states(B, b, k * STEPS, steps, B_SN)
            _load_states(C, b, k * STEPS, steps, C_SN)
            _step_sizes(delta_SW, bias_PW[p], softplus, drop_SW)
            if save:
                starts_BPKNW[b, p, k] = h_NW
            for s in range(steps):
                for d in range(WIDTH):
                    y_SW[s, d] = u_SW[s, d] * D_PW[p, d]
                    u_SW[s, d] *= delta_SW[s, d]
                for n in range(N):
                    for d in range(WIDTH):
                        decay = exp2(delta_SW[s, d] * rate_NW[n, d])
                        h = decay * h_NW[n, d] + u_SW[s, d] * B_SN[s, n]
                        h_NW[n, d] = h
                        y_SW[s, d] += h * C_SN[s, n]
            _store(y_SW, y, b, p * WIDTH, k * STEPS, width, steps)


@compiled
def _recompute(steps, first_NW, delta_SW, drive_SW, rate_NW, B_SN, decay_SNW, h_SNW):
    """Fill a chunk's decays and its states, h_SNW[0] being the state before the chunk."""
    h_SNW[0] = first_NW
    for s in range(steps):
        for n in range(rate_NW.shape[0]):
            B = B_SN[s, n]
            for d in range(WIDTH):
                decay_SNW[s, n, d] = exp2(delta_SW[s, d] * rate_NW[n, d])
            for d in range(WIDTH):
                h_SNW[s + 1, n, d] = decay_SNW[s, n, d] * h_SNW[s, n, d] + drive_SW[s, d] * B


@compiled
def _chunk_backward(
    steps, delta_SW, drive_SW, dy_SW, A_NW, B_SN, C_SN, decay_SNW, h_SNW,
    g_NW, through_W, dA_NW, dB_SN, dC_SN, ddecay_SW, ddrive_SW,
):  # fmt: skip
    """Walk a chunk backwards. g_NW carries the states' gradient from the chunk after to the one before.

    The loops over channels are kept apart and short of arrays: LLVM vectorises a loop only if few
    run-time checks show that its arrays do not overlap.
    """
    for s in range(steps - 1, -1, -1):
        for n in range(A_NW.shape[0]):
            B, C = B_SN[s, n], C_SN[s, n]
            dB, dC = np.float32(0.0), np.float32(0.0)
            for d in range(WIDTH):
                g = g_NW[n, d] + dy_SW[s, d] * C
                g_NW[n, d] = g
                dB += g * drive_SW[s, d]
                dC += dy_SW[s, d] * h_SNW[s + 1, n, d]
            dB_SN[s, n] = dB
            dC_SN[s, n] = dC
            for d in range(WIDTH):
                ddrive_SW[s, d] += g_NW[n, d] * B
            for d in range(WIDTH):
                passed = g_NW[n, d] * decay_SNW[s, n, d]
                g_NW[n, d] = passed
                through_W[d] = passed * h_SNW[s, n, d]
            for d in range(WIDTH):
                dA_NW[n, d] += through_W[d] * delta_SW[s, d]
            for d in range(WIDTH):
                ddecay_SW[s, d] += through_W[d] * A_NW[n, d]


@compiled
def _backward(
    first, stride, size, softplus, u, delta, B, C, dy, du, ddelta, A_PNW, D_PW, bias_PW,
    starts_BPKNW, dA_BPNW, dD_BPW, dbias_BPW, dB_PBLN, dC_PBLN,
):  # fmt: skip
    """The gradients of the tasks first, first + stride, ...; those of shared inputs one part a task.

    dB_PBLN and dC_PBLN count steps in the order that time runs.
    """
    clips, channels, L = size
    P, N = A_PNW.shape[0], A_PNW.shape[1]
    u_SW = np.empty((STEPS, WIDTH), np.float32)
    delta_SW, dy_SW, drive_SW = np.empty_like(u_SW), np.empty_like(u_SW), np.empty_like(u_SW)
    ddecay_SW, ddrive_SW, slope_SW = np.empty_like(u_SW), np.empty_like(u_SW), np.empty_like(u_SW)
    B_SN, C_SN = np.empty((STEPS, N), np.float32), np.empty((STEPS, N), np.float32)
    decay_SNW = np.empty((STEPS, N, WIDTH), np.float32)
    h_SNW = np.empty((STEPS + 1, N, WIDTH), np.float32)
    g_NW, rate_NW = np.empty((N, WIDTH), np.float32), np.empty((N, WIDTH), np.float32)
    through_W = np.empty(WIDTH, np.float32)
    for task in range(first, clips * P, stride):
        b, p = task // P, task % P
        channel, width = p * WIDTH, min(WIDTH, channels - p * WIDTH)
        rate_NW[:] = A_PNW[p] * np.float32(LOG2_E)
        g_NW[:] = np.float32(0.0)
        dA_BPNW[b, p] = np.float32(0.0)
        dD_BPW[b, p], dbias_BPW[b, p] = np.float32(0.0), np.float32(0.0)
        for k in range((L + STEPS - 1) // STEPS - 1, -1, -1):
            low, steps = k * STEPS, min(STEPS, L - k * STEPS)
            _load(u, b, channel, low, width, steps, u_SW)
            _load(delta, b, channel, low, width, steps, delta_SW)
            _load(dy, b, channel, low, width, steps, dy_SW)
            _load_states(B, b, low, steps, B_SN)
            _load_states(C, b, low, steps, C_SN)
            _step_sizes(delta_SW, bias_PW[p], softplus, slope_SW)
            drive_SW[:] = u_SW * delta_SW
            ddecay_SW[:], ddrive_SW[:] = np.float32(0.0), np.float32(0.0)
            _recompute(steps, starts_BPKNW[b, p, k], delta_SW, drive_SW, rate_NW, B_SN, decay_SNW, h_SNW)
            _chunk_backward(
                steps, delta_SW, drive_SW, dy_SW, A_PNW[p], B_SN, C_SN, decay_SNW, h_SNW, g_NW, through_W,
                dA_BPNW[b, p], dB_PBLN[p, b, low : low + steps], dC_PBLN[p, b, low : low + steps],
                ddecay_SW, ddrive_SW,
            )  # fmt: skip
            for s in range(steps):
                for d in range(WIDTH):
                    raw = (ddecay_SW[s, d] + ddrive_SW[s, d] * u_SW[s, d]) * slope_SW[s, d]
                    dbias_BPW[b, p, d] += raw
                    dD_BPW[b, p, d] += dy_SW[s, d] * u_SW[s, d]
                    ddecay_SW[s, d] = raw
                    ddrive_SW[s, d] = ddrive_SW[s, d] * delta_SW[s, d] + dy_SW[s, d] * D_PW[p, d]
            _store(ddecay_SW, ddelta, b, channel, low, width, steps)
            _store(ddrive_SW, du, b, channel, low, width, steps)


def _blocks(rows: Tensor) -> np.ndarray:
    """A_DN -> A_PNW, or a vector [D] -> [P, W]; the last block is padded with zeros."""
    D = rows.shape[0]
    P = -(-D // WIDTH)
    padded = rows.new_zeros(P * WIDTH, *rows.shape[1:])
    padded[:D] = rows
    blocks = padded.view(P, WIDTH, *rows.shape[1:])
    return (blocks if rows.ndim == 1 else blocks.transpose(1, 2).contiguous()).numpy()


def _sheet(tensor: Tensor, reverse: bool) -> tuple[np.ndarray, int, int, int, int]:
    """A tensor [B, D or N, L] without a copy: (flat memory, three strides, place of the first step)."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((span,), (1,)).numpy()
    stride_b, stride_d, stride_l = tensor.stride()
    last = (tensor.shape[2] - 1) * stride_l
    return flat, stride_b, stride_d, -stride_l if reverse else stride_l, last if reverse else 0


def starts_shape(u_BDL: Tensor, A_DN: Tensor) -> tuple[int, ...]:
    """The shape of the states that `scan_forward` keeps for the backward."""
    batch, channels, length = u_BDL.shape
    return batch, -(-channels // WIDTH), -(-length // STEPS), A_DN.shape[1], WIDTH


def scan_forward(direction: Direction, *, softplus: bool, save: bool) -> tuple[Tensor, Tensor]:
    """y_BDL and the chunks' first states (empty unless `save`); all float32 on the CPU."""
    u, delta, A, B, C, D, bias, reverse = direction
    y = torch.empty_like(u)
    starts = u.new_empty(starts_shape(u, A) if save else (1, 1, 0, 1, 1))
    A_PNW = _blocks(A)
    share_out(
        _forward,
        u.shape[0] * A_PNW.shape[0],
        tuple(u.shape),
        softplus,
        save,
        *(_sheet(x, reverse) for x in (u, delta, B, C, y)),
        A_PNW,
        _blocks(D),
        _blocks(bias),
        starts.numpy(),
    )
    return y, starts if save else u.new_empty(0)


def scan_backward(
    direction: Direction, starts: Tensor, dy: Tensor, *, softplus: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, delta, A, B, C, D and bias."""
    u, delta, A, B, C, D, bias, reverse = direction
    A_PNW = _blocks(A)
    P, N, W = A_PNW.shape
    batch, channels, length = u.shape
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA_BPNW = u.new_empty(batch, P, N, W)
    dD_BPW, dbias_BPW = u.new_empty(batch, P, W), u.new_empty(batch, P, W)
    dB_PBLN, dC_PBLN = (u.new_empty(P, batch, length, N) for _ in range(2))
    share_out(
        _backward,
        batch * P,
        tuple(u.shape),
        softplus,
        *(_sheet(x, reverse) for x in (u, delta, B, C, dy, du, ddelta)),
        A_PNW,
        _blocks(D),
        _blocks(bias),
        *(x.numpy() for x in (starts, dA_BPNW, dD_BPW, dbias_BPW, dB_PBLN, dC_PBLN)),
    )
    dA_DN = dA_BPNW.sum(0).transpose(1, 2).reshape(P * W, N)[:channels].contiguous()
    dD_D, dbias_D = (part.sum(0).view(-1)[:channels] for part in (dD_BPW, dbias_BPW))
    dB_BLN, dC_BLN = dB_PBLN.sum(0), dC_PBLN.sum(0)
    if reverse:
        dB_BLN, dC_BLN = dB_BLN.flip(1), dC_BLN.flip(1)
    return du, ddelta, dA_DN, dB_BLN.transpose(1, 2), dC_BLN.transpose(1, 2), dD_D, dbias_D
