"""Frames from video files and from folders of frame files; the only file that imports decord.

A file that cannot be read, or that ends before its header says, raises ``InputError`` with its path; it is
never swapped for another one.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import decord
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dear_core.errors import InputError

FOLDER_RATE = Fraction(30)  # frames a second of a folder of frames, which has no clock


class Reader(Protocol):
    """An opened source of frames."""

    path: Path
    rate: Fraction
    """Frames a second."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Frames (T,H,W,3) uint8 at ``indices`` (T,), in any order, also repeated."""
        ...


class VideoFile:
    """An indexed reader of a whole video file.

    Raises:
        InputError: no such file, no video in it, or fewer frames than its header's duration.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such video")
        self.path = path
        try:
            self.rate, expected = _rate_and_frames(path)
            self._reader = decord.VideoReader(str(path), num_threads=1)
        except IndexError:
            raise InputError(f"{path}: holds no video, only sound or pictures; give a video file") from None
        except (av.FFmpegError, decord.DECORDError, RuntimeError):
            raise InputError(f"{path}: not readable as a video; replace the file") from None
        if expected is not None and len(self._reader) < expected - 1:
            raise InputError(
                f"{path}: truncated, {len(self._reader)} of {expected} frames are there; replace the file"
            )

    def __len__(self) -> int:
        return len(self._reader)

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
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        if container.duration is None or not rate:
            return rate or FOLDER_RATE, None
        return rate, int(container.duration / av.time_base * float(rate))


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
