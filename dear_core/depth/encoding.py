"""Depth as video: grey levels through a codec into a file, and what a file says without being decoded.

Why: all that knows codecs and containers is here; the store knows ids and scales. Depth is luma in the full
range (255 steps, not the 219 of ordinary video) and, where a codec has chroma, neutral chroma. Colour readers
get it in the first channel. docs/depth.md has what each codec costs and how near it comes.

Key frames come at a fixed distance: with key frames of the encoder's choosing, decord has been seen to
return a frame's neighbour after a seek (H.264 in Matroska).

A process that writes must import this module (or av) before decord: decord publishes its own, older libvpx,
with which PyAV's encoder does not open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG: level 0 is black, 255 is white
_SEGMENT = bytes.fromhex("18538067")  # Matroska's name for all that follows its header


@dataclass(frozen=True)
class Codec:
    """How grey levels become a file: one of FFmpeg's encoders, its options, and the container's suffix."""

    encoder: str
    options: Mapping[str, str]
    pixel_format: str = "yuv420p"
    key_frame_every: int = 12
    """Frames. Reading by index decodes from the key frame before."""
    suffix: str = ".webm"
    bits: int = 8


REALTIME_VP9 = {"deadline": "realtime", "cpu-used": "8", "row-mt": "0", "lag-in-frames": "0"}
CODECS: Mapping[str, Codec] = {
    "vp9-crf10": Codec("libvpx-vp9", REALTIME_VP9 | {"crf": "10"}),
    "ffv1": Codec("ffv1", {"level": "3", "coder": "range_tab"}, "gray", 1, ".mkv"),  # lossless
}


@dataclass(frozen=True)
class VideoFacts:
    """What a depth video says of itself."""

    frames: int
    width: int
    height: int
    codec: str
    full_range: bool
    tags: Mapping[str, str]


class TruncatedError(ValueError):
    """The file is shorter or longer than its own header says."""


def encode(
    path: Path,
    levels: Iterable[np.ndarray],
    codec: Codec,
    fps: Fraction,
    tags: Mapping[str, str],
) -> None:
    """Write frames of grey levels (H,W), 0 to 2**bits - 1, one after the other; at least one.

    Raises:
        RuntimeError: the encoder does not open, for example because decord was imported before av.
    """
    stream = None
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        container.metadata.update(tags)
        for t, levels_HW in enumerate(levels):
            stream = stream or _add_stream(container, codec, fps, levels_HW.shape)
            frame = _frame(levels_HW, codec)
            frame.pts, frame.time_base = t, 1 / fps
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode())


def read_facts(path: Path) -> VideoFacts:
    """Count the packets and read the header; no frame is decoded but the first, to know its format.

    Raises:
        TruncatedError: part of the file is missing, wherever it was cut.
        OSError, av.FFmpegError, IndexError: not there, or not a video.
    """
    _require_whole(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        return VideoFacts(
            frames=sum(packet.size > 0 for packet in container.demux(stream)),
            width=context.width,
            height=context.height,
            codec=context.name,
            full_range=context.color_range == FULL_RANGE,
            tags=_tags(container),
        )


def read_tags(path: Path) -> dict[str, str]:
    """The container's tags by their names in capitals.

    Raises:
        OSError, av.FFmpegError: not there, or not a video.
    """
    with av.open(str(path)) as container:
        return _tags(container)


def _tags(container: av.container.InputContainer) -> dict[str, str]:
    return {name.upper(): value for name, value in container.metadata.items()}


def _require_whole(path: Path) -> None:
    """Compare the file's size with the one in its Matroska header; packets alone do not show a lost end."""
    with path.open("rb") as file:
        head = file.read(256)
    start = head.find(_SEGMENT)
    if not head.startswith(b"\x1a\x45\xdf\xa3") or start < 0:
        raise TruncatedError(f"{path} has no Matroska header")
    first = start + len(_SEGMENT)
    length = int.from_bytes(head[first : first + 8], "big") - (1 << 56)  # FFmpeg writes 8 bytes, marked 01
    expected, size = first + 8 + length, path.stat().st_size
    if expected != size:
        raise TruncatedError(f"{path} has {size} bytes of {expected}")


def _add_stream(
    container: av.container.OutputContainer, codec: Codec, fps: Fraction, shape: tuple[int, ...]
) -> av.VideoStream:
    options = {"keyint_min": str(codec.key_frame_every)} | dict(codec.options)
    stream = container.add_stream(codec.encoder, rate=fps, options=options)
    stream.height, stream.width = shape
    stream.pix_fmt = codec.pixel_format
    context = stream.codec_context
    context.color_range = FULL_RANGE
    context.thread_count = 1  # videos are encoded side by side
    context.gop_size = codec.key_frame_every
    context.bit_rate = 0  # so that the options alone decide
    try:
        context.open()
    except av.FFmpegError as error:
        raise RuntimeError(
            f"the encoder {codec.encoder} does not open ({error.strerror}); if this process uses decord, "
            "import dear_core.depth.store before it"
        ) from error
    return stream


def _frame(levels_HW: np.ndarray, codec: Codec) -> av.VideoFrame:
    height, width = levels_HW.shape
    frame = av.VideoFrame(width, height, codec.pixel_format)
    for number, plane in enumerate(frame.planes):
        lines = np.frombuffer(plane, np.uint8 if codec.bits == 8 else np.uint16).reshape(plane.height, -1)
        if number == 0:
            lines[:, :width] = levels_HW
        else:
            lines[:] = 1 << (codec.bits - 1)  # neither blue nor red
    frame.color_range = FULL_RANGE
    return frame
