"""The model's speed and memory on a CPU, against plain versions measured in the same run.

    python benchmarks/model.py                # about five minutes on two cores; or: make bench
    python benchmarks/model.py --skip-loop    # without the loop over time, which takes half of that
    python benchmarks/model.py --size tiny    # seconds: does everything run?

Rows: a clip of 8 frames of 224x224, batch 1, ViT-B/16, side width 320, VideoMamba-S; one direction of the
scan at B 1, D 768, L 1569, N 16. `floor` is the operations of the row (`dear_core.models.flops`) over the
best rate at which this machine multiplied matrices in this run; what is not a matrix product has no
operations there, so no row can reach it. Times are medians; machines differ and drift, ratios less so.

What it does not do: it needs no Ray, reads no video and no weights, and runs on no GPU (`gpu.py` does).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler speaks of missing GPUs otherwise
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as in trials, see ray_jobs/schedule.py

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import reference, timing
from dear_core.models import (
    DEAR,
    Direction,
    FrozenTower,
    Side4Video,
    VideoMamba,
    count,
    random_tower,
    selective_scan,
    selective_scan_reference,
)
from dear_core.models.scan_torch import scan_chunked

SIZES = {
    "full": {"image": 224, "width": 768, "layers": 12, "heads": 12, "side": 320, "mamba": (384, 24)},
    "tiny": {"image": 32, "width": 64, "layers": 2, "heads": 1, "side": 64, "mamba": (32, 2)},
}
PATCH = 16
FRAMES, CLASSES = 8, 174
SCAN = {"full": (1, 768, 1569, 16), "tiny": (1, 64, 33, 16)}


@dataclass
class Row:
    """One measured thing: seconds of ours and of the plain version, and what limits them."""

    name: str
    seconds: float
    plain: float | None = None
    floor: float | None = None
    limit: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        def shown(value: float | None) -> str:
            return "" if value is None else f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"

        gain = f"{self.plain / self.seconds:.1f}" if self.plain else ""
        above = f"{self.seconds / self.floor:.2f}" if self.floor else ""
        return [self.name, shown(self.seconds), shown(self.plain), gain, shown(self.floor), above,
                shown(self.limit), self.note]  # fmt: skip


HEADINGS = ["", "ours", "plain", "plain / ours", "floor", "ours / floor", "aim", ""]


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations a second of this machine's best way to multiply matrices of the tower's MLP."""
    x, weight = torch.randn(1576, 768, dtype=dtype), torch.randn(3072, 768, dtype=dtype)
    image = x.view(1, 1576, 1, 768).permute(0, 3, 1, 2)
    ways = (lambda: F.linear(x, weight), lambda: F.conv2d(image, weight[:, :, None, None]))
    best = min(min(_once(way) for _ in range(20)) for way in ways)
    return 2 * 1576 * 768 * 3072 / best


def median_time(run: Callable[[], object], repeats: int) -> float:
    return timing.median_time(run, repeats=repeats, warmup=1, device=torch.device("cpu"))


