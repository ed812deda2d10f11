"""Videos written again: the same frames in the same order, key frames where asked for, and nothing lost."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from dear_core.config import DataConfig
from dear_core.data import __main__ as command_line
from dear_core.data import decode, formats, transcode_set
from dear_core.data.transcode import Recipe, encode, key_frames, transcode
from dear_core.errors import InputError

FRAMES, RATE = 21, Fraction(30000, 1001)


def picture(number, height, width):
    """A smooth picture with a bright block whose place tells its number."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([60 + 80 * x / width, 60 + 80 * y / height, 90 + 0 * x], -1).astype(np.uint8)
    column = number * (width - 8) // FRAMES
    frame[8:24, column : column + 8] = (250, 220, 40)
    return frame


def write_video(path, height=48, width=64, codec="libvpx-vp9", frames=FRAMES, **colour):
    """As distributed: one key frame."""
    options = {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    with av.open(str(path), "w", format="webm" if codec == "libvpx-vp9" else "mp4") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.codec_context.gop_size = height, width, 128
        space = colour.get("space", Colorspace.ITU601)
        full = colour.get("range", ColorRange.MPEG)
        stream.codec_context.colorspace = {Colorspace.ITU601: 6, Colorspace.ITU709: 1}[space]
        stream.codec_context.color_range = int(full)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), "rgb24")
            container.mux(stream.encode(frame.reformat(None, None, "yuv420p", None, space, None, None, full)))
        container.mux(stream.encode())
    return path


def psnr(a, b):
    return 10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-2))


def frames_of(path):
    reader = decode.open_frames(path)
    return reader.read(np.arange(len(reader)))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("original") / "1.webm")


@pytest.mark.parametrize(
    ("codec", "gop"), [("mpeg4", 8), ("mpeg4", 1), ("mjpeg", 1), ("h264", 8), ("h264", 4), ("vp9", 4)]
)
def test_frames_keep_their_number_and_order_and_key_frames_come_as_asked(original, tmp_path, codec, gop):
    assert sum(key_frames(original)) == 1
    made = tmp_path / "1.webm"
    outcome = transcode(original, made, Recipe(codec, gop))
    assert outcome.failure is None and outcome.after == made.stat().st_size
    assert key_frames(made) == [number % gop == 0 for number in range(FRAMES)]
    before, reader = frames_of(original), decode.open_frames(made)
    assert len(reader) == FRAMES and reader.rate == RATE
    order = np.random.default_rng(0).permutation(FRAMES)  # as a clip is read: by index, after seeks
    for index in order:
        after = reader.read(np.array([index]))[0]
        assert psnr(before[index], after) > 32
        assert psnr(before[index], after) > max(
            psnr(before[other], after) for other in (index - 1, index - 2)
        )


