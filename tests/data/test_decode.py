import wave
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dear_core import presets
from dear_core.data import decode, formats
from dear_core.errors import InputError


@pytest.fixture
def video(tiny_root):
    data = presets.demo().data.model_copy(update={"root": str(tiny_root)})
    return formats.read(data).splits["train"][0].path


@pytest.fixture
def folder(tmp_path):
    """Five frames whose grey is ten times their number from 1."""
    path = tmp_path / "clip"
    path.mkdir()
    for number in range(1, 6):
        Image.new("RGB", (16, 12), (10 * number,) * 3).save(path / f"img_{number:05d}.png")
    return path


PATTERN = "img_{:05d}.png"


def test_frames_come_by_index_in_any_order(video):
    reader = decode.open_frames(video)
    frames = reader.read(np.array([5, 0, 5]))
    assert frames.shape[0] == 3 and frames.shape[1] == 240 and frames.shape[3] == 3
    assert (frames[0] == frames[2]).all() and (frames[0] != frames[1]).any()
    assert (frames[1] == decode.open_frames(video).read(np.array([0]))[0]).all()
    assert reader.rate == Fraction(12)


def test_the_shorter_side_is_resized(video):
    frames = decode.open_frames(video).read(np.array([0]))
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
        reader = decode.open_frames(short)
        reader.read(np.arange(len(reader)))


def test_a_file_is_whole_only_where_it_has_the_length_that_it_says(video, tmp_path):
    assert decode.is_whole(video)
    short = tmp_path / "short.webm"
    for length in (0, 3, 11, 40, 5000, video.stat().st_size - 1):
        short.write_bytes(video.read_bytes()[:length])
        assert not decode.is_whole(short), length


def test_other_files_are_no_videos(tmp_path):
    text = tmp_path / "notes.webm"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"notes\.webm: not readable as a video"):
        decode.open_frames(text)
    with pytest.raises(InputError, match=r"gone\.webm: no such video"):
        decode.open_frames(tmp_path / "gone.webm")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0" * 8000)
    with pytest.raises(InputError, match=r"sound\.wav: holds no video"):
        decode.open_frames(tmp_path / "sound.wav")


def test_a_folder_of_frames_is_a_video_whose_first_frame_is_number_1(folder):
    reader = decode.open_frames(folder, PATTERN)
    assert len(reader) == 5
    frames = reader.read(np.array([4, 0, 0]))
    assert frames.shape == (3, 12, 16, 3) and frames[:, 0, 0, 0].tolist() == [50, 10, 10]
    assert len(decode.open_frames(folder, PATTERN, frames=3)) == 3  # the annotation's word


def test_what_is_wrong_with_a_folder_of_frames_is_named(folder):
    with pytest.raises(InputError, match="nowhere: no such folder of frames"):
        decode.open_frames(folder / "nowhere", PATTERN)
    with pytest.raises(InputError, match=r"clip: no frame named like frame_1\.png"):
        decode.open_frames(folder, "frame_{:d}.png")
    reader = decode.open_frames(folder, PATTERN, frames=9)
    with pytest.raises(InputError, match=r"img_00007\.png: not readable as an image"):
        reader.read(np.array([0, 6]))
    (folder / "img_00002.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"img_00002\.png: not readable as an image"):
        reader.read(np.arange(3))
    Image.new("RGB", (8, 8)).save(folder / "img_00002.png")
    with pytest.raises(InputError, match="clip: its frames differ in size"):
        reader.read(np.arange(3))
