"""Frames from video files; the only file that imports decord.

A file that cannot be read, or that ends before its header says, raises ``InputError`` with its path; it is
never swapped for another one.
"""

from __future__ import annotations

from pathlib import Path

import av
import decord
import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from dear_core.errors import InputError


def open_video(path: Path) -> decord.VideoReader:
    """An indexed reader of the whole file; ``len()`` is its number of frames.

    Raises:
        InputError: no such file, no video in it, or fewer frames than its header's duration.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such video")
    try:
        expected = _frames_by_header(path)
        reader = decord.VideoReader(str(path), num_threads=1)
    except (av.FFmpegError, decord.DECORDError, IndexError, RuntimeError):
        raise InputError(f"{path}: not readable as a video; replace the file") from None
    if expected is not None and len(reader) < expected - 1:
        raise InputError(f"{path}: truncated, {len(reader)} of {expected} frames are there; replace the file")
    return reader


def read_frames(reader: decord.VideoReader, path: Path, indices: np.ndarray) -> np.ndarray:
    """Frames (T,H,W,3) uint8 at ``indices``; ``path`` is named if decoding fails."""
    try:
        return reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError):
        raise InputError(
            f"{path}: damaged, frames up to {int(indices.max())} do not decode; replace the file"
        ) from None


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


def _frames_by_header(path: Path) -> int | None:
    """Frames that the container's duration promises, or None where it gives none."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if container.duration is None or not stream.average_rate:
            return None
        return int(container.duration / av.time_base * float(stream.average_rate))
