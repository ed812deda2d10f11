"""Which frames of a video make a clip: pure index arithmetic, no files, no global random state.

All indices are in ``[0, length)`` and never decrease. A video shorter than the clip repeats frames.
"""

from __future__ import annotations

import numpy as np


def segment_indices(length: int, num_frames: int, place: np.ndarray | None = None) -> np.ndarray:
    """One frame from each of ``num_frames`` equal segments (TSN, arXiv 1608.00859).

    Args:
        length: frames of the video, at least 1.
        num_frames: frames of the clip, at least 1.
        place: (num_frames,) in [0, 1), the place within each segment, drawn by the caller for training;
            without it every segment's centre.

    Returns:
        int64 array (num_frames,), never decreasing, each in ``[0, length)``.
    """
    assert length >= 1 and num_frames >= 1, (length, num_frames)
    offset = 0.5 if place is None else place
    indices = np.floor((np.arange(num_frames) + offset) * (length / num_frames)).astype(np.int64)
    return np.minimum(indices, length - 1)
