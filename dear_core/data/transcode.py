"""Writes one video again, so that a frame is decoded cheaply and from few others.

Why: a clip of eight frames decodes nearly all of a video that has one key frame. How much cheaper codecs and
short distances between key frames are, and what they cost on disk, is measured by ``benchmarks/data.py``.

A video keeps its size, frames and their order; its suffix may lie about what is in it (MP4), which readers do
not mind. It is published by one rename after its frames were counted, and some compared with the original's,
so a file that is there is complete. Colours are brought to BT.601, which readers assume where nothing is
said; sound is left out. The original is not touched. Whole data sets: ``transcode_set``.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.reformatter import Interpolation as Scaler

from dear_core.data import decode
from dear_core.errors import InputError

UNFINISHED = ".part"
COMPARED = 4  # frames of a video that are compared with the original's
LEAST_PSNR = 20.0  # dB; less means another frame, another colour or another side up
EXACT = Scaler.BICUBIC | Scaler.ACCURATE_RND | Scaler.FULL_CHR_H_INT | Scaler.FULL_CHR_H_INP  # no darkening
MOST_TICKS = 65535  # of a second, MPEG-4's limit


@dataclass(frozen=True)
class Encoder:
    """One of FFmpeg's encoders, at a quality that is hard to tell from the original."""

    name: str
    options: Mapping[str, str]
    pixel_format: str = "yuv420p"


_Q3 = {"qmin": "3", "qmax": "3", "b": "50M"}
_RD = {"mbd": "rd", "trellis": "1", "sc_threshold": "1000000000"}
_X264 = {"preset": "medium", "tune": "fastdecode", "crf": "20", "sc_threshold": "0"}
_VP9 = {"deadline": "good", "cpu-used": "3", "row-mt": "0", "lag-in-frames": "0", "crf": "28", "b": "0"}
ENCODERS: Mapping[str, Encoder] = {  # key frames at a fixed distance: with others, decord can miss a frame
    "mpeg4": Encoder("mpeg4", _Q3 | _RD),
    "mjpeg": Encoder("mjpeg", _Q3, "yuvj420p"),
    "h264": Encoder("libx264", _X264),
    "vp9": Encoder("libvpx-vp9", _VP9),
}


@dataclass(frozen=True)
class Recipe:
    """How videos are written.

    ``gop``: frames from one key frame to the next; 1: key frames only. ``height``: greatest shorter side in
    pixels; 0: as it is. H.264 takes even sizes only.
    """

    codec: str = "mpeg4"
    gop: int = 8
    height: int = 0

    def __post_init__(self) -> None:
        if self.gop < 1:
            raise InputError(f"--gop {self.gop}: give 1 frame or more")
        if self.height < 0 or self.height % 2 or 0 < self.height < 16:
            raise InputError(f"--height {self.height}: give an even number of pixels from 16, or 0")
        if self.codec == "mjpeg" and self.gop > 1:
            raise InputError("--codec mjpeg has key frames only; add --intra, or choose another codec")


@dataclass(frozen=True)
class Outcome:
    """What became of one video; ``failure`` says why it is not there."""

    before: int = 0
    after: int = 0
    psnr: tuple[float, ...] = ()
    """dB, of the frames that were compared."""
    failure: str | None = None


