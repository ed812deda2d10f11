"""Which frames of a video make a clip: pure index arithmetic, no files, no global random state.

Three ways (``data.sampling``): one frame of each of equal segments, frames at a fixed distance, frames spread
evenly over a window. Every index is in ``[0, length)`` whatever the length; indices never decrease, except
where a dense window is longer than the video and starts again at its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


def segment_indices(length: int, num_frames: int, place: np.ndarray | float | None = None) -> np.ndarray:
    """One frame from each of ``num_frames`` equal segments (TSN, arXiv 1608.00859).

    A video with fewer frames than segments repeats frames.

    Args:
        length: frames of the video, at least 1.
        num_frames: frames of the clip, at least 1.
        place: the place within each segment, in [0, 1): one number, or (num_frames,) drawn by the caller for
            training; without it every segment's centre.

    Returns:
        int64 array (num_frames,), never decreasing, each in ``[0, length)``.
    """
    assert length >= 1 and num_frames >= 1, (length, num_frames)
    offset = 0.5 if place is None else place
    indices = np.floor((np.arange(num_frames) + offset) * (length / num_frames)).astype(np.int64)
    return np.minimum(indices, length - 1)


def stride_indices(length: int, num_frames: int, stride: int, start: int) -> np.ndarray:
    """``num_frames`` frames from ``start`` on, ``stride`` apart; past the end, the last frame repeats."""
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), length - 1)


def dense_indices(length: int, num_frames: int, window: int, start: int) -> np.ndarray:
    """``num_frames`` frames spread over ``window`` frames from ``start`` on (Side4Video, datasets/sth.py).

    The distance is ``window // num_frames``, at least 1; past the end, the video begins again.
    """
    interval = max(1, window // num_frames)
    return (start + interval * np.arange(num_frames, dtype=np.int64)) % length


def starts(last: int, clips: int) -> list[int]:
    """Starts of ``clips`` clips, evenly from the first possible one, 0, to ``last``; one clip: the middle."""
    if clips == 1:
        return [last // 2]
    return [round(k * last / (clips - 1)) for k in range(clips)]


@dataclass(frozen=True)
class FrameSampler:
    """Frame indices of a video of any length, for training and for validation.

    Args:
        kind: segments (TSN), stride (fixed distance) or dense (a window of ``dense_window`` frames).
        num_frames: frames of a clip.
        stride: of kind stride; None: the largest with which the clip fits the video.
        dense_window: of kind dense; a window shorter than the clip counts as long as the clip.
    """

    kind: Literal["segments", "stride", "dense"]
    num_frames: int
    stride: int | None = None
    dense_window: int = 128

    def train(self, length: int, place: np.ndarray) -> np.ndarray:
        """A random clip: int64 (num_frames,).

        Args:
            length: frames of the video, at least 1.
            place: (num_frames,) uniform in [0, 1), drawn by the caller. segments: the place in each segment.
                stride, dense: the first number picks the start, every possible one alike.
        """
        if self.kind == "segments":
            return segment_indices(length, self.num_frames, place)
        return self._from(length, int(place[0] * (self._last_start(length) + 1)))

    def test(self, length: int, clips: int = 1) -> np.ndarray:
        """Clips of a video, always the same: int64 (clips, num_frames).

        segments: clip k takes the place (k + 1) / (clips + 1) in every segment, as Side4Video does; one clip
        takes the centres. stride, dense: evenly spaced starts; one clip lies in the middle.
        """
        if self.kind == "segments":
            places = [(k + 1) / (clips + 1) for k in range(clips)]
            return np.stack([segment_indices(length, self.num_frames, place) for place in places])
        return np.stack([self._from(length, start) for start in starts(self._last_start(length), clips)])

    def _stride(self, length: int) -> int:
        return self.stride or max(1, length // self.num_frames)

    def _last_start(self, length: int) -> int:
        """The last start with which the clip's window fits the video; 0 where it is longer than the video."""
        if self.kind == "stride":
            window = (self.num_frames - 1) * self._stride(length) + 1
        else:
            window = max(self.dense_window, self.num_frames)
        return max(0, length - window)

    def _from(self, length: int, start: int) -> np.ndarray:
        if self.kind == "stride":
            return stride_indices(length, self.num_frames, self._stride(length), start)
        return dense_indices(length, self.num_frames, self.dense_window, start)