def _once(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def gradient(run: Callable[[], Tensor], model: torch.nn.Module) -> Callable[[], None]:
    """Forward and backward of one training step; gradients are dropped before it."""

    def step() -> None:
        for weight in model.parameters():
            weight.grad = None
        run().square().mean().backward()

    return step


def without_gradient(run: Callable[[], object]) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            run()

    return forward


def in_bf16(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run().float()

    return call


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that torch held at one time during `run`, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def require_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    error = ((got - want).abs().max() / want.abs().max()).item()
    if error > tolerance:
        sys.exit(f"error: {name} differs from the plain version by {error:.1e} (limit {tolerance:.0e})")


def scan_rows(size: str, repeats: int, loop: bool) -> list[Row]:
    B, D, L, N = SCAN[size]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    u, delta, B_, C_ = draw(B, D, L), draw(B, D, L), draw(B, N, L), draw(B, N, L)
    A, skip, bias, dy = -draw(D, N).exp(), draw(D), draw(D), draw(B, D, L)
    inputs = (u, delta, A, B_, C_, skip, None, bias)
    leaves = [x.clone().requires_grad_() for x in inputs if x is not None]

    def ours() -> Tensor:
        return selective_scan(*leaves[:6], None, leaves[6])

    def chunked() -> Tensor:
        return scan_chunked(Direction(*leaves, False), softplus=True)

    def differentiate(scan: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(scan(), leaves, dy)

    forward = without_gradient(lambda: selective_scan(*inputs))
    rows = [Row("scan, forward", median_time(forward, 5 * repeats), limit=25e-3, note="plain: loop")]
    if loop:
        rows[0].plain = median_time(lambda: selective_scan_reference(*inputs), 1)
        require_close("the scan", selective_scan(*inputs), selective_scan_reference(*inputs), 1e-5)
    both = median_time(differentiate(ours), 5 * repeats)
    plain = median_time(differentiate(chunked), 1)
    rows.append(Row("scan, forward + backward", both, plain, limit=120e-3, note="plain: chunked, torch"))
    moved = 4 * (sum(x.numel() for x in leaves) + dy.numel())  # inputs and output, or their gradients
    forward_extra = peak_bytes(ours) - 4 * dy.numel()
    both_extra = peak_bytes(differentiate(ours)) - moved - 4 * dy.numel()
    rows[0].note += f"; memory beyond inputs and output {forward_extra / moved:.2f} of them (aim 1.5)"
    rows[1].note += f"; beyond those and their gradients {both_extra / (2 * moved):.2f} of them"
    return rows


def build(size: str) -> tuple[FrozenTower, Side4Video, VideoMamba]:
    s = SIZES[size]
    torch.manual_seed(0)
    tower = random_tower(
        width=s["width"], layers=s["layers"], heads=s["heads"], patch_size=PATCH, image_size=s["image"],
        seed=0,
    )  # fmt: skip
    side = Side4Video(
        tower_width=s["width"], tower_layers=s["layers"], patch_size=PATCH, image_size=s["image"],
        num_frames=FRAMES, dim=s["side"],
    )  # fmt: skip
    mamba = VideoMamba(
        image_size=s["image"], patch_size=PATCH, num_frames=FRAMES,
        embed_dim=s["mamba"][0], depth=s["mamba"][1],
    )  # fmt: skip
    return tower, side, mamba


def side_rows(size: str, repeats: int, rates: dict[str, float]) -> list[Row]:
    tower, side, _ = build(size)
    model = DEAR(tower=tower, branches={"rgb:side4video": side}, num_classes=CLASSES).train()
    image = SIZES[size]["image"]
    clip = {"rgb": torch.randn(1, 3, FRAMES, image, image)}
    frames = clip["rgb"].transpose(1, 2).flatten(0, 1)
    operations = count(model, {"rgb": (3, FRAMES, image, image)}, backward=True)
    head = model.streams["rgb:side4video"]

    def open_clips_taps() -> tuple[Tensor, ...]:
        with torch.no_grad():
            x = tower.visual._embeds(frames)
            return tuple([x := block(x) for block in tower.visual.transformer.resblocks])

    def plain() -> Tensor:
        return head(reference.side4video(side, clip["rgb"], open_clips_taps()).mean((1, 2)))

    with torch.no_grad():
        require_close("Side4Video", model(clip), plain(), 1e-4)
    rows = [
        Row("tower, fp32", median_time(lambda: tower(frames), repeats), median_time(open_clips_taps, repeats),
            operations.by_part["tower"] / rates["fp32"], note="plain: open_clip's blocks"),
        Row("Side4Video, forward, fp32", median_time(without_gradient(lambda: model(clip)), repeats),
            median_time(without_gradient(plain), repeats), operations.total_flops / rates["fp32"],
            note="tower included; plain: official layout"),
        Row("Side4Video, forward + backward, fp32",
            median_time(gradient(lambda: model(clip), model), repeats),
            median_time(gradient(plain, model), repeats), operations.step_flops / rates["fp32"], 2.8),
    ]  # fmt: skip
    tower.to(torch.bfloat16)
    low = in_bf16(lambda: model(clip))
    rows += [
        Row("tower, bf16", median_time(lambda: tower(frames), repeats),
            floor=operations.by_part["tower"] / rates["bf16"]),
        Row("Side4Video, forward + backward, bf16", median_time(gradient(low, model), repeats),
            floor=operations.step_flops / rates["bf16"], limit=1.1, note="autocast, tower in bf16"),
    ]  # fmt: skip
    return rows


def mamba_rows(size: str, repeats: int, rates: dict[str, float], loop: bool) -> list[Row]:
    _, _, mamba = build(size)
    model = DEAR(tower=None, branches={"rgb:videomamba": mamba}, num_classes=CLASSES).train()
    image = SIZES[size]["image"]
    video = torch.randn(1, 3, FRAMES, image, image)
    operations = count(model, {"rgb": (3, FRAMES, image, image)}, backward=True)

    def run() -> Tensor:
        return model({"rgb": video})

    rows = [
        Row("VideoMamba-S, forward, fp32", median_time(without_gradient(run), repeats),
            floor=operations.total_flops / rates["fp32"], limit=1.2, note="plain: loop over time"),
        Row("VideoMamba-S, forward + backward, fp32", median_time(gradient(run, model), repeats),
            floor=operations.step_flops / rates["fp32"], limit=4.0),
        Row("VideoMamba-S, forward + backward, bf16", median_time(gradient(in_bf16(run), model), repeats),
            floor=operations.step_flops / rates["bf16"], note="autocast; the scan in fp32"),
    ]  # fmt: skip
    if loop:
        with torch.no_grad():
            started = time.perf_counter()
            want = reference.videomamba(mamba, video, selective_scan_reference)
            rows[0].plain = time.perf_counter() - started
            require_close("VideoMamba", mamba(video)[0], want, 1e-4)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each row, the median counts")
    parser.add_argument("--skip-loop", action="store_true", help="leave the loops over time out")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    options = parser.parse_args()
    rates = {"fp32": matmul_rate(torch.float32), "bf16": matmul_rate(torch.bfloat16)}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; matrix products: "
          f"{rates['fp32'] / 1e9:.0f} GFLOP/s fp32, {rates['bf16'] / 1e9:.0f} bf16\n")  # fmt: skip
    print("| " + " | ".join(HEADINGS) + " |")
    print("|" + " --- |" * len(HEADINGS))
    rows = []
    loop = not options.skip_loop
    for part in (
        lambda: scan_rows(options.size, options.repeats, loop),
        lambda: side_rows(options.size, options.repeats, rates),
        lambda: mamba_rows(options.size, options.repeats, rates, loop),
    ):
        for row in part():
            print("| " + " | ".join(row.cells()) + " |", flush=True)
            rows.append(row)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