def transcode(original: Path, target: Path, recipe: Recipe) -> Outcome:
    """Write one video.

    Raises:
        InputError: the disk is full. What is wrong with the original is told in the outcome.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}{UNFINISHED}")
    try:
        reader = decode.VideoFile(original)
        target.parent.mkdir(parents=True, exist_ok=True)
        count = encode(original, part, recipe)
        if count != len(reader):
            raise InputError(f"{original}: {count} of its {len(reader)} frames decode; replace the file")
        psnr = _compare(reader, part, recipe)
        part.replace(target)
        return Outcome(original.stat().st_size, target.stat().st_size, psnr)
    except (InputError, OSError, av.FFmpegError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise InputError(f"{target.parent}: no space left; the same command goes on from here") from None
        text = str(error)
        return Outcome(failure=text if str(original) in text else f"{original}: {text}")
    finally:
        part.unlink(missing_ok=True)


def encode(original: Path, target: Path, recipe: Recipe) -> int:
    """Every frame of ``original`` as MP4, whatever the suffix of ``target``; returns how many there are."""
    encoder, reformatter, stream, count = ENCODERS[recipe.codec], VideoReformatter(), None, 0
    full = ColorRange.JPEG if encoder.pixel_format.startswith("yuvj") else ColorRange.MPEG
    with av.open(str(original)) as given, av.open(str(target), "w", format="mp4") as made:
        video = given.streams.video[0]
        video.thread_type, video.codec_context.thread_count = "NONE", 1  # videos are done side by side
        rate = _writable(video.average_rate or decode.FOLDER_RATE)
        for count, frame in enumerate(given.decode(video), start=1):
            if stream is None:
                width, height = _size(frame.width, frame.height, recipe.height)
                if recipe.codec == "h264" and (width % 2 or height % 2):
                    raise InputError(f"{original}: is {width}×{height}, H.264 takes even sizes only")
                options = {"keyint_min": str(recipe.gop), **encoder.options}
                stream = made.add_stream(encoder.name, rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = width, height, encoder.pixel_format
                context = stream.codec_context
                context.thread_count, context.gop_size, context.max_b_frames = 1, recipe.gop, 0
            changed = reformatter.reformat(
                frame, width, height, encoder.pixel_format,
                dst_colorspace=Colorspace.ITU601, dst_color_range=full, interpolation=EXACT,
            )  # fmt: skip
            changed.pts, changed.time_base = count - 1, 1 / rate
            changed.pict_type = 0  # the encoder chooses
            made.mux(stream.encode(changed))
        if stream is not None:
            made.mux(stream.encode())
    return count


def key_frames(path: Path) -> list[bool]:
    """Of every frame, in the file's order, whether it is a key frame.

    Raises:
        InputError: frames are not stored in the order in which they are shown.
    """
    with av.open(str(path)) as container:
        packets = [(p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size]
    times = [time for time, _ in packets]
    if sorted(set(times)) != times:
        raise InputError(f"{path}: its frames are not in order")
    return [is_key for _, is_key in packets]


def _compare(original: decode.VideoFile, made: Path, recipe: Recipe) -> tuple[float, ...]:
    """PSNR of some frames, read by index from both; raises ``InputError`` if it is not the same video."""
    keys, again = key_frames(made), decode.VideoFile(made)
    if len(keys) != len(original) or len(again) != len(original) or not all(keys[:: recipe.gop]):
        raise InputError(f"{original.path}: {len(original)} frames became {len(again)}")
    which = np.unique(np.linspace(0, len(keys) - 1, COMPARED).astype(int))
    result = []
    for index, before, after in zip(which, original.read(which), again.read(which), strict=True):
        if before.shape != after.shape and recipe.height:
            frame, (height, width) = av.VideoFrame.from_ndarray(before, "rgb24"), after.shape[:2]
            before = frame.reformat(width, height, interpolation=EXACT).to_ndarray()
        if before.shape != after.shape:
            sizes = " and ".join(f"{frame.shape[1]}×{frame.shape[0]}" for frame in (before, after))
            raise InputError(f"{original.path}: its frames are {sizes} when read in two ways; is it turned?")
        error = max(np.square(before.astype(np.float32) - after).mean(), 1e-2)
        result.append(10 * math.log10(255**2 / error))
        if result[-1] < LEAST_PSNR:
            raise InputError(f"{original.path}: frame {index} came out as another ({result[-1]:.1f} dB)")
    return tuple(result)


def _size(width: int, height: int, shorter: int) -> tuple[int, int]:
    if not shorter or min(width, height) <= shorter:
        return width, height
    scale = shorter / min(width, height)
    return max(shorter, 2 * round(width * scale / 2)), max(shorter, 2 * round(height * scale / 2))


def _writable(rate: Fraction) -> Fraction:
    """The nearest rate that every encoder here can write."""
    near = (rate.limit_denominator(limit) for limit in (1001, 500, 100, 10, 1))
    return next(one for one in near if 0 < one.numerator <= MOST_TICKS)
