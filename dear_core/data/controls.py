"""Depth that is not the clip's own: the controls that tell depth from a second encoder.

``shuffled``: another clip's depth, cropped where the clip itself is, so its statistics stay and its meaning
goes. ``constant``: one value, so nothing is left but the encoder. ``time_shuffled``: the clip's own frames in
another order, so places stay and motion goes. All are pure functions of a seed.
"""

from __future__ import annotations

import numpy as np


def other_clips(count: int, seed: int) -> np.ndarray:
    """For every clip of a split the number (count,) of another one; every clip is used once.

    A random cycle through all clips so none keeps its own depth. One clip alone has
    no other, and keeps it.
    """
    rng = np.random.default_rng([seed, count, 0x0DE9])
    order = rng.permutation(count)
    others = np.empty(count, np.int64)
    others[order] = np.roll(order, 1)
    return others


def frame_order(num_frames: int, seed: int, index: int) -> np.ndarray:
    """An order (num_frames,) of a clip's frames that is not the given one; the same in every epoch."""
    assert num_frames > 1, "one frame has no order"
    rng = np.random.default_rng([seed, index, 0x71AE])
    while (order := rng.permutation(num_frames)).tolist() == list(range(num_frames)):
        pass
    return order
