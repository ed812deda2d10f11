import json
import re

import pytest

from dear_core.config import DataConfig
from dear_core.data import formats
from dear_core.data.manifest import Clip
from dear_core.errors import InputError

LABELS = {
    "Pulling something from left to right": "1",
    "Pulling something onto something": "0",
    "Lifting up one end of something, then letting it drop down": "2",
}
TRAIN = [
    {
        "id": "78687",
        "label": "pulling cup from left to right",
        "template": "Pulling [something] from left to right",
        "placeholders": ["cup"],
    },
    {
        "id": "42326",
        "label": "lifting up one end of box, then letting it drop down",
        "template": "Lifting up one end of [something], then letting it drop down",
        "placeholders": ["box"],
    },
]
VALIDATION = [{"id": "74225", "template": "Pulling [something] onto [something]"}]
TEST = [{"id": "1420"}, {"id": "166429"}]


@pytest.fixture
def root(tmp_path):
    contents = {"labels": LABELS, "train": TRAIN, "validation": VALIDATION, "test": TEST}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def read(root, **keys):
    return formats.read(DataConfig(format="ssv2", root=str(root), **keys))


def refused(root, message, **keys):
    with pytest.raises(InputError) as error:
        read(root, **keys)
    assert str(error.value) == message


def test_what_is_distributed_is_read(root):
    manifest = read(root)
    assert manifest.heads == {
        "label": (
            "Pulling something onto something",
            "Pulling something from left to right",
            "Lifting up one end of something, then letting it drop down",
        )
    }
    videos = root / "videos"
    assert manifest.splits["train"] == (
        Clip("78687", videos / "78687.webm", (1,), source="78687"),
        Clip("42326", videos / "42326.webm", (2,), source="42326"),
    )
    assert manifest.splits["validation"] == (Clip("74225", videos / "74225.webm", (0,), source="74225"),)
    assert manifest.frame_pattern is None


def test_a_test_split_without_templates_has_no_labels(root):
    assert [(clip.id, clip.labels) for clip in read(root).splits["test"]] == [
        ("1420", None),
        ("166429", None),
    ]


def test_a_test_split_with_templates_has_labels_and_is_optional(root):
    (root / "test.json").write_text(json.dumps(TRAIN))
    assert [clip.labels for clip in read(root).splits["test"]] == [(1,), (2,)]
    (root / "test.json").write_text(json.dumps([*TRAIN, {"id": "3"}]))
    refused(root, f"{root}/test.json: entry 3 should be an object with id and template")
    (root / "test.json").unlink()
    assert list(read(root).splits) == ["train", "validation"]


def test_the_longer_file_names_and_the_distributed_folder(root):
    expected = read(root)
    for name in ("labels", "train", "validation", "test"):
        (root / f"{name}.json").rename(root / f"something-something-v2-{name}.json")
    (root / "20bn-something-something-v2").mkdir()
    found = read(root)
    assert found.heads == expected.heads
    assert found.splits["train"][0].path == root / "20bn-something-something-v2" / "78687.webm"
    assert [clip.labels for clip in found.splits["train"]] == [(1,), (2,)]


def test_annotations_and_videos_elsewhere(root, tmp_path_factory):
    labels = tmp_path_factory.mktemp("labels")
    for path in root.glob("*.json"):
        path.rename(labels / path.name)
    found = read(root, annotations=str(labels), videos="/data/webm")
    assert str(found.splits["train"][0].path) == "/data/webm/78687.webm"
    assert found.root == root


def test_a_missing_folder(root, tmp_path):
    nowhere = tmp_path / "nowhere"
    holds = "is no folder; it should hold labels.json, train.json, validation.json and videos/"
    refused(nowhere, f"data.root: {nowhere} {holds}")
    refused(root, f"data.annotations: {nowhere} {holds}", annotations=str(nowhere))


def test_a_missing_annotation_file(root):
    (root / "validation.json").unlink()
    refused(root, f"data.root: {root} has no validation.json (nor something-something-v2-validation.json)")


def test_two_files_for_one_split(root):
    (root / "something-something-v2-train.json").write_text("[]")
    refused(
        root,
        f"data.root: {root} has train.json and something-something-v2-train.json; only one of them can be "
        "meant, so move the others away",
    )


def test_an_unknown_template(root):
    (root / "train.json").write_text(json.dumps([*TRAIN, {"id": "3", "template": "Juggling [something]"}]))
    refused(
        root, f"{root}/train.json: entry 3 has template 'Juggling something', which labels.json does not have"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train", "[{", "no valid JSON (Expecting property name"),
        ("train", '"text"', "should be a JSON list"),
        ("train", "[]", "names no clip; a split needs at least one"),
        ("train", '[{"id": "1"}]', "entry 1 should be an object with id and template"),
        ("train", '[{"id": ["1"], "template": "x"}]', "entry 1 should be an object with id and template"),
        ("train", json.dumps([TRAIN[0], TRAIN[0]]), "names 78687 2 times; name each clip once"),
        ("labels", "[]", "should be a JSON object"),
        ("labels", '{"Opening something": "first"}', "should map each template to its number"),
        ("labels", '{"Opening something": "1"}', "the numbers should be 0 to 0, each once"),
        ("labels", "{}", "names no class"),
    ],
)
def test_a_file_that_is_not_of_the_form(root, name, content, message):
    (root / f"{name}.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{root}/{name}.json: {message}")):
        read(root)


def test_a_file_that_is_not_text(root):
    (root / "train.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"train\.json: cannot be read as UTF-8 text"):
        read(root)
