"""Codecs: what decord gives back of the grey levels, frame by frame, and what a file says of itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dear_core.depth.encoding import CODECS, REALTIME_VP9, TruncatedError, encode, read_facts

RATES = [Fraction(12), Fraction(60000, 1001), Fraction(1, 2)]
LOSSLESS_VP9 = replace(CODECS["vp9-crf10"], options=REALTIME_VP9 | {"lossless": "1"})


def _read(path: Path, indices: list[int] | None = None) -> np.ndarray:
    import decord  # after av, whose encoder does not open once decord's libvpx is loaded

    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(len(reader)) if indices is None else indices).asnumpy()


def _numbered(frames: int) -> np.ndarray:
    """Frames (T,64,64) whose halves spell their number, 15 levels a step."""
    t = np.arange(frames)
    levels_THW = np.empty((frames, 64, 64), np.uint8)
    levels_THW[:, :, :32] = (8 + 15 * (t % 16))[:, None, None]
    levels_THW[:, :, 32:] = (8 + 15 * (t // 16))[:, None, None]
    return levels_THW


def _number(frame_HWC: np.ndarray) -> int:
    low, high = frame_HWC[8:56, 8:24, 0].mean(), frame_HWC[8:56, 40:56, 0].mean()
    return round((low - 8) / 15) + 16 * round((high - 8) / 15)


@pytest.mark.parametrize("codec", [CODECS["ffv1"], LOSSLESS_VP9], ids=["ffv1", "vp9 without loss"])
def test_all_256_levels_come_back_to_the_bit_in_three_channels(tmp_path: Path, codec):
    """Full range is what decord reads right in a grey format and in 4:2:0; limited range would give 220."""
    rng = np.random.default_rng(0)
    levels_THW = np.stack([rng.permutation(256 * 64).astype(np.uint8).reshape(64, 256) for _ in range(15)])
    path = tmp_path / f"a{codec.suffix}"
    encode(path, levels_THW, codec, Fraction(12), {})
    read_THWC = _read(path)
    assert len(np.unique(read_THWC)) == 256
    assert (read_THWC == levels_THW[..., None]).all()


@pytest.mark.parametrize("name", CODECS)
def test_smooth_levels_come_back_nearly(tmp_path: Path, name):
    ramp_HW = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    path = tmp_path / f"a{CODECS[name].suffix}"
    encode(path, [np.roll(ramp_HW, t, 1) for t in range(15)], CODECS[name], Fraction(12), {})
    read_THWC = _read(path).astype(int)
    assert np.abs(read_THWC[0, :, :, 0] - ramp_HW).max() <= (0 if name == "ffv1" else 8)
    assert (read_THWC == read_THWC[..., :1]).all()
    assert read_THWC.min() == 0 and read_THWC.max() == 255


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_each_frame_is_found_by_its_index(tmp_path: Path, name, rate):
    path, frames = tmp_path / f"a{CODECS[name].suffix}", 61
    encode(path, _numbered(frames), CODECS[name], rate, {})
    assert [_number(frame) for frame in _read(path)] == list(range(frames))
    assert [_number(_read(path, [t])[0]) for t in range(frames)] == list(range(frames))
    rng = np.random.default_rng(0)
    for _ in range(10):
        wanted = sorted(rng.choice(frames, 8, replace=False).tolist())
        assert [_number(frame) for frame in _read(path, wanted)] == wanted
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(float(rate), rel=1e-5)
        keys = [t for t, packet in enumerate(container.demux(stream)) if packet.is_keyframe]
    assert keys == list(range(0, frames, CODECS[name].key_frame_every))


@pytest.mark.parametrize(("name", "format_name"), [("vp9-crf10", "vp9"), ("ffv1", "ffv1")])
def test_a_file_says_what_it_is_until_a_byte_is_missing(tmp_path: Path, name, format_name):
    path = tmp_path / f"a{CODECS[name].suffix}"
    encode(path, _numbered(13), CODECS[name], Fraction(12), {"DEPTH_MIN": "0.5"})
    facts = read_facts(path)
    assert (facts.frames, facts.width, facts.height) == (13, 64, 64)
    assert (facts.codec, facts.full_range, facts.tags["DEPTH_MIN"]) == (format_name, True, "0.5")
    whole = path.read_bytes()
    for cut in {*range(0, len(whole), 11), *range(len(whole) - 40, len(whole))}:
        path.write_bytes(whole[:cut])
        with pytest.raises(TruncatedError):
            read_facts(path)


def test_decord_before_av_is_explained(tmp_path: Path):
    code = f"""
import decord
import numpy as np
from fractions import Fraction
from pathlib import Path
from dear_core.depth.encoding import CODECS, encode
levels = [np.zeros((64, 64), np.uint8)]
encode(Path({str(tmp_path / "a.webm")!r}), levels, CODECS["vp9-crf10"], Fraction(12), {{}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "libvpx-vp9 does not open" in done.stderr and "import dear_core.depth.store before" in done.stderr
