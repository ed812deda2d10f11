"""The selective scan alone: our kernel, Mamba's and plain torch, compared and timed. For `gpu.py`.

What it does not do: it does not time the flips that Mamba's kernel needs for the reverse direction; both
of its runs go forwards, on inputs that are already flipped and contiguous in time.

Legend: B clips, D channels, L time steps, N states a channel.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import median_time
from dear_core.models.scan_torch import Direction, scan_chunked
from dear_core.models.selective_scan import scan_directions

TOLERANCE = 2e-2  # of the peak: inputs and outputs are bf16
Pair = list[Direction]
Run = Callable[[Pair, list[Tensor] | None], list[Tensor]]  # y and, given dy, the gradients


def make_pair(batch: int, channels: int, length: int, states: int, device: torch.device) -> Pair:
    """Both directions' inputs, laid out as VideoMamba's: bf16, channels last, B and C cut from one tensor."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def one(reverse: bool) -> Direction:
        u_BLD, delta_BLD = (draw(batch, length, channels).to(device, torch.bfloat16) for _ in range(2))
        rank = channels // 32
        x_BLR = draw(batch, length, rank + 2 * states).to(device, torch.bfloat16)
        B_BNL, C_BNL = x_BLR[..., rank:].transpose(1, 2).split(states, dim=1)
        A_DN = -torch.arange(1, states + 1, dtype=torch.float32).repeat(channels, 1).to(device)
        D_D, bias_D = draw(channels).to(device), draw(channels).to(device) - 4
        u_BDL, delta_BDL = u_BLD.transpose(1, 2), delta_BLD.transpose(1, 2)
        return Direction(u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, bias_D, reverse)

    return [one(False), one(True)]


def ours(pair: Pair, dys: list[Tensor] | None) -> list[Tensor]:
    """The Triton kernel on a GPU, what `scan_directions` takes on a CPU."""
    if not pair[0].u_BDL.is_cuda:
        return by_autograd(lambda one: scan_directions(one), pair, dys)
    from dear_core.models import scan_triton

    ys, starts = scan_triton.scan_forward(pair, softplus=True, save=dys is not None)
    if dys is None:
        return ys
    gradients = scan_triton.scan_backward(pair, starts, dys, softplus=True)
    return ys + [gradient for group in gradients for gradient in group]


def chunked(pair: Pair, dys: list[Tensor] | None) -> list[Tensor]:
    """Plain torch operations in float32."""
    return by_autograd(lambda both: [scan_chunked(one, softplus=True) for one in both], widened(pair), dys)


def mamba_kernel() -> Run | None:
    """Mamba's own, or None where it is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None

    def scan(pair: Pair) -> list[Tensor]:
        return [selective_scan_fn(*one[:6], delta_bias=one.bias_D, delta_softplus=True) for one in pair]

    return lambda pair, dys: by_autograd(scan, pair, dys)


def by_autograd(scan: Callable[[Pair], list[Tensor]], pair: Pair, dys: list[Tensor] | None) -> list[Tensor]:
    if dys is None:
        with torch.no_grad():
            return list(scan(pair))
    leaves = [Direction(*(x.detach().requires_grad_() for x in one[:7]), one.reverse) for one in pair]
    ys = scan(leaves)
    inputs = [tensor for one in leaves for tensor in one[:7]]
    dys = [dy.to(y.dtype) for dy, y in zip(dys, ys, strict=True)]
    return [*ys, *torch.autograd.grad(ys, inputs, dys)]


def widened(pair: Pair) -> Pair:
    return [Direction(*(tensor.float() for tensor in one[:7]), one.reverse) for one in pair]


def flipped(pair: Pair) -> Pair:
    """The same scans with time ascending and contiguous, as Mamba's kernel wants them."""

    def turn(one: Direction) -> Direction:
        u, delta, A, B, C, D, bias, reverse = one
        u, delta, B, C = ((x.flip(-1) if reverse else x).contiguous() for x in (u, delta, B, C))
        return Direction(u, delta, A, B, C, D, bias, False)

    return [turn(one) for one in pair]


def make_dys(pair: Pair) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    draws = (torch.randn(one.u_BDL.transpose(1, 2).shape, generator=generator) for one in pair)
    return [
        draw.to(one.u_BDL.device, one.u_BDL.dtype).transpose(1, 2)
        for draw, one in zip(draws, pair, strict=True)
    ]


def check(sizes: tuple[int, int, int], device: torch.device) -> dict[str, float]:
    """The largest error of values and gradients against float32 torch operations, of each one's peak."""
    pair = make_pair(2, *sizes, device)
    dys = make_dys(pair)
    want = chunked(pair, dys)
    errors = {"ours": _error(ours(pair, dys), want)}
    mamba = mamba_kernel() if device.type == "cuda" else None
    if mamba is not None:
        # Only the direction that runs forwards: the other's results would have to be flipped back.
        ahead = mamba(flipped(pair[:1]), [dy.contiguous() for dy in dys[:1]])
        errors["mamba-ssm"] = _error(ahead, [want[0], *want[2:9]])
    return errors


def _error(got: list[Tensor], want: list[Tensor]) -> float:
    pairs = zip(got, want, strict=True)
    return max(((a.float() - b.float()).abs().max() / b.float().abs().max()).item() for a, b in pairs)


def measure(
    batch: int, sizes: tuple[int, int, int], device: torch.device, *, steps: int
) -> list[dict[str, object]]:
    """Seconds of both directions, forward and forward with backward, by each implementation."""
    pair = make_pair(batch, *sizes, device)
    dys = make_dys(pair)
    runs: dict[str, tuple[Run, Pair, list[Tensor]]] = {"ours": (ours, pair, dys)}
    mamba = mamba_kernel() if device.type == "cuda" else None
    if mamba is not None:
        runs["mamba-ssm"] = (mamba, flipped(pair), [dy.contiguous() for dy in dys])
    runs["torch, chunked"] = (chunked, pair, dys)
    results = []
    for name, (run, inputs, gradients) in runs.items():
        row: dict[str, object] = {"scan": name, "batch": batch}
        for what, given in (("forward", None), ("forward_backward", gradients)):
            try:
                row[what] = median_time(lambda: run(inputs, given), repeats=steps, warmup=2, device=device)  # noqa: B023
            except torch.cuda.OutOfMemoryError:
                row[what] = "out of memory"
                torch.cuda.empty_cache()
        results.append(row)
    return results
