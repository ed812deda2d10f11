import pytest

from dear_core.config import DataConfig
from dear_core.data import formats
from dear_core.data.manifest import Clip
from dear_core.errors import InputError

HEADER = "id,name\n"


def write(root, **files):
    """Files of the root: ``train_txt`` is train.txt."""
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (root / f"{stem}.{suffix}").write_text(text)


def read(root, form, **keys):
    return formats.read(DataConfig(format=form, root=str(root), **keys))


def refused(root, form, message, **keys):
    with pytest.raises(InputError) as error:
        read(root, form, **keys)
    assert str(error.value) == message


def test_a_list_of_frame_folders(tmp_path):
    write(tmp_path, train_rgb_txt="78687 54 2\n42326 51 0\n", val_rgb_txt="74225 63 1\n")
    write(tmp_path, labels_csv=HEADER + "1,Attaching\n0,Approaching\n2,Bending\n")
    manifest = read(tmp_path, "list")
    assert manifest.heads == {"label": ("Approaching", "Attaching", "Bending")}
    assert manifest.frame_pattern == "img_{:05d}.jpg"
    assert manifest.splits == {
        "train": (
            Clip("78687", tmp_path / "78687", (2,), "78687", frames=54),
            Clip("42326", tmp_path / "42326", (0,), "42326", frames=51),
        ),
        "validation": (Clip("74225", tmp_path / "74225", (1,), "74225", frames=63),),
    }


def test_a_list_of_videos_whose_paths_hold_blanks(tmp_path):
    (tmp_path / "videos").mkdir()
    write(
        tmp_path,
        train_txt="riding a bike/one 2.mp4 1\n\nriding a bike/v_1.5.mp4\t0\r\n",
        val_txt="\ufeffthree.webm 3",
    )
    manifest = read(tmp_path, "list")
    assert manifest.heads == {"label": ("0", "1", "2", "3")}
    assert manifest.frame_pattern is None
    videos = tmp_path / "videos"
    assert manifest.splits["train"] == (
        Clip("riding a bike/one 2", videos / "riding a bike/one 2.mp4", (1,), "riding a bike/one 2"),
        Clip("riding a bike/v_1.5", videos / "riding a bike/v_1.5.mp4", (0,), "riding a bike/v_1.5"),
    )
    assert manifest.splits["validation"] == (Clip("three", videos / "three.webm", (3,), "three"),)


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("k400/a.mp4,1\n\nk400/b c.mp4,0\n", "k400/d.mp4,1\n"),
        ('k400/a.mp4  1\n"k400/b c.mp4" 0\n', "k400/d.mp4,1\n"),
        ('"k400/a.mp4", 1\n"k400/b c.mp4", 0\n', '"k400/d.mp4" 1'),
    ],
)
def test_a_csv_of_videos_by_comma_or_blank(tmp_path, train, validation):
    write(tmp_path, train_csv=train, val_csv=validation, classes_txt="Opening\nClosing\n")
    manifest = read(tmp_path, "csv")
    assert manifest.heads == {"label": ("Opening", "Closing")} and manifest.frame_pattern is None
    assert manifest.splits == {
        "train": (
            Clip("k400/a", tmp_path / "k400/a.mp4", (1,), "k400/a"),
            Clip("k400/b c", tmp_path / "k400/b c.mp4", (0,), "k400/b c"),
        ),
        "validation": (Clip("k400/d", tmp_path / "k400/d.mp4", (1,), "k400/d"),),
    }


def test_a_csv_whose_paths_hold_commas(tmp_path):
    write(tmp_path, train_csv='"a, b.mp4" 0\n', validation_csv='"c, d.mp4",0\n')
    manifest = read(tmp_path, "csv")
    assert [clip.id for split in manifest.splits.values() for clip in split] == ["a, b", "c, d"]


def test_a_csv_of_frame_folders(tmp_path):
    write(tmp_path, train_csv="train/1.5,40,0\n", validation_csv="val/2,41,1\n")
    manifest = read(tmp_path, "csv", frame_pattern="{:06d}.jpg", videos="/frames")
    assert manifest.frame_pattern == "{:06d}.jpg"
    clip = manifest.splits["train"][0]
    assert (clip.id, clip.source, str(clip.path)) == ("train/1.5", "train/1.5", "/frames/train/1.5")
    assert (clip.labels, clip.frames, clip.span) == ((0,), 40, None)


