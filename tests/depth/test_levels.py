"""Grey levels of a video: one scale for all its frames, taken frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dear_core.depth import levels
from dear_core.depth.levels import to_levels, video_scale
from dear_core.errors import InputError


class OneFrameAtATime:
    """Frames that can only be had singly, and a record of which were asked for."""

    def __init__(self, frames_THW: np.ndarray) -> None:
        self.shape, self._frames, self.asked = frames_THW.shape, frames_THW, []

    def __getitem__(self, t: int) -> np.ndarray:
        assert isinstance(t, int), t
        self.asked.append(t)
        return self._frames[t]


def _draw(frames: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (frames, height, width)).astype(np.float32)


def test_minmax_and_levels_take_every_frame_once_each():
    frames = OneFrameAtATime(_draw(5))
    low, high = video_scale(frames, "video-minmax")
    whole = _draw(5)
    assert (low, high) == (float(whole.min()), float(whole.max()))
    got = np.stack(list(to_levels(frames, low, high, "a")))
    assert got.dtype == np.uint8 and got.min() == 0 and got.max() == 255
    assert np.abs(got / 255 - (whole - low) / (high - low)).max() <= 0.5 / 255 + 1e-6
    assert frames.asked == [0, 1, 2, 3, 4] * 2


def test_percentiles_do_not_see_outliers_and_clip_them():
    frames_THW = np.tile(np.linspace(0, 1, 1000, dtype=np.float32).reshape(1, 20, 50), (4, 1, 1))
    frames_THW[2, 0, 0], frames_THW[3, 0, 1] = 500, -500
    assert video_scale(frames_THW, "video-minmax") == (-500, 500)
    low, high = video_scale(frames_THW, "video-percentile")
    assert low == pytest.approx(0.005, abs=1e-3) and high == pytest.approx(0.995, abs=1e-3)
    got = np.stack(list(to_levels(frames_THW, low, high, "a")))
    assert got[2, 0, 0] == 255 and got[3, 0, 1] == 0
    assert got[0, 10, 10] == round(255 * (510 / 999 - low) / (high - low))


def test_percentiles_of_a_long_video_take_evenly_spaced_frames():
    frames = OneFrameAtATime(_draw(1000))
    low, high = video_scale(frames, "video-percentile")
    assert frames.asked == list(range(0, 1000, 4)) and len(frames.asked) <= levels.SAMPLED_FRAMES
    assert (low, high) == tuple(np.percentile(_draw(1000)[::4], (0.5, 99.5)))


@pytest.mark.parametrize("normalisation", levels.NORMALISATIONS)
def test_half_precision_and_memory_maps_give_what_single_precision_gives(tmp_path: Path, normalisation):
    whole = (_draw(6) * 9000).clip(-65000, 65000).astype(np.float16)
    whole[0, 0, 0], whole[5, 5, 7] = -65000, 65000  # their difference is no half
    mapped = np.memmap(tmp_path / "depth", np.float16, "w+", shape=whole.shape)
    mapped[:] = whole
    scales = [video_scale(frames, normalisation) for frames in (whole, mapped, whole.astype(np.float32))]
    assert scales[0] == scales[1] == scales[2]
    got = [np.stack(list(to_levels(frames, *scales[0], "a"))) for frames in (mapped, whole.astype("f4"))]
    assert (got[0] == got[1]).all() and got[0].min() == 0 and got[0].max() == 255


@pytest.mark.parametrize("normalisation", levels.NORMALISATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_its_frame(normalisation, value):
    frames_THW = _draw(3)
    frames_THW[1, 2, 3] = value
    low, high = video_scale(frames_THW, normalisation)
    with pytest.raises(InputError, match="depth of P01/a has values that are not finite numbers in frame 1"):
        list(to_levels(frames_THW, low, high, "P01/a"))


def test_one_value_everywhere_is_level_0():
    flat_THW = np.full((2, 4, 4), 2.5, np.float32)
    for normalisation in levels.NORMALISATIONS:
        assert video_scale(flat_THW, normalisation) == (2.5, 2.5)
    assert not np.stack(list(to_levels(flat_THW, 2.5, 2.5, "a"))).any()
