"""Frames from video files and from folders of frame files; the only file that imports decord.

A file that cannot be read, or that ends before its header says, raises ``InputError`` with its path; it is
never swapped for another one.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Protocol

import av
import decord
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dear_core.errors import InputError

_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")  # Matroska's names for its parts
FOLDER_RATE = Fraction(30)  # frames a second of a folder of frames, which has no clock


class Reader(Protocol):
    """An opened source of frames."""

    path: Path

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Frames (T,H,W,3) uint8 at ``indices`` (T,), in any order, also repeated."""
        ...


class VideoFile:
    """An indexed reader of a whole video file.

    Raises:
        InputError: no such file, no video in it, or cut off, with fewer frames than its header's duration.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such video")
        self.path = path
        expected = None if is_whole(path) else _rate_and_frames(path)[1]
        try:
            decord.logging.set_level(decord.logging.QUIET)  # what is wrong is said below, once
            self._reader = decord.VideoReader(str(path), num_threads=1)
        except (decord.DECORDError, RuntimeError):
            _rate_and_frames(path)  # where it knows better what is wrong
            raise InputError(f"{path}: not readable as a video; replace the file") from None
        if expected is not None and len(self._reader) < expected - 1:
            raise InputError(
                f"{path}: truncated, {len(self._reader)} of {expected} frames are there; replace the file"
            )

    def __len__(self) -> int:
        return len(self._reader)

    @functools.cached_property
    def rate(self) -> Fraction:
        return _rate_and_frames(self.path)[0]

    def read(self, indices: np.ndarray) -> np.ndarray:
        wanted, places = np.unique(indices, return_inverse=True)  # decoded forwards, each once
        try:
            frames = self._reader.get_batch(wanted).asnumpy()
        except (decord.DECORDError, RuntimeError):
            raise InputError(
                f"{self.path}: damaged, frames up to {int(wanted[-1])} do not decode; replace the file"
            ) from None
        return frames if len(wanted) == len(indices) and (places[1:] > places[:-1]).all() else frames[places]


class FrameFolder:
    """A folder with one image file a frame, named by ``pattern`` with the frame's number from 1.

    Raises:
        InputError: no such folder, or no frame in it. A missing or damaged frame is found when it is read.
    """

    rate = FOLDER_RATE

    def __init__(self, path: Path, pattern: str, frames: int | None = None) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder of frames")
        self.path, self.pattern = path, pattern
        self._length = frames if frames is not None else _count_frames(path, pattern)
        if not self._length:
            raise InputError(f"{path}: no frame named like {pattern.format(1)}")

    def __len__(self) -> int:
        return self._length

    def read(self, indices: np.ndarray) -> np.ndarray:
        wanted, places = np.unique(indices, return_inverse=True)
        frames = [self._load(self.path / self.pattern.format(int(index) + 1)) for index in wanted]
        if len({frame.shape for frame in frames}) > 1:
            raise InputError(f"{self.path}: its frames differ in size; make them alike")
        return np.stack(frames)[places]

    def _load(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError):
            raise InputError(f"{path}: not readable as an image; replace the file") from None


def open_frames(path: Path, pattern: str | None = None, frames: int | None = None) -> Reader:
    """A video file, or with ``pattern`` a folder of frames; ``frames`` is its length where that is known."""
    return VideoFile(path) if pattern is None else FrameFolder(path, pattern, frames)


def resize_short_side(frames_THWC: np.ndarray, short_side: int) -> np.ndarray:
    """Antialiased bilinear resize of uint8 frames so that the shorter side is ``short_side`` pixels."""
    height, width = frames_THWC.shape[1:3]
    if min(height, width) == short_side:
        return frames_THWC
    scale = short_side / min(height, width)
    size = [max(short_side, round(height * scale)), max(short_side, round(width * scale))]
    frames_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    resized = F.resize(frames_TCHW, size, antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def _rate_and_frames(path: Path) -> tuple[Fraction, int | None]:
    """Frames a second, and the frames that the container's duration promises, or None where it gives none."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            if container.duration is None or not rate:
                return rate or FOLDER_RATE, None
            return rate, int(container.duration / av.time_base * float(rate))
    except IndexError:
        raise InputError(f"{path}: holds no video, only sound or pictures; give a video file") from None
    except av.FFmpegError:
        raise InputError(f"{path}: not readable as a video; replace the file") from None


def is_whole(path: Path) -> bool:
    """Whether the file is as long as it says: Matroska, WebM and MP4, by their outermost parts.

    Why: only a file that was cut need have its frames held against its duration, and to learn the duration
    it is opened a second time, which costs a millisecond or more. False also where nothing is known.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(256)
        if not head.startswith(_EBML):
            return _mp4_is_whole(file, size)
    segment = _matroska_end(head, 0)
    return head[segment : segment + 4] == _SEGMENT and _matroska_end(head, segment) == size


def _matroska_end(head: bytes, start: int) -> int:
    """Where an element ends that starts at ``start`` with an ID of four bytes; 0 if that is not known."""
    if len(head) < start + 12:
        return 0
    width = 9 - head[start + 4].bit_length()  # of the length, by its first set bit, which is no part of it
    first = start + 4 + width
    length = int.from_bytes(head[start + 4 : first], "big") - (1 << 7 * width)
    unknown = (1 << 7 * width) - 1
    return 0 if width == 9 or length == unknown else first + length


def _mp4_is_whole(file: BinaryIO, size: int) -> bool:
    at, kinds = 0, [b""]
    while at + 16 <= size and len(kinds) < 64:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        if length < 8 or (at == 0 and kind != b"ftyp"):
            return False
        at, kinds = at + length, [*kinds, kind]
    return at == size and b"moov" in kinds and b"moof" not in kinds  # moof: one of many pieces


@functools.lru_cache(maxsize=2048)
def _count_frames(folder: Path, pattern: str) -> int:
    """Files of a folder that are named as ``pattern`` names them."""
    suffix, length = Path(pattern).suffix, len(pattern.format(1))
    names = {path.name for path in folder.iterdir() if path.suffix == suffix}
    if not any(len(name) == length for name in names):
        return 0
    count = 0
    while pattern.format(count + 1) in names:
        count += 1
    return count
