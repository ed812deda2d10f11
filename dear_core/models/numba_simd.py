"""What the numba kernels share: how they are compiled, an exp that vectorises, and their threads.

Threads: the kernels are serial and release the GIL, and Python threads share the blocks out. Numba's
own `parallel=True` is not used: its `workqueue` layer aborts the process when two threads call it, and
trials do run in threads; its OpenMP layer does not survive a fork. Tasks write to places of their
own and are summed in a fixed order, so the number of threads does not change a result.

What it does not do: it holds no kernel. Numba keeps compiled kernels beside their own file and does not see
a change made here: after one, change the files of the kernels too.
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

compiled = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@intrinsic
def exp2(typingctx, exponent):
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


@functools.lru_cache(maxsize=4)
def _pool(_process: int, workers: int) -> ThreadPoolExecutor:
    """Idle threads, kept between calls; keyed by the process, as threads do not survive a fork."""
    return ThreadPoolExecutor(workers, thread_name_prefix="selective-scan")


def share_out(kernel: Callable[..., None], tasks: int, *arguments: object) -> None:
    """Run `kernel(first, stride, ...)` on torch's number of threads, this one included."""
    workers = max(1, min(torch.get_num_threads(), tasks))
    others = []
    if workers > 1:
        pool = _pool(os.getpid(), workers - 1)
        others = [pool.submit(kernel, first, workers, *arguments) for first in range(1, workers)]
    kernel(0, workers, *arguments)
    for other in others:
        other.result()
