"""The selective scan compiled for CPUs by numba, forward and backward.

Why: a CPU has no Mamba kernel, and vectorised torch operations write every state [B,D,L,N] to memory
several times. Here a block of channels stays in the cache while time runs: the inner loops run over
channels, so LLVM turns them into SIMD, exp included (a polynomial, as libm's would be called one
element at a time). Only the state at the start of each chunk is kept; the backward recomputes the rest.

Threads: the kernels are serial and release the GIL, and Python threads share the blocks out. Numba's
own `parallel=True` is not used: its `workqueue` layer aborts the process when two threads call it, and
trials do run in threads; its OpenMP layer does not survive a fork. Blocks write to places of their
own and are summed in a fixed order, so the number of threads does not change a result.

What it does not do: float32 on the CPU only (see `selective_scan` for the rest).

Legend: B clips, D channels, L time steps, N states a channel, S steps a chunk, K chunks, W channels a
block, P blocks a clip. A task is one block of one clip.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

WIDTH = 64  # W: 16 SSE, 8 AVX or 4 AVX-512 vectors; a block's states take 4 KB at N = 16
STEPS = 16  # S: a chunk's states and decays take 2 x 64 KB at N = 16, within any L2 cache
LOG2_E = 1.4426950408889634
# 2**f on [-0.5, 0.5], interpolated at the 7 Chebyshev nodes, highest power first (error 1e-7)
EXP2_POLYNOMIAL = (
    0.00015461444693294768,
    0.00134004281782533,
    0.009618056678553505,
    0.05550327226668675,
    0.24022650922288294,
    0.6931472067028335,
    1.0,
)


@intrinsic
def _exp2(typingctx, exponent):
    """2**exponent in float32 without a call or a branch, so that loops around it vectorise.

    The exponent is held to [-126, 127]: below it the result is 1e-38 instead of a smaller number.
    """

    def codegen(_context, builder, _signature, args):
        f32, i32 = ir.FloatType(), ir.IntType(32)

        def number(value: float) -> ir.Constant:
            return ir.Constant(f32, float(np.float32(value)))

        t = args[0]
        t = builder.select(builder.fcmp_ordered(">", t, number(-126.0)), t, number(-126.0))
        t = builder.select(builder.fcmp_ordered("<", t, number(127.0)), t, number(127.0))
        # Truncating t + 127.5 > 0 rounds t to an integer and adds float32's exponent bias.
        biased = builder.fptosi(builder.fadd(t, number(127.5)), i32)
        whole = builder.sitofp(builder.sub(biased, ir.Constant(i32, 127)), f32)
        f = builder.fsub(t, whole)
        value = number(EXP2_POLYNOMIAL[0])
        for coefficient in EXP2_POLYNOMIAL[1:]:
            product = builder.fmul(value, f, flags=("contract",))
            value = builder.fadd(product, number(coefficient), flags=("contract",))
        power = builder.bitcast(builder.shl(biased, ir.Constant(i32, 23)), f32)
        return builder.fmul(value, power)

    return types.float32(types.float32), codegen


_compiled = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@_compiled
def _load(rows_DL, channel, step, tile_SW):
    """Copy a [W, S] corner of [D, L] into a [S, W] tile; what lies outside reads as zero."""
    channels = min(WIDTH, rows_DL.shape[0] - channel)
    steps = min(STEPS, rows_DL.shape[1] - step)
    if channels < WIDTH or steps < STEPS:
        tile_SW[:] = np.float32(0.0)
    for d in range(channels):
        for s in range(steps):
            tile_SW[s, d] = rows_DL[channel + d, step + s]


@_compiled
def _store(tile_SW, rows_DL, channel, step):
    """The inverse of `_load`."""
    for d in range(min(WIDTH, rows_DL.shape[0] - channel)):
        for s in range(min(STEPS, rows_DL.shape[1] - step)):
            rows_DL[channel + d, step + s] = tile_SW[s, d]


@_compiled
def _forward(first, stride, save, u_BDL, delta_BDL, A_PNW, B_BLN, C_BLN, y_BDL, starts_BPKNW):
    """Run the tasks first, first + stride, ...; y is filled, and the chunks' first states if `save`."""
    N, L = A_PNW.shape[1], u_BDL.shape[2]
    u_SW = np.empty((STEPS, WIDTH), np.float32)
    delta_SW, y_SW = np.empty_like(u_SW), np.empty_like(u_SW)
    h_NW = np.empty((N, WIDTH), np.float32)
    rate_NW = np.empty_like(h_NW)
    for task in range(first, u_BDL.shape[0] * A_PNW.shape[0], stride):
        b, p = task // A_PNW.shape[0], task % A_PNW.shape[0]
        rate_NW[:] = A_PNW[p] * np.float32(LOG2_E)
        h_NW[:] = np.float32(0.0)
        for k in range((L + STEPS - 1) // STEPS):
            _load(u_BDL[b], p * WIDTH, k * STEPS, u_SW)
            _load(delta_BDL[b], p * WIDTH, k * STEPS, delta_SW)
            if save:
                starts_BPKNW[b, p, k] = h_NW
            y_SW[:] = np.float32(0.0)
            for s in range(min(STEPS, L - k * STEPS)):
                for d in range(WIDTH):
                    u_SW[s, d] *= delta_SW[s, d]
                for n in range(N):
                    B, C = B_BLN[b, k * STEPS + s, n], C_BLN[b, k * STEPS + s, n]
                    for d in range(WIDTH):
                        decay = _exp2(delta_SW[s, d] * rate_NW[n, d])
                        h = decay * h_NW[n, d] + u_SW[s, d] * B
                        h_NW[n, d] = h
                        y_SW[s, d] += h * C
            _store(y_SW, y_BDL[b], p * WIDTH, k * STEPS)


@_compiled
def _recompute(steps, first_NW, delta_SW, drive_SW, rate_NW, B_SN, decay_SNW, h_SNW):
    """Fill a chunk's decays and its states, h_SNW[0] being the state before the chunk."""
    h_SNW[0] = first_NW
    for s in range(steps):
        for n in range(rate_NW.shape[0]):
            B = B_SN[s, n]
            for d in range(WIDTH):
                decay_SNW[s, n, d] = _exp2(delta_SW[s, d] * rate_NW[n, d])
            for d in range(WIDTH):
                h_SNW[s + 1, n, d] = decay_SNW[s, n, d] * h_SNW[s, n, d] + drive_SW[s, d] * B


@_compiled
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


@_compiled
def _backward(
    first, stride, u_BDL, delta_BDL, A_PNW, B_BLN, C_BLN, starts_BPKNW, dy_BDL,
    du_BDL, ddelta_BDL, dA_BPNW, dB_PBLN, dC_PBLN,
):  # fmt: skip
    """The gradients of the tasks first, first + stride, ...; dA, dB and dC one part a task."""
    P, N, L = A_PNW.shape[0], A_PNW.shape[1], u_BDL.shape[2]
    u_SW = np.empty((STEPS, WIDTH), np.float32)
    delta_SW, dy_SW, drive_SW = np.empty_like(u_SW), np.empty_like(u_SW), np.empty_like(u_SW)
    ddecay_SW, ddrive_SW = np.empty_like(u_SW), np.empty_like(u_SW)
    decay_SNW = np.empty((STEPS, N, WIDTH), np.float32)
    h_SNW = np.empty((STEPS + 1, N, WIDTH), np.float32)
    g_NW, rate_NW = np.empty((N, WIDTH), np.float32), np.empty((N, WIDTH), np.float32)
    through_W = np.empty(WIDTH, np.float32)
    for task in range(first, u_BDL.shape[0] * P, stride):
        b, p = task // P, task % P
        rate_NW[:] = A_PNW[p] * np.float32(LOG2_E)
        g_NW[:] = np.float32(0.0)
        dA_BPNW[b, p] = np.float32(0.0)
        for k in range((L + STEPS - 1) // STEPS - 1, -1, -1):
            low, high = k * STEPS, min(L, (k + 1) * STEPS)
            _load(u_BDL[b], p * WIDTH, low, u_SW)
            _load(delta_BDL[b], p * WIDTH, low, delta_SW)
            _load(dy_BDL[b], p * WIDTH, low, dy_SW)
            drive_SW[:] = u_SW * delta_SW
            ddecay_SW[:], ddrive_SW[:] = np.float32(0.0), np.float32(0.0)
            _recompute(
                high - low, starts_BPKNW[b, p, k], delta_SW, drive_SW, rate_NW,
                B_BLN[b, low:high], decay_SNW, h_SNW,
            )  # fmt: skip
            _chunk_backward(
                high - low, delta_SW, drive_SW, dy_SW, A_PNW[p], B_BLN[b, low:high],
                C_BLN[b, low:high], decay_SNW, h_SNW, g_NW, through_W, dA_BPNW[b, p],
                dB_PBLN[p, b, low:high], dC_PBLN[p, b, low:high], ddecay_SW, ddrive_SW,
            )  # fmt: skip
            ddecay_SW += ddrive_SW * u_SW
            ddrive_SW *= delta_SW
            _store(ddecay_SW, ddelta_BDL[b], p * WIDTH, low)
            _store(ddrive_SW, du_BDL[b], p * WIDTH, low)


@functools.lru_cache(maxsize=4)
def _pool(_process: int, workers: int) -> ThreadPoolExecutor:
    """Idle threads, kept between calls; keyed by the process, as threads do not survive a fork."""
    return ThreadPoolExecutor(workers, thread_name_prefix="selective-scan")


def _share_out(kernel: Callable[..., None], tasks: int, *arguments: object) -> None:
    """Run `kernel(first, stride, ...)` on torch's number of threads, this one included."""
    workers = max(1, min(torch.get_num_threads(), tasks))
    others = []
    if workers > 1:
        pool = _pool(os.getpid(), workers - 1)
        others = [pool.submit(kernel, first, workers, *arguments) for first in range(1, workers)]
    kernel(0, workers, *arguments)
    for other in others:
        other.result()


def _blocks(A_DN: Tensor) -> np.ndarray:
    """A_DN -> A_PNW, the last block padded with zeros."""
    D, N = A_DN.shape
    P = -(-D // WIDTH)
    padded = A_DN.detach().new_zeros(P * WIDTH, N)
    padded[:D] = A_DN.detach()
    return padded.view(P, WIDTH, N).transpose(1, 2).contiguous().numpy()


class _CompiledScan(torch.autograd.Function):
    """Ties the two kernels together; keeps the inputs and each chunk's first state."""

    @staticmethod
    def forward(ctx, u_BDL, delta_BDL, A_DN, B_BNL, C_BNL):
        u_BDL, delta_BDL = u_BDL.detach().contiguous(), delta_BDL.detach().contiguous()
        B_BLN, C_BLN = (x.detach().transpose(1, 2).contiguous() for x in (B_BNL, C_BNL))
        y_BDL = torch.empty_like(u_BDL)
        A_PNW = _blocks(A_DN)
        save = any(ctx.needs_input_grad)
        K = -(-u_BDL.shape[2] // STEPS) if save else 0
        P, N, W = A_PNW.shape
        starts = u_BDL.new_empty(u_BDL.shape[0], P, K, N, W)
        arrays = (u_BDL.numpy(), delta_BDL.numpy(), A_PNW, B_BLN.numpy(), C_BLN.numpy())
        tasks = u_BDL.shape[0] * P
        _share_out(_forward, tasks, save, *arrays, y_BDL.numpy(), starts.numpy())
        if save:
            ctx.save_for_backward(u_BDL, delta_BDL, A_DN, B_BLN, C_BLN, starts)
        return y_BDL

    @staticmethod
    def backward(ctx, dy_BDL):
        u_BDL, delta_BDL, A_DN, B_BLN, C_BLN, starts = ctx.saved_tensors
        A_PNW = _blocks(A_DN)
        P, N, W = A_PNW.shape
        du_BDL, ddelta_BDL = torch.empty_like(u_BDL), torch.empty_like(u_BDL)
        dA_BPNW = u_BDL.new_empty(u_BDL.shape[0], P, N, W)
        dB_PBLN, dC_PBLN = (u_BDL.new_empty(P, *B_BLN.shape) for _ in range(2))
        saved = (u_BDL.numpy(), delta_BDL.numpy(), A_PNW, B_BLN.numpy(), C_BLN.numpy())
        grads = (du_BDL, ddelta_BDL, dA_BPNW, dB_PBLN, dC_PBLN)
        outputs = [grad.numpy() for grad in grads]
        dy = dy_BDL.contiguous().numpy()
        _share_out(_backward, u_BDL.shape[0] * P, *saved, starts.numpy(), dy, *outputs)
        dA_DN = dA_BPNW.sum(0).transpose(1, 2).reshape(P * W, N)[: A_DN.shape[0]]
        dB_BNL, dC_BNL = (part.sum(0).transpose(1, 2) for part in (dB_PBLN, dC_PBLN))
        return du_BDL, ddelta_BDL, dA_DN, dB_BNL, dC_BNL


def scan_compiled(u_BDL: Tensor, delta_BDL: Tensor, A_DN: Tensor, B_BNL: Tensor, C_BNL: Tensor) -> Tensor:
    """Sum over n of C * h, with h[l] = exp(delta*A) * h[l-1] + delta*u*B; delta ready -> y_BDL.

    All float32 on the CPU. Not twice differentiable.
    """
    return _CompiledScan.apply(u_BDL, delta_BDL, A_DN, B_BNL, C_BNL)
