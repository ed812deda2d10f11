"""The depth store: what is written is read back by decord, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from dear_core.data.scene import render_clip
from dear_core.depth.store import DepthStore, StoreInfo, even_size

INFO = StoreInfo(model="synthetic", height=120)


def _ramp(frames: int = 6, height: int = 120, width: int = 160) -> np.ndarray:
    """A slope that gets steeper over time, float32 (T, H, W), from -3 to 17."""
    slope_W = np.linspace(0, 1, width, dtype=np.float32)
    gain_T = np.linspace(0.25, 1, frames, dtype=np.float32)
    rows_H = np.ones(height, np.float32)
    return (20 * gain_T[:, None, None] * rows_H[:, None] * slope_W - 3).astype(np.float32)


def _read(path: Path) -> np.ndarray:
    import decord  # after av, whose encoder does not open once decord's libvpx is loaded

    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(len(reader))).asnumpy()


def test_rendered_depth_comes_back_above_45_db(tmp_path: Path) -> None:
    _, depth_THW, fps = render_clip(0, 3, 5)
    store = DepthStore.create(tmp_path, INFO)
    store.write("7", depth_THW, fps)
    low, high = store.scale("7")
    read_THWC = _read(store.path("7"))
    assert read_THWC.shape == (*depth_THW.shape, 3)
    assert (read_THWC == read_THWC[..., :1]).all()
    error_THW = read_THWC[..., 0] / 255 - (depth_THW - low) / (high - low)
    assert -10 * np.log10(np.mean(error_THW**2)) > 45
    assert np.abs(error_THW).max() < 0.1


def test_one_scale_for_the_whole_video(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    ramp_THW = _ramp()
    store.write("a", ramp_THW, 12)
    assert store.scale("a") == (float(ramp_THW.min()), float(ramp_THW.max()))
    read_THW = _read(store.path("a"))[..., 0].astype(float)
    assert read_THW[0].max() == pytest.approx(255 * 0.25, abs=6)
    assert read_THW[-1].max() == pytest.approx(255, abs=6)


def test_every_frame_is_kept_in_order_at_the_given_rate(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    store.write("a", _ramp(61), 12)
    brightest_T = _read(store.path("a"))[..., 0].max(axis=(1, 2)).astype(int)
    assert len(brightest_T) == 61
    assert (np.diff(brightest_T) >= -3).all()
    assert brightest_T[-1] - brightest_T[0] > 150
    with av.open(str(store.path("a"))) as container:
        assert container.streams.video[0].average_rate == 12
        assert container.streams.video[0].codec_context.name == "vp9"


def test_a_flat_map_is_stored_as_zeros(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    store.write("flat", np.full((3, 120, 160), 2.5, np.float32), 12)
    assert store.scale("flat") == (2.5, 2.5)
    assert _read(store.path("flat")).max() == 0


def test_open_returns_what_create_wrote_and_lists_the_ids(tmp_path: Path) -> None:
    DepthStore.create(tmp_path, INFO).write("9", _ramp(2), 12)
    (tmp_path / ".8-left-behind.webm").write_bytes(b"")
    store = DepthStore.open(tmp_path)
    assert store.info == INFO
    assert store.ids() == {"9"}
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["store.json"]


def test_another_info_is_refused_naming_both(tmp_path: Path) -> None:
    DepthStore.create(tmp_path, INFO)
    with pytest.raises(ValueError, match=r"synthetic.*Intel/dpt-hybrid-midas"):
        DepthStore.create(tmp_path, StoreInfo("Intel/dpt-hybrid-midas", 120))
    assert DepthStore.create(tmp_path, INFO).info == INFO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no store.json"),
        ("{", "not the description"),
        ("[1]", "not the description"),
        ('{"model": "m"}', "not the description"),
        (json.dumps({"model": "m", "height": 121}), "even number"),
        (json.dumps({"model": "m", "height": 120, "format": 2}), "knows only"),
    ],
)
def test_a_missing_or_invalid_description_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "store.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        DepthStore.open(tmp_path)


@pytest.mark.parametrize(
    ("depth_THW", "message"),
    [
        (np.zeros((120, 160), np.float32), "shape"),
        (np.zeros((0, 120, 160), np.float32), "shape"),
        (np.zeros((2, 118, 160), np.float32), "shorter one is 120"),
        (np.zeros((2, 120, 213), np.float32), "even"),
        (np.full((2, 120, 160), np.nan, np.float32), "finite"),
    ],
)
def test_depth_that_does_not_fit_is_refused(tmp_path: Path, depth_THW: np.ndarray, message: str) -> None:
    store = DepthStore.create(tmp_path, INFO)
    with pytest.raises(ValueError, match=message):
        store.write("a", depth_THW, 12)
    assert store.ids() == set()


def test_a_failed_write_leaves_the_old_video_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DepthStore.create(tmp_path, INFO)
    store.write("a", _ramp(2), 12)
    before = store.path("a").read_bytes()

    monkeypatch.setattr("dear_core.depth.store.av.open", _half_written)
    with pytest.raises(OSError, match="disk full"):
        store.write("a", _ramp(4), 12)
    assert store.path("a").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.webm", "store.json"]


def _half_written(path: str, *_: object, **__: object) -> None:
    Path(path).write_bytes(b"half")
    raise OSError("disk full")


def test_scale_of_something_else_is_refused(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    with pytest.raises(ValueError, match="not a depth video"):
        store.scale("absent")
    store.path("junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a depth video"):
        store.scale("junk")
    for bad in ("", "../x", ".hidden", "a/b"):
        with pytest.raises(ValueError, match="cannot name"):
            store.path(bad)


def test_even_size() -> None:
    assert even_size(240, 320, 120) == (120, 160)
    assert even_size(240, 427, 120) == (120, 214)
    assert even_size(428, 240, 120) == (214, 120)
