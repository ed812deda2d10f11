"""How long something takes, on a GPU or a CPU.

Why: every benchmark here measures alike: the median of repeated runs after a warm-up; on a GPU between
CUDA events, so that the host's own pace is not counted where the device is behind.

What it does not do: it does not flush caches, lock clocks or choose sizes.
"""

import statistics
import time
from collections.abc import Callable

import torch


def median_time(fn: Callable[[], object], *, repeats: int, warmup: int, device: torch.device | str) -> float:
    """Seconds of one call of `fn`: the median of `repeats`, after `warmup` calls that are not counted."""
    device = torch.device(device)
    for _ in range(warmup):
        fn()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            before = time.perf_counter()
            fn()
            times.append(time.perf_counter() - before)
        return statistics.median(times)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        fn()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


def matmul_peak(*, size: int, device: torch.device | str) -> float:
    """The best bf16 operations a second of a square product, out of several tries."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(median_time(lambda: a @ b, repeats=5, warmup=2, device=device) for _ in range(4))
    return 2 * size**3 / best
