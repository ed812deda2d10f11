"""How fast the paper's four rows train on one GPU, and how fast the selective scan is.

    python benchmarks/gpu.py                        # on a GPU: ViT-B/16, 8x224x224, within 9 minutes
    python benchmarks/gpu.py --rows 2 --profile     # the kernels of one row, by time
    python benchmarks/gpu.py --tiny --no-compile    # the same code at a toy size, on any machine

Prints Markdown for docs/benchmarks.md. Needs torch, timm, open_clip_torch and safetensors, and mamba-ssm
to compare with it. First bf16 must agree with float32 and the scans with plain torch, else the exit code
is 1. A step is forward under bf16 autocast, cross-entropy, backward, fused AdamW and zero_grad; its time
is the median of --steps after a warm-up.

Operations of a step are those of `dear_core.models.count(backward=True)`: the forward F of every part;
then for each product of a trainable part, one as large for its weight's gradient and one for its input's
where that is needed, so 2F without those of layers that read frames or the tower's tokens; 0 for the
frozen tower; 2F for the scans, whose recomputation is not counted. The share is of a large square bf16
product measured in the same run, not of the data sheet.

What it does not do: no data loading, no several GPUs.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import _gpu_scan, _gpu_step
from benchmarks._gpu_step import ROWS, Size
from benchmarks.timing import matmul_peak

SCAN_SIZES = (768, 1569, 16)  # channels, steps and states in VideoMamba-S on 8x224x224
TINY_SCAN_SIZES = (32, 37, 16)
RESERVE = {False: 15.0, True: 90.0}  # seconds that a measurement may take, eager and compiled


class Clock:
    """The time limit; what does not fit any more is skipped and named."""

    def __init__(self, limit: float):
        self.start, self.limit = time.monotonic(), limit
        self.skipped: list[str] = []

    def allows(self, what: str, seconds: float) -> bool:
        fits = time.monotonic() - self.start + seconds <= self.limit
        if not fits:
            self.skipped.append(what)
        return fits


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, clock = Size(tiny=options.tiny), Clock(options.time_limit)
    torch.set_float32_matmul_precision("highest")
    names = [list(ROWS)[index - 1] for index in options.rows]
    if options.profile:
        for name in names:
            print(f"## {name}, batch {options.batches[0]}\n", flush=True)
            print(_gpu_step.profile(size, ROWS[name], options.batches[0], device, compiled=options.compile))
        return 0
    report: dict[str, object] = {"machine": machine(device, size)}
    print(heading(report["machine"]), flush=True)
    report["checks"], agrees = checks(names, size, device)
    report["steps"], report["scans"] = [], []
    save(report, options.json)
    if not agrees:
        return 1
    peak = report["machine"]["matmul_flops"]
    print(STEP_HEAD, flush=True)
    report["steps"] += steps(names, options, size, device, clock, peak, compiled=False)
    save(report, options.json)
    report["scans"] += scans(options, size, device, clock)
    save(report, options.json)
    if options.compile:
        print("\nWith torch.compile:\n\n" + STEP_HEAD, flush=True)
        report["steps"] += steps(names, options, size, device, clock, peak, compiled=True)
    report["skipped"] = clock.skipped
    save(report, options.json)
    if clock.skipped:
        print(f"\nSkipped, as {options.time_limit:g} s were over: {'; '.join(clock.skipped)}.")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = "; ".join(f"{index} {name}" for index, name in enumerate(ROWS, 1))
    parser.add_argument("--rows", type=int, nargs="+", choices=range(1, 5), default=[1, 2, 3, 4], help=rows)
    parser.add_argument("--batches", type=int, nargs="+", help="clips a step (16 64; tiny: 2)")
    parser.add_argument("--steps", type=int, help="timed steps of each measurement (20; tiny: 3)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="eager only")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; always so without CUDA")
    parser.add_argument("--profile", action="store_true", help="print the kernels by time, measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--time-limit", type=float, default=540.0, metavar="S", help="seconds (540)")
    options = parser.parse_args(argv)
    options.tiny = options.tiny or not torch.cuda.is_available()
    options.batches = options.batches or ([2] if options.tiny else [16, 64])
    options.steps = options.steps or (3 if options.tiny else 20)
    return options


def machine(device: torch.device, size: Size) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "size": "tiny" if size.tiny else "ViT-B/16, 8 frames of 224x224, 174 classes, side 320, VideoMamba-S",
        "versions": {name: version(name) for name in ("torch", "triton", "mamba-ssm", "causal-conv1d")},
        "cuda": torch.version.cuda,
        "matmul_flops": matmul_peak(size=256 if size.tiny else 8192, device=device),
    }


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def heading(facts: dict) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{facts['device']}; {versions}, CUDA {facts['cuda']}.\n"
        f"Size: {facts['size']}. bf16 matrix product: {facts['matmul_flops'] / 1e12:.4g} TFLOP/s.\n"
    )


def checks(names: list[str], size: Size, device: torch.device) -> tuple[list[dict], bool]:
    """bf16 against float32 for each row; each scan against plain torch."""
    found, agrees = [], True
    print("| check | largest error | tolerance |\n| --- | --- | --- |")
    limits = {"logits": _gpu_step.LOGITS_TOLERANCE, "loss": _gpu_step.LOSS_TOLERANCE}
    results = [(name, _gpu_step.check(size, ROWS[name], device), limits) for name in names]
    scan = _gpu_scan.check(TINY_SCAN_SIZES if size.tiny else SCAN_SIZES, device)
    results.append(("scan", scan, dict.fromkeys(scan, _gpu_scan.TOLERANCE)))
    for name, errors, tolerances in results:
        for what, error in errors.items():
            limit = tolerances[what]
            good = error <= limit  # false for nan, too
            agrees &= good
            print(f"| {name}: {what} | {error:.1e}{'' if good else ' **FAILS**'} | {limit:g} |", flush=True)
            found.append({"check": f"{name}: {what}", "error": error, "tolerance": limit})
    _gpu_step.release(device.type == "cuda")
    print("", flush=True)
    return found, agrees


STEP_HEAD = (
    "| row | batch | mode | ms a step | clips/s | TFLOP/s | of the product's | peak GiB |\n"
    "| --- | --: | --- | --: | --: | --: | --: | --: |"
)


def steps(
    names: list[str],
    options: argparse.Namespace,
    size: Size,
    device: torch.device,
    clock: Clock,
    peak: float,
    *,
    compiled: bool,
) -> list[dict]:
    mode, results = "compiled" if compiled else "eager", []
    for batch in options.batches:
        for name in names:
            if not clock.allows(f"{name}, batch {batch}, {mode}", 0 if size.tiny else RESERVE[compiled]):
                continue
            result = _gpu_step.measure(
                size, ROWS[name], batch, device, compiled=compiled, steps=options.steps
            )
            results.append({"row": name, "batch": batch, "mode": mode, **result})
            print(f"| {name} | {batch} | {mode} | {step_cells(result, peak)} |", flush=True)
    return results


def step_cells(result: dict, peak: float) -> str:
    if "error" in result:
        return f"{result['error']} | | | |"
    rate = result["flops_per_second"]
    memory = f"{result['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in result else ""
    cells = [f"{result['seconds'] * 1e3:.1f}", f"{result['clips_per_second']:.1f}"]
    return " | ".join([*cells, f"{rate / 1e12:.4g}", f"{rate / peak:.1%}", memory])


def scans(options: argparse.Namespace, size: Size, device: torch.device, clock: Clock) -> list[dict]:
    sizes, results = TINY_SCAN_SIZES if size.tiny else SCAN_SIZES, []
    print(f"\nThe scan, both directions, bf16, {sizes[0]} channels, {sizes[1]} steps, {sizes[2]} states:\n")
    print("| scan | batch | forward ms | forward and backward ms |\n| --- | --: | --: | --: |")
    for batch in options.batches:
        if not clock.allows(f"scan, batch {batch}", RESERVE[False]):
            continue
        for row in _gpu_scan.measure(batch, sizes, device, steps=options.steps):
            cells = [row[key] for key in ("forward", "forward_backward")]
            times = [cell if isinstance(cell, str) else f"{cell * 1e3:.3f}" for cell in cells]
            print(f"| {row['scan']} | {batch} | {' | '.join(times)} |", flush=True)
            results.append(row)
    if _gpu_scan.mamba_kernel() is None:
        print("\nmamba-ssm is not installed; its kernel was not compared.")
    return results


def save(report: dict, path: Path | None) -> None:
    """Written after every part, so that a run that is cut off leaves what it has."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