def test_absolute_paths_are_known_below_the_videos(tmp_path):
    (tmp_path / "videos").mkdir()
    write(tmp_path, train_csv=f"{tmp_path}/videos/x/./a.mp4,0\n", val_csv="/elsewhere/b.mp4,0\n")
    manifest = read(tmp_path, "csv")
    inside, outside = manifest.splits["train"][0], manifest.splits["validation"][0]
    assert (inside.id, inside.source, inside.path) == ("x/a", "x/a", tmp_path / "videos/x/a.mp4")
    assert (outside.source, str(outside.path)) == ("elsewhere/b", "/elsewhere/b.mp4")


@pytest.mark.parametrize(
    ("form", "train", "test", "expected"),
    [
        ("list", "a.mp4 1", "b 1.mp4\nc.mp4\n", [("b 1", None, None), ("c", None, None)]),
        ("list", "a.mp4 1", "b 1.mp4 0\n", [("b 1", None, (0,))]),
        ("list", "a 9 1", "b 8\n", [("b", 8, None)]),
        ("list", "a 9 1", "b 8 0\n", [("b", 8, (0,))]),
        ("csv", "a.mp4,1", "b.mp4\n", [("b", None, None)]),
        ("csv", "a.mp4,1", "b.mp4,0\n", [("b", None, (0,))]),
        ("csv", "a,9,1", "b,8\n", [("b", 8, None)]),
        ("csv", "a 9 1", "b 8 0\n", [("b", 8, (0,))]),
    ],
)
def test_a_test_file_may_lack_the_labels(tmp_path, form, train, test, expected):
    suffix = {"list": "txt", "csv": "csv"}[form]
    write(tmp_path, **{f"train_{suffix}": train, f"val_{suffix}": train, f"test_{suffix}": test})
    found = read(tmp_path, form).splits["test"]
    assert [(clip.id, clip.frames, clip.labels) for clip in found] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no clip; a split needs at least one"),
        ("a.mp4", ", line 1: 'a.mp4' has no label; write path and label"),
        ("a.mp4 0\nb.mp4 x", ", line 2: label 'x' should be a whole number from 0"),
        ("a.mp4 0\n\nb.mp4 -1", ", line 3: label '-1' should be a whole number from 0"),
        ("a.mp4 0\nb.mp4 1.0", ", line 2: label '1.0' should be a whole number from 0"),
        ("a.mp4 2", ", line 1: label 2 should be one of the classes 0 to 1"),
        ("a.mp4 0\na.mp4 1", ": names a 2 times; name each clip once"),
        (
            "a.mp4 0\nb 12 1",
            ", line 2: has 3 columns, but {path}, line 1 has 2; list videos (path, label) or folders of "
            "frames (path, frames, label), not both",
        ),
        (
            "a.mp4 0\na.webm 0",
            ", line 2: 'a.webm' and 'a.mp4' differ only in their suffix and would share a depth video; "
            "rename one",
        ),
        (
            "../a.mp4 0",
            ", line 1: path '../a.mp4' leads out of the videos' folder; write an absolute path, or set "
            "data.videos",
        ),
    ],
)
def test_lines_of_a_list_that_are_refused(tmp_path, text, message):
    write(tmp_path, train_txt=text, val_txt="v.mp4 0", classes_txt="Opening\nClosing")
    path = tmp_path / "train.txt"
    separator = "" if message.startswith((",", ":")) else ": "
    refused(tmp_path, "list", f"{path}{separator}{message.format(path=path)}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.mp4,0", "line 1: label 'label' should be a whole number from 0"),
        ("a.mp4,0\nb.mp4", "line 2: 'b.mp4' has no label; write path and label"),
        ("a,x,0", "line 1: frames 'x' should be a whole number from 1"),
        ("a,0,0", "line 1: frames '0' should be a whole number from 1"),
        (",0", "line 1: has no path"),
        (
            "a.mp4,0\nb,c,d.mp4,0",
            "line 2: has 4 columns where path, frames and label make 3; put a path that holds a comma in "
            "double quotes",
        ),
        (
            "a b c.mp4 0",
            "line 1: has 4 columns where path, frames and label make 3; put a path that holds blanks in "
            "double quotes",
        ),
        ('"a.mp4,0', "line 1: no valid CSV (unexpected end of data)"),
    ],
)
def test_lines_of_a_csv_that_are_refused(tmp_path, text, message):
    form = "w,1,0" if text.startswith("a,") else "v.mp4,0"
    write(tmp_path, train_csv=text, val_csv=form)
    refused(tmp_path, "csv", f"{tmp_path}/train.csv, {message}")


