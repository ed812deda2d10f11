"""Sources of frames: spans of a longer source, and the cache beside the files."""

import numpy as np
import pytest
from PIL import Image

from dear_core.data.frames import CachedSource, FileSource, Media
from dear_core.data.manifest import FrameSpan, TimeSpan
from dear_core.errors import InputError

PATTERN = "frame_{:010d}.jpg"


@pytest.fixture
def folder(tmp_path):
    """Sixty frames, two seconds: frame n (from 0) is grey 4 n."""
    path = tmp_path / "P01_01"
    path.mkdir()
    for number in range(60):
        Image.new("RGB", (32, 24), (4 * number,) * 3).save(path / PATTERN.format(number + 1), quality=100)
    return path


def greys(source, number, pick=np.arange):
    return np.rint(source.read(number, pick)[:, 0, 0, 0] / 4).astype(int).tolist()


def test_a_span_of_frames_or_of_seconds_is_read_from_its_source(folder):
    spans = (None, FrameSpan(10, 13), TimeSpan(0.5, 0.6), TimeSpan(1.99, 1.991), TimeSpan(1.9, 9.0))
    source = FileSource([Media(folder, span, PATTERN) for span in spans], channels=3)
    assert greys(source, 0) == list(range(60))
    assert greys(source, 1) == [10, 11, 12]
    assert greys(source, 1, lambda length: np.array([length - 1, 0])) == [12, 10]
    assert greys(source, 2) == [15, 16, 17]  # 30 frames a second
    assert greys(source, 3) == [59]  # shorter than a frame: one frame
    assert greys(source, 4) == [57, 58, 59]  # cut at the end of the source


@pytest.mark.parametrize("span", [FrameSpan(55, 61), TimeSpan(2.1, 3.0), FrameSpan(5, 5)])
def test_a_span_outside_its_source_is_refused(folder, span):
    with pytest.raises(InputError, match=r"P01_01: the clip"):
        FileSource([Media(folder, span, PATTERN)], channels=3).read(0, np.arange)


def test_the_cache_keeps_spans_and_the_reason_for_every_clip_it_could_not_read(folder, tmp_path):
    media = [Media(folder, FrameSpan(10, 13), PATTERN), Media(folder, FrameSpan(55, 61), PATTERN)]
    media.append(Media(folder, FrameSpan(58, 60), PATTERN))
    files = FileSource(media, channels=1, short_side=16)
    cached = CachedSource(files, tmp_path / "cache", "rgb-train")
    for number in (0, 2):
        assert (cached.read(number, np.arange) == files.read(number, np.arange)).all()
        assert cached.read(number, np.arange).shape[1:] == (16, 21, 1)
    for _ in range(2):
        with pytest.raises(InputError, match="the clip ends at frame 61, the source has 60"):
            cached.read(1, np.arange)
    again = CachedSource(files, tmp_path / "cache", "rgb-train")
    with pytest.raises(InputError, match="the clip ends at frame 61"):
        again.read(1, np.arange)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1
