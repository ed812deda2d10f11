import numpy as np
import pytest

from dear_core.data import decode
from dear_core.data.manifest import read_ssv2
from dear_core.errors import InputError


@pytest.fixture
def video(tiny_root):
    return read_ssv2(tiny_root).splits["train"][0].path


def test_frames_come_by_index(video):
    reader = decode.open_video(video)
    frames = decode.read_frames(reader, video, np.array([0, 5, 5]))
    assert frames.shape[0] == 3 and frames.shape[1] == 240 and frames.shape[3] == 3
    assert (frames[1] == frames[2]).all() and (frames[0] != frames[1]).any()


def test_the_shorter_side_is_resized(video):
    frames = decode.read_frames(decode.open_video(video), video, np.array([0]))
    small = decode.resize_short_side(frames, 72)
    assert min(small.shape[1:3]) == 72 and small.dtype == np.uint8
    assert abs(small.shape[2] / small.shape[1] - frames.shape[2] / frames.shape[1]) < 0.02
    assert abs(small.mean() - frames.mean()) < 2


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_video_is_named(video, tmp_path, share):
    content = video.read_bytes()
    short = tmp_path / "short.webm"
    short.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"short\.webm: (truncated|not readable|damaged)"):
        reader = decode.open_video(short)
        decode.read_frames(reader, short, np.arange(len(reader)))


def test_other_files_are_no_videos(tmp_path):
    text = tmp_path / "notes.webm"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"notes\.webm: not readable as a video"):
        decode.open_video(text)
    with pytest.raises(InputError, match=r"gone\.webm: no such video"):
        decode.open_video(tmp_path / "gone.webm")