def test_a_test_file_with_some_labels(tmp_path):
    write(tmp_path, train_txt="a.mp4 0", val_txt="b.mp4 0", test_txt="c.mp4 0\nd.mp4")
    refused(
        tmp_path,
        "list",
        f"{tmp_path}/test.txt, line 2: has 1 column; write path and label as in the other splits, or leave "
        "the label out of every line of the file",
    )
    (tmp_path / "test.txt").write_text("c.mp4 5")
    refused(tmp_path, "list", f"{tmp_path}/test.txt, line 1: label 5 should be one of the classes 0 to 0")


def test_videos_for_training_and_folders_for_validation(tmp_path):
    write(tmp_path, train_txt="a.mp4 0", val_txt="b 9 0")
    refused(
        tmp_path,
        "list",
        f"{tmp_path}/val.txt, line 1: has 3 columns, but {tmp_path}/train.txt, line 1 has 2; list videos "
        "(path, label) or folders of frames (path, frames, label), not both",
    )


@pytest.mark.parametrize("pattern", ["img.jpg", "%06d.jpg", "img_{:05d}_{:d}.jpg", "{:x", "{frame}.jpg"])
def test_a_frame_pattern_without_a_number(tmp_path, pattern):
    write(tmp_path, train_txt="a 9 0", val_txt="b 9 0")
    message = (
        f"data.frame_pattern: '{pattern}' does not format a frame's number; write it like img_{{:05d}}.jpg"
    )
    refused(tmp_path, "list", message, frame_pattern=pattern)


def test_files_that_are_missing_or_twice(tmp_path):
    holds = "is no folder; it should hold train.txt and val.txt"
    refused(tmp_path / "no", "list", f"data.root: {tmp_path}/no {holds}")
    refused(tmp_path, "list", f"data.root: {tmp_path} has no train.txt (nor train_rgb.txt)")
    refused(tmp_path, "csv", f"data.root: {tmp_path} has no train.csv")
    write(tmp_path, train_txt="a.mp4 0")
    refused(
        tmp_path,
        "list",
        f"data.annotations: {tmp_path} has no val.txt (nor validation.txt, val_rgb.txt)",
        annotations=str(tmp_path),
    )
    write(tmp_path, val_txt="b.mp4 0", validation_txt="b.mp4 0")
    refused(
        tmp_path,
        "list",
        f"data.root: {tmp_path} has val.txt and validation.txt; only one of them can be meant, so move the "
        "others away",
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes_txt", "", ": names no class"),
        (
            "classes_txt",
            "Opening\n\nClosing",
            ", line 2: is blank; line N names class N-1, so leave none blank",
        ),
        ("classes_txt", "Up\nUp", ": classes 0 and 1 are both 'Up'; give each its own text"),
        ("labels_csv", "", ": is empty; it should have a header and a line for each entry"),
        ("labels_csv", "number,name\n0,Up", ": has no column id; its first line should name it"),
        ("labels_csv", "id,name\n0,Up\n0,Down", ", line 3: id 0 stands twice; give each class its own"),
        ("labels_csv", "id,name\n0,Up\n2,Down", ": the ids should be 0 to 1, each once"),
        ("labels_csv", "id,name\nfirst,Up", ", line 2: id 'first' should be a whole number from 0"),
        ("labels_csv", "id,name\n0,", ": class 0 has no text"),
        (
            "labels_csv",
            "id,name\n0,Up, then down",
            ", line 2: has 3 columns where the header has 2; put a text that holds a comma in double quotes",
        ),
    ],
)
def test_class_texts_that_are_refused(tmp_path, name, text, message):
    write(tmp_path, train_txt="a.mp4 0", val_txt="b.mp4 0", **{name: text})
    refused(tmp_path, "list", f"{tmp_path}/{name.replace('_', '.')}{message}")
