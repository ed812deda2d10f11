"""Inverse depth as grey levels: one scale a video, and frames of 0 to 255 by it.

Why: scaled frame by frame, a thing that comes nearer would look the same in every frame. Frames are taken one
at a time, so that an hour of video needs the memory of one frame (percentiles: of at most 256).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from dear_core.errors import InputError

NORMALISATIONS: Mapping[str, tuple[float, float]] = {
    "video-minmax": (0.0, 100.0),
    "video-percentile": (0.5, 99.5),
}
"""The percentiles of a video's values that become level 0 and level 255; what lies beyond is clipped."""
SAMPLED_FRAMES = 256  # at most, for percentiles strictly inside; evenly spaced, with all their pixels


class Frames(Protocol):
    """Anything of shape (T,H,W) that gives frame ``t`` as ``frames[t]``: an array, a memory map."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, t: int, /) -> np.ndarray: ...


def video_scale(frames: Frames, normalisation: str) -> tuple[float, float]:
    """The values that levels 0 and 255 stand for; not finite where the frames are not."""
    percentiles, total = NORMALISATIONS[normalisation], frames.shape[0]
    if percentiles == (0.0, 100.0):
        low, high = np.inf, -np.inf
        for t in range(total):
            frame_HW = np.asarray(frames[t])
            low, high = min(low, float(frame_HW.min())), max(high, float(frame_HW.max()))
        return low, high
    step = -(-total // SAMPLED_FRAMES)
    sample_THW = np.stack([_as_float(frames[t]) for t in range(0, total, step)])
    with np.errstate(invalid="ignore"):  # infinities; to_levels names their frame
        low, high = np.percentile(sample_THW, percentiles, overwrite_input=True)
    return float(low), float(high)


def to_levels(frames: Frames, low: float, high: float, name: str) -> Iterator[np.ndarray]:
    """Frames (H,W) uint8; all 0 where low is high.

    Raises:
        InputError: a value is not a finite number; says ``name`` and the frame.
    """
    gain, low = (255 / (high - low), low) if 0 < high - low < np.inf else (0.0, 0.0)
    for t in range(frames.shape[0]):
        frame_HW = _as_float(frames[t])
        if not np.isfinite(frame_HW).all():
            raise InputError(f"depth of {name} has values that are not finite numbers in frame {t}")
        yield np.clip(np.rint((frame_HW - low) * gain), 0, 255).astype(np.uint8)


def _as_float(frame_HW: np.ndarray) -> np.ndarray:
    """At least single precision; half would overflow."""
    frame_HW = np.asarray(frame_HW)
    return frame_HW.astype(np.result_type(frame_HW.dtype, np.float32), copy=False)