@pytest.mark.parametrize("space", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("full", [ColorRange.MPEG, ColorRange.JPEG])
def test_colours_stay_whatever_the_original_says_of_them(tmp_path, space, full):
    path = write_video(tmp_path / "a.mp4", codec="libx264", frames=6, space=space, range=full)
    assert psnr(frames_of(path)[0], picture(0, 48, 64)) > 30
    for codec in ("mpeg4", "mjpeg"):
        encode(path, tmp_path / codec, Recipe(codec, 1))
        assert abs(frames_of(tmp_path / codec).mean((0, 1, 2)) - frames_of(path).mean((0, 1, 2))).max() < 1.5


def test_odd_sizes_stay_and_height_shrinks_the_shorter_side(tmp_path):
    path = write_video(tmp_path / "odd.webm", 47, 85, frames=4)
    assert transcode(path, tmp_path / "same.webm", Recipe()).failure is None
    assert frames_of(tmp_path / "same.webm").shape == (4, 47, 85, 3)
    assert "odd.webm: is 85×47, H.264 takes" in transcode(path, tmp_path / "x", Recipe("h264")).failure
    assert transcode(path, tmp_path / "small.webm", Recipe(height=24)).psnr[0] > 25
    assert frames_of(tmp_path / "small.webm").shape == (4, 24, 44, 3)
    transcode(path, tmp_path / "large.webm", Recipe(height=96))
    assert frames_of(tmp_path / "large.webm").shape == (4, 47, 85, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{n}.webm" for n in ("large", "odd", "same", "small")
    ]


def test_another_video_is_not_published(original, tmp_path, monkeypatch):
    other = write_video(tmp_path / "other.webm", frames=FRAMES - 1)
    monkeypatch.setattr(
        "dear_core.data.transcode.encode", lambda _, part, recipe: encode(other, part, recipe)
    )
    outcome = transcode(original, tmp_path / "made.webm", Recipe())
    assert "20 of its 21 frames" in outcome.failure and [p.name for p in tmp_path.iterdir()] == ["other.webm"]
    monkeypatch.undo()
    monkeypatch.setattr("dear_core.data.transcode.LEAST_PSNR", 99)
    assert "frame 0 came out as another" in transcode(original, tmp_path / "made.webm", Recipe()).failure


@pytest.fixture
def root(tmp_path):
    """Six videos in Something-Something V2's form; the third is cut off, the fifth is not there."""
    folder = tmp_path / "ssv2"
    (folder / "videos").mkdir(parents=True)
    for number in range(1, 7):
        write_video(folder / f"videos/{number}.webm", frames=10)
    cut = folder / "videos/3.webm"
    cut.write_bytes(cut.read_bytes()[:900])
    (folder / "videos/5.webm").rename(tmp_path / "5.webm")
    (folder / "labels.json").write_text('{"Doing": "0"}')
    entries = [{"id": str(number), "template": "Doing"} for number in range(1, 7)]
    (folder / "train.json").write_text(json.dumps(entries[:4]))
    (folder / "validation.json").write_text(json.dumps(entries[4:]))
    return folder


def run(root, to, *more):
    return command_line.command(
        ["transcode", "--data.root", str(root), "--to", str(to), "--workers", "1", *more]
    )


def test_what_cannot_be_written_is_named_the_rest_is_done_and_the_same_command_goes_on(
    root, tmp_path, capsys
):
    to = tmp_path / "fast"
    assert run(root, to, "--gop", "4") == 1
    told = capsys.readouterr().out
    assert (
        "3.webm: " in told and "5.webm: no such video" in told and "4 videos written, 0 were there, 2" in told
    )
    assert f"--set data.videos={to}" in told and "PSNR" in told
    assert sorted(path.name for path in to.glob("*.webm")) == ["1.webm", "2.webm", "4.webm", "6.webm"]
    times = {path.name: path.stat().st_mtime_ns for path in to.glob("*.webm")}
    whole = (tmp_path / "5.webm").read_bytes()
    (root / "videos/3.webm").write_bytes(whole)
    (root / "videos/5.webm").write_bytes(whole)
    (to / ".6.webm.1.part").write_bytes(b"left by a killed process")
    (to / "2.webm").write_bytes((to / "2.webm").read_bytes()[:-1])
    assert run(root, to, "--gop", "4") == 0
    assert "3 videos written, 3 were there, 0 failed" in capsys.readouterr().out
    assert all((to / f"{name}.webm").stat().st_mtime_ns == times[f"{name}.webm"] for name in (1, 4, 6))
    assert not list(to.glob(".*.part"))
    plain = formats.read(DataConfig(root=str(root)))
    fast = formats.read(DataConfig(root=str(root), videos=str(to)))
    assert sum(key_frames(fast.splits["validation"][0].path)) == 3
    assert fast.identity() != plain.identity()  # the run's key


@pytest.mark.slow
def test_several_processes_write_what_one_writes(root, tmp_path):
    names = transcode_set.originals(formats.read(DataConfig(root=str(root))))
    seen = []
    report = transcode_set.transcode_all(
        names, tmp_path / "to", Recipe(), 2, lambda done, total: seen.append((done, total))
    )
    assert report.made == 4 and len(report.failures) == 2 and seen[-1] == (6, 6)
    transcode(names["1.webm"], tmp_path / "one.webm", Recipe())
    assert (tmp_path / "one.webm").read_bytes() == (tmp_path / "to/1.webm").read_bytes()


def test_other_folders_and_settings_are_refused(root, tmp_path):
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        run(root, root / "videos")
    run(root, tmp_path / "fast")
    with pytest.raises(InputError, match=r"was made with .*\"gop\": 8.*choose another folder"):
        run(root, tmp_path / "fast", "--intra")
    with pytest.raises(InputError, match="mjpeg has key frames only; add --intra"):
        run(root, tmp_path / "new", "--codec", "mjpeg")
    with pytest.raises(InputError, match="--gop 0: give 1 frame or more"):
        run(root, tmp_path / "new", "--gop", "0")


def test_only_videos_below_one_folder_are_transcoded(tmp_path):
    (tmp_path / "train.txt").write_text("a.mp4 0\n/elsewhere/b.mp4 0\n")
    (tmp_path / "val.txt").write_text("c.mp4 0\n")
    with pytest.raises(InputError, match=r"/elsewhere/b\.mp4 is not below the folder of the videos"):
        transcode_set.originals(formats.read(DataConfig(root=str(tmp_path), format="list")))
    (tmp_path / "train.txt").write_text("a 9 0\n")
    (tmp_path / "val.txt").write_text("c 9 0\n")
    with pytest.raises(InputError, match="its sources are folders of frames; only video files"):
        transcode_set.originals(formats.read(DataConfig(root=str(tmp_path), format="list")))
