import pytest

from dear_core.data.manifest import Clip, FrameSpan, Manifest, TimeSpan, class_names, flip_targets, unique_ids
from dear_core.errors import InputError

# Something-Something V2's texts by class number: all that hold left, right or upright, and neighbours.
SSV2 = {
    21: "Laying something on the table on its side, not upright",
    49: "Plugging something into something",
    50: "Plugging something into something but pulling it right out as you remove your hand",
    85: "Pulling something from behind of something",
    86: "Pulling something from left to right",
    87: "Pulling something from right to left",
    88: "Pulling something onto something",
    92: "Pulling two ends of something so that it separates into two pieces",
    93: "Pushing something from left to right",
    94: "Pushing something from right to left",
    95: "Pushing something off of something",
    117: "Putting something that cannot actually stand upright upright on the table, so it falls on its side",
    119: "Putting something upright on the table",
    165: "Turning the camera downwards while filming something",
    166: "Turning the camera left while filming something",
    167: "Turning the camera right while filming something",
    168: "Turning the camera upwards while filming something",
}


@pytest.fixture
def manifest(tmp_path):
    """Three videos of 1, 2 and 3 bytes; the last is cut in two, and is also the test split's."""
    for size, name in enumerate(("a", "b", "c"), start=1):
        (tmp_path / f"{name}.mp4").write_bytes(b"x" * size)
    train = (
        Clip("a", tmp_path / "a.mp4", (0,), "a"),
        Clip("c_0", tmp_path / "c.mp4", (1,), "c", TimeSpan(0.0, 1.5)),
        Clip("c_1", tmp_path / "c.mp4", (0,), "c", TimeSpan(1.5, 2.0)),
    )
    splits = {
        "train": train,
        "validation": (Clip("b", tmp_path / "b.mp4", (1,), "b"),),
        "test": (Clip("c", tmp_path / "c.mp4", None, "c"),),
    }
    return Manifest(tmp_path, {"label": ("Opening", "Closing")}, splits)


def with_train(manifest, *train):
    return Manifest(manifest.root, manifest.heads, manifest.splits | {"train": train}, manifest.frame_pattern)


def test_identity_follows_clips_classes_and_file_sizes(manifest, tmp_path):
    first = manifest.identity()
    train = manifest.splits["train"]
    assert len(first) == 16 and with_train(manifest, *train).identity() == first
    assert with_train(manifest, *train[1:]).identity() != first
    assert with_train(manifest, Clip("a", tmp_path / "a.mp4", (1,), "a"), *train[1:]).identity() != first
    other_cut = Clip("c_1", tmp_path / "c.mp4", (0,), "c", TimeSpan(1.5, 2.1))
    assert with_train(manifest, *train[:2], other_cut).identity() != first
    assert Manifest(tmp_path, {"label": ("Opening", "Shutting")}, manifest.splits).identity() != first
    (tmp_path / "b.mp4").write_bytes(b"longer")
    assert manifest.identity() != first


def test_identity_does_not_depend_on_the_place_or_the_test_split(manifest, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("*.mp4"):
        path.rename(moved / path.name)
    splits = {
        split: tuple(
            Clip(c.id, moved / c.path.name, c.labels, c.source, c.span) for c in manifest.splits[split]
        )
        for split in ("train", "validation")
    }
    there = Manifest(moved, manifest.heads, splits).identity()
    for path in moved.glob("*.mp4"):
        path.rename(tmp_path / path.name)
    assert manifest.identity() == there


def test_identity_of_folders_of_frames_takes_the_number_of_frames(tmp_path):
    def identity(frames):
        clip = Clip("a", tmp_path / "a", (0,), "a", FrameSpan(0, 4), frames)
        splits = {"train": (clip,), "validation": (clip,)}
        return Manifest(tmp_path, {"label": ("Opening",)}, splits, "img_{:05d}.jpg").identity()

    assert identity(8) == identity(8) != identity(9)


def test_missing_files_are_found_once_and_in_order(manifest, tmp_path):
    assert manifest.missing() == []
    manifest.require_files()
    (tmp_path / "c.mp4").unlink()
    (tmp_path / "b.mp4").unlink()
    assert manifest.missing() == [tmp_path / "c.mp4", tmp_path / "b.mp4"]
    assert manifest.missing(("test",)) == [tmp_path / "c.mp4"]
    with pytest.raises(InputError) as error:
        manifest.require_files()
    assert str(error.value) == (
        f"c.mp4 and 1 more, named by the annotations of {tmp_path}, not found in {tmp_path}; add the video "
        "or remove the entry"
    )


def test_a_missing_folder_of_videos(manifest, tmp_path):
    gone = with_train(manifest, Clip("a", tmp_path / "nowhere" / "a.mp4", (0,), "a"))
    with pytest.raises(
        InputError, match=r"^a\.mp4, named by the annotations of .*, not found in .*/nowhere;"
    ):
        gone.require_files()


def test_sources_stand_once_with_their_first_clip(manifest):
    found = manifest.sources()
    assert {name: clip.id for name, clip in found.items()} == {"a": "a", "c": "c_0", "b": "b"}
    assert list(manifest.sources(("test",))) == ["c"]


def test_ids_are_unique(tmp_path):
    one, two = (Clip(name, tmp_path / name, (0,), name) for name in ("one", "two"))
    assert unique_ids(iter((one, two)), tmp_path) == (one, two)
    with pytest.raises(InputError) as error:
        unique_ids((one, two, one), tmp_path / "train.txt")
    assert str(error.value) == f"{tmp_path}/train.txt: names one 2 times; name each clip once"
    with pytest.raises(InputError) as error:
        unique_ids((), tmp_path / "train.txt")
    assert str(error.value) == f"{tmp_path}/train.txt: names no clip; a split needs at least one"


def test_names_of_classes_say_their_head_where_there_are_several():
    assert list(class_names({"label": ("Opening", "Closing")})) == ["Opening", "Closing"]
    both = {"verb": ("take", "put"), "noun": ("tap",)}
    assert list(class_names(both)) == ["verb: take", "verb: put", "noun: tap"]


def test_something_something_v2_mirrors_three_pairs_and_every_other_class_to_itself():
    numbers = list(SSV2)
    targets = dict(zip(numbers, flip_targets(tuple(SSV2.values())), strict=True))
    mirrored = {number: numbers[place] for number, place in targets.items()}
    pairs = {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert mirrored == {number: pairs.get(number, number) for number in numbers}


def test_every_head_has_its_own_mirrors(tmp_path):
    heads = {"verb": ("turn left", "turn right"), "noun": ("tap", "left hand")}
    assert Manifest(tmp_path, heads, {}).flip_targets() == ((1, 0), (0, None))


def test_a_side_without_a_partner_must_not_be_mirrored():
    assert flip_targets(("Turning left", "Turning", "Swiping Left", "Swiping Right")) == (None, 1, 3, 2)
