import json
import shutil

import pytest

from dear_core.data.manifest import flip_targets, read_ssv2
from dear_core.errors import InputError


@pytest.fixture
def copy(tiny_root, tmp_path):
    """Annotations of the tiny data set that a test may spoil; the videos are links."""
    root = tmp_path / "copy"
    root.mkdir()
    for name in ("labels.json", "train.json", "validation.json"):
        shutil.copy(tiny_root / name, root / name)
    (root / "videos").symlink_to(tiny_root / "videos")
    return root


def test_reads_the_form_of_something_something_v2(tiny_root):
    manifest = read_ssv2(tiny_root)
    assert len(manifest.classes) == 10 and len(manifest.splits["train"]) == 20
    entry = json.loads((tiny_root / "train.json").read_text())[3]
    clip = manifest.splits["train"][3]
    assert clip.id == entry["id"] and clip.path.is_file()
    assert manifest.classes[clip.label] == entry["template"].replace("[", "").replace("]", "")


def test_the_longer_file_names_are_read_too(copy):
    expected = read_ssv2(copy)
    for name in ("labels", "train", "validation"):
        (copy / f"{name}.json").rename(copy / f"something-something-v2-{name}.json")
    (copy / "videos").rename(copy / "20bn-something-something-v2")
    assert read_ssv2(copy).classes == expected.classes


def test_identity_follows_the_content(copy, tiny_root):
    first = read_ssv2(copy)
    assert first.identity() == read_ssv2(tiny_root).identity()
    assert first.identity("store") != first.identity()
    entries = json.loads((copy / "train.json").read_text())
    (copy / "train.json").write_text(json.dumps(entries[1:]))
    assert read_ssv2(copy).identity() != first.identity()


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"data.root: .*nowhere is no folder; it should hold labels.json"):
        read_ssv2(tmp_path / "nowhere")


def test_a_missing_annotation_file(copy):
    (copy / "validation.json").unlink()
    with pytest.raises(InputError, match=r"has no validation\.json"):
        read_ssv2(copy)


def test_an_annotation_that_names_a_missing_video(copy):
    entries = json.loads((copy / "train.json").read_text())
    entries[2]["id"] = "31337"
    (copy / "train.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"train\.json: names 31337\.webm, not found in"):
        read_ssv2(copy)


def test_an_unknown_template_and_broken_json(copy):
    entries = json.loads((copy / "train.json").read_text())
    entries[1]["template"] = "Juggling [something]"
    (copy / "train.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match="entry 1 has template 'Juggling something', not in"):
        read_ssv2(copy)
    (copy / "train.json").write_text("[{")
    with pytest.raises(InputError, match=r"train\.json: no valid JSON"):
        read_ssv2(copy)


def test_mirrored_labels_exchange_left_and_right():
    classes = (
        "Pulling something from left to right",
        "Pulling something from right to left",
        "Dropping something onto something",
        "Turning left",
    )
    assert flip_targets(classes) == (1, 0, 2, None)
