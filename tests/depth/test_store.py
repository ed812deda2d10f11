"""The depth store: what is written is read back, what does not fit is refused, what is wrong is found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dear_core.data.scene import render_clip
from dear_core.depth.store import DepthStore, StoreInfo, even_size
from dear_core.errors import InputError

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


@pytest.mark.parametrize(
    ("codec", "decibel", "largest"), [("vp9-crf10", 53, 0.06), ("ffv1", 58, 0.5 / 255 + 1e-6)]
)
def test_rendered_depth_comes_back_on_its_own_scale(tmp_path: Path, codec, decibel, largest) -> None:
    _, depth_THW, fps = render_clip(0, 3, 5)
    store = DepthStore.create(tmp_path, replace(INFO, codec=codec))
    store.write("7", depth_THW, fps)
    low, high = store.scale("7")
    read_THWC = _read(store.path("7"))
    assert read_THWC.shape == (*depth_THW.shape, 3)
    error_THW = (low + (high - low) * (read_THWC[..., 0] / 255) - depth_THW) / (high - low)
    assert -10 * np.log10(np.mean(error_THW**2)) > decibel
    assert np.abs(error_THW).max() < largest


def test_one_scale_for_the_whole_video(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    ramp_THW = _ramp()
    store.write("a", ramp_THW, 12)
    assert store.scale("a") == (float(ramp_THW.min()), float(ramp_THW.max()))
    read_THW = _read(store.path("a"))[..., 0].astype(float)
    assert read_THW[0].max() == pytest.approx(255 * 0.25, abs=3)
    assert read_THW[-1].max() == pytest.approx(255, abs=3)


def test_percentiles_keep_an_outlier_from_flattening_the_rest(tmp_path: Path) -> None:
    depth_THW = _ramp()
    depth_THW[3, 7, 9] = 1e6
    read = {}
    for name in ("video-minmax", "video-percentile"):
        store = DepthStore.create(tmp_path / name, replace(INFO, normalisation=name, codec="ffv1"))
        store.write("a", depth_THW, 12)
        read[name] = _read(store.path("a"))[..., 0]
    assert store.scale("a") == pytest.approx(np.percentile(depth_THW, (0.5, 99.5)), rel=1e-6)
    assert len(np.unique(read["video-minmax"])) == 2
    assert len(np.unique(read["video-percentile"])) > 200 and read["video-percentile"][3, 7, 9] == 255


def test_every_frame_is_kept_in_order_at_the_given_rate(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    store.write("a", np.asarray(_ramp(61), np.float16), Fraction(30000, 1001))
    brightest_T = _read(store.path("a"))[..., 0].max(axis=(1, 2)).astype(int)
    assert len(brightest_T) == 61
    assert (np.diff(brightest_T) >= -3).all()
    assert brightest_T[-1] - brightest_T[0] > 150
    with av.open(str(store.path("a"))) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


def test_names_with_folders(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    for name in ("P01/P01_01", "a b/c/d.e", "9"):
        store.write(name, _ramp(2), 12)
    assert store.path("P01/P01_01") == tmp_path / "P01" / "P01_01.webm"
    (tmp_path / "P01" / ".left-behind.webm").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.webm").write_bytes(b"")
    assert store.ids() == {"P01/P01_01", "a b/c/d.e", "9"}
    assert store.verify(dict.fromkeys(store.ids(), 2)) == []


@pytest.mark.parametrize(
    "bad", ["", "/a", "a/", "a//b", "../x", "a/../b", "./a", ".a", "a/.b", "a\\b", "a\0"]
)
def test_a_name_that_leaves_the_store_or_hides_is_refused(tmp_path: Path, bad: str) -> None:
    store = DepthStore.create(tmp_path, INFO)
    with pytest.raises(InputError, match="cannot name a depth video"):
        store.path(bad)


def test_open_returns_what_create_wrote(tmp_path: Path) -> None:
    info = StoreInfo("Intel/dpt-hybrid-midas", 240, "video-percentile", "ffv1", "3fa9")
    assert DepthStore.create(tmp_path / "new" / "store", info).path("1").suffix == ".mkv"
    assert DepthStore.open(tmp_path / "new" / "store").info == info
    assert DepthStore.create(tmp_path / "new" / "store", info).info == info
    assert [p.name for p in (tmp_path / "new" / "store").iterdir()] == ["store.json"]


def test_another_info_is_refused_naming_what_differs(tmp_path: Path) -> None:
    DepthStore.create(tmp_path, INFO)
    with pytest.raises(InputError) as refused:
        DepthStore.create(tmp_path, replace(INFO, model="Intel/dpt-hybrid-midas", height=240))
    assert str(refused.value) == (
        f"depth store {tmp_path} was made with model synthetic, height 120; this is model "
        "Intel/dpt-hybrid-midas, height 240; choose another folder with --out, or remove it"
    )
    others = {"weights": "3fa9", "normalisation": "video-percentile", "codec": "ffv1"}
    for name, value in others.items():
        with pytest.raises(InputError, match=f"with {name} [^,]*; this is {name} {value}; choose"):
            DepthStore.create(tmp_path, replace(INFO, **{name: value}))


def test_differences_from_what_is_expected() -> None:
    nothing = dict.fromkeys(("model", "weights", "height", "normalisation", "codec"))
    assert INFO.differences(nothing) is None
    assert INFO.differences(nothing | {"model": "synthetic", "height": 120}) is None
    assert INFO.differences(nothing | {"weights": "3fa9", "height": 240}) == (
        "was made with weights unknown, height 120; the config names weights 3fa9, height 240"
    )


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "1.webm").write_bytes(b"a source video")
    with pytest.raises(InputError, match="is no depth store and not empty"):
        DepthStore.create(tmp_path, INFO)
    with pytest.raises(InputError, match="cannot be made"):
        DepthStore.create(tmp_path / "1.webm", INFO)
    assert [p.name for p in tmp_path.iterdir()] == ["1.webm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no depth store: it has no store.json"),
        ("{", "not the description"),
        ("[1]", "not the description"),
        ('{"model": "m", "height": 120}', "gives no format"),
        (json.dumps({"format": 1, "model": "m", "height": 120, "bits": 8}), "has format 1, and this version"),
        (json.dumps({"format": 2, "model": "m"}), "not the description"),
        (json.dumps(asdict(INFO) | {"bits": 8}), "not the description"),
        (json.dumps(asdict(INFO) | {"height": 121}), "even number"),
        (json.dumps(asdict(INFO) | {"codec": "h264"}), "choose one of vp9-crf10, ffv1"),
        (json.dumps(asdict(INFO) | {"normalisation": "frame"}), "choose one of video-minmax, video-perc"),
    ],
)
def test_a_missing_or_invalid_description_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "store.json").write_text(text)
    with pytest.raises(InputError, match=message):
        DepthStore.open(tmp_path)


@pytest.mark.parametrize(
    ("depth_THW", "fps", "message"),
    [
        (np.zeros((120, 160), np.float32), 12, "has shape"),
        (np.zeros((0, 120, 160), np.float32), 12, "has shape"),
        (np.zeros((2, 120, 160), np.float32), 0, "at 0 frames a second"),
        (np.zeros((2, 120, 160), np.float32), Fraction(2001, 2), "up to 1000"),
        (np.zeros((2, 118, 160), np.float32), 12, "shorter one is 120"),
        (np.zeros((2, 120, 213), np.float32), 12, "even"),
        (np.full((2, 120, 160), np.nan, np.float32), 12, "finite"),
    ],
)
def test_depth_that_does_not_fit_is_refused(tmp_path: Path, depth_THW: np.ndarray, fps, message: str) -> None:
    store = DepthStore.create(tmp_path, INFO)
    with pytest.raises(InputError, match=message):
        store.write("a", depth_THW, fps)
    assert [p.name for p in tmp_path.iterdir()] == ["store.json"]


def test_a_failed_write_leaves_the_old_video_and_no_rest(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    store.write("a", _ramp(2), 12)
    before = store.path("a").read_bytes()
    late_THW = _ramp(30)
    late_THW[29, 3, 4] = np.inf
    with pytest.raises(InputError, match="in frame 29"):
        store.write("a", late_THW, 12)
    assert store.path("a").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.webm", "store.json"]


def test_scale_of_something_else_is_refused(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path, INFO)
    store.path("junk").write_bytes(b"junk")
    _colour_video(store.path("colour"), 2, 160, 120)
    for name in ("absent", "junk", "colour"):
        with pytest.raises(InputError, match="not a depth video"):
            store.scale(name)


def _colour_video(path: Path, frames: int, width: int, height: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12, options={"deadline": "realtime"})
        stream.width, stream.height = width, height
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
        container.mux(stream.encode())


def _spoil(store: DepthStore, name: str, change: Callable[[bytes], bytes]) -> None:
    path = store.path(name)
    path.write_bytes(change(path.read_bytes()))


def test_verify_has_a_sentence_for_each_fault(tmp_path: Path) -> None:
    store = DepthStore.create(tmp_path / "s", INFO)
    names = ["good", "short", "P1/cut", "P1/tail", "zeroed", "junk", "empty"]
    for name in names:
        store.write(name, _ramp(20), 12)
    _spoil(store, "P1/cut", lambda b: b[: len(b) // 2])
    _spoil(store, "P1/tail", lambda b: b[:-1])
    _spoil(store, "zeroed", lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2))
    _spoil(store, "junk", lambda b: bytes(len(b)))
    _spoil(store, "empty", lambda b: b"")
    _colour_video(store.path("colour"), 20, 160, 120)
    other = DepthStore.create(tmp_path / "other", replace(INFO, height=60))
    other.write("small", _ramp(20, 60, 80), 12)
    other.path("small").rename(store.path("small"))
    store.write("extra", _ramp(20), 12)
    calls: list[tuple[int, int, str]] = []
    sources = dict.fromkeys([*names, "colour", "small", "P2/absent"], 20) | {"short": 21}
    found = store.verify(sources, lambda *call: calls.append(call), threads=3)
    assert calls == [(n, 10, "checking depth") for n in range(1, 11)]
    expected = [
        r"short.webm: 20 frames of depth, but its source has 21; remove it and estimate it again$",
        r"P1/cut.webm has \d+ bytes of \d+: cut off or damaged; remove it",
        r"P1/tail.webm has \d+ bytes of \d+: cut off or damaged; remove it",
        r"zeroed.webm: \d+ frames of depth, but its source has 20; remove it",
        r"junk.webm has no Matroska header: cut off or damaged; remove it",
        r"empty.webm has no Matroska header: cut off or damaged; remove it",
        r"colour.webm: no scale, its tags DEPTH_MIN and DEPTH_MAX are missing; remove it",
        r"small.webm: 80x60, its shorter side is not 120; remove it",
        r"P2/absent.webm: missing; estimate the depth of P2/absent$",
        r"extra.webm: no source has this name; remove it$",
    ]
    for sentence, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, sentence)


def test_even_size() -> None:
    assert even_size(240, 320, 120) == (120, 160)
    assert even_size(240, 427, 120) == (120, 214)
    assert even_size(428, 240, 120) == (214, 120)
