import pytest

from dear_core.config import DataConfig
from dear_core.data import formats
from dear_core.data.manifest import Clip, FrameSpan, TimeSpan
from dear_core.errors import InputError

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
TRAIN = (
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    "P02_01_7,P02,P02_01,01:00:02.1,01:02:03.50,01:02:04.25,9,9,take plate and cup,take,0,plate,2,"
    "\"['plate', 'cup']\",\"[2, 13]\"\n"
)
VALIDATION = (
    "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]\n"
)
TEST = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame\nP01_101_0,P01,P01_101,00:00:02.851,00:00:02.86,00:00:03.87,143,193\n"
)
CLASSES = "id,key,instances,category\n"
VERBS = (
    CLASSES + "0,take,\"['get', 'take']\",retrieve\n1,put,['put'],leave\n2,wash,x,clean\n3,open,x,access\n"
)
NOUNS = CLASSES + "0,tap,x,appliances\n1,spoon,x,cutlery\n2,plate,x,crockery\n3,cupboard,x,storage\n"


@pytest.fixture
def root(tmp_path):
    """The annotations as distributed; no videos."""
    write(tmp_path, "train", HEADER + TRAIN)
    write(tmp_path, "validation", HEADER + VALIDATION)
    write(tmp_path, "test_timestamps", TEST)
    write(tmp_path, "verb_classes", VERBS)
    write(tmp_path, "noun_classes", NOUNS)
    return tmp_path


def write(root, name, text):
    (root / f"EPIC_100_{name}.csv").write_text(text)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def read(root, **keys):
    return formats.read(DataConfig(format="epic", root=str(root), **keys))


def refused(root, message, **keys):
    with pytest.raises(InputError) as error:
        read(root, **keys)
    assert str(error.value) == message


def media(manifest):
    """Path below the root and source of every video."""
    clips = [clip for split in manifest.splits.values() for clip in split]
    return {str(clip.path.relative_to(manifest.root)): clip.source for clip in clips}


def test_an_action_is_a_verb_and_a_noun_of_a_distributed_video(root):
    manifest = read(root)
    assert manifest.heads == {
        "verb": ("take", "put", "wash", "open"),
        "noun": ("tap", "spoon", "plate", "cupboard"),
    }
    first, second = root / "P01/videos/P01_01.MP4", root / "P02/videos/P02_01.MP4"
    assert manifest.splits["train"] == (
        Clip("P01_01_0", first, (3, 3), "P01/videos/P01_01", TimeSpan(0.14, 3.37)),
        Clip("P02_01_7", second, (0, 2), "P02/videos/P02_01", TimeSpan(3723.5, 3724.25)),
    )
    assert [clip.labels for clip in manifest.splits["validation"]] == [(0, 2)]
    test = manifest.splits["test"][0]
    assert (test.id, test.labels, test.span) == ("P01_101_0", None, TimeSpan(2.86, 3.87))
    assert manifest.frame_pattern is None
    assert [path.name for path in manifest.missing()] == ["P01_01.MP4", "P02_01.MP4", "P01_11.MP4"]


@pytest.mark.parametrize(("task", "labels"), [("verb", [(3,), (0,)]), ("noun", [(3,), (2,)])])
def test_a_verb_or_a_noun_alone(root, task, labels):
    manifest = read(root, task=task)
    assert list(manifest.heads) == [task]
    assert [clip.labels for clip in manifest.splits["train"]] == labels
    assert manifest.splits["test"][0].labels is None


def test_the_test_split_is_optional(root):
    (root / "EPIC_100_test_timestamps.csv").unlink()
    assert list(read(root).splits) == ["train", "validation"]


@pytest.mark.parametrize(
    "place", ["{one}/rgb_frames/{video}", "{video}", "{one}/{video}"], ids=("distributed", "flat", "nested")
)
def test_folders_of_frames(root, place):
    videos = ("P01_01", "P02_01", "P01_11", "P01_101")
    places = [place.format(one=video[:3], video=video) for video in videos]
    for one in places:
        (root / one).mkdir(parents=True)
    manifest = read(root)
    assert media(manifest) == {one: one for one in places}
    assert manifest.missing() == []
    assert [clip.span for clip in manifest.splits["train"]] == [FrameSpan(7, 202), FrameSpan(8, 9)]
    assert manifest.frame_pattern == "frame_{:010d}.jpg"
    assert read(root, frame_pattern="{:06d}.png").frame_pattern == "{:06d}.png"


@pytest.mark.parametrize(
    "place", ["{one}/videos/{video}.MP4", "{video}.MP4", "{one}/{video}.mp4", "{one}/{video}.mKv"]
)
def test_videos(root, place):
    videos = ("P01_01", "P02_01", "P01_11", "P01_101")
    places = [place.format(one=video[:3], video=video) for video in videos]
    for one in places:
        touch(root / one)
    manifest = read(root)
    assert media(manifest) == {one: one[:-4] for one in places}
    assert manifest.missing() == [] and manifest.frame_pattern is None


def test_what_is_missing_is_expected_beside_what_is_found(root):
    (root / "P01_11").mkdir()
    touch(root / "P01/videos/P01_01.MP4")  # folders of frames win
    manifest = read(root)
    assert media(manifest) == {name: name for name in ("P01_01", "P02_01", "P01_11", "P01_101")}
    assert manifest.missing() == [root / "P01_01", root / "P02_01"]


def test_two_files_for_one_video(root):
    touch(root / "P01/videos/P01_01.MP4")
    touch(root / "P01/videos/P01_01.webm")
    refused(root, f"data.videos: {root}/P01/videos has P01_01.MP4 and P01_01.webm; keep one of them")


def test_videos_and_annotations_elsewhere(root, tmp_path_factory):
    videos = tmp_path_factory.mktemp("EPIC-KITCHENS")
    touch(videos / "P01" / "P01_01.mp4")
    clips = read(videos, annotations=str(root), videos=str(videos)).splits["train"]
    assert [clip.path for clip in clips] == [videos / "P01/P01_01.mp4", videos / "P02/P02_01.mp4"]
    (root / "videos").mkdir()
    assert read(root).splits["train"][0].path == root / "videos/P01/videos/P01_01.MP4"


def test_without_tables_of_classes_the_narrations_name_them(root):
    for name in ("verb", "noun"):
        (root / f"EPIC_100_{name}_classes.csv").unlink()
    more = TRAIN + VALIDATION.replace("P01_11_0", "P01_11_9").replace(",take,0,", ",grab,0,")
    write(root, "train", HEADER + more)
    heads = read(root).heads
    assert heads["verb"][:5] == ("take", "1", "2", "open", "4") and len(heads["verb"]) == 97
    assert heads["noun"][:4] == ("0", "1", "plate", "door") and len(heads["noun"]) == 300
    write(root, "train", HEADER + TRAIN.replace(",open,3,", ",open,97,"))
    path = root / "EPIC_100_train.csv"
    refused(root, f"{path}, line 2: verb_class 97 should be one of the classes 0 to 96")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",3,door", ",x,door", ", line 2: verb_class 'x' should be a whole number from 0"),
        (",3,door", ",-1,door", ", line 2: verb_class '-1' should be a whole number from 0"),
        (",plate,2,", ",plate,4,", ", line 3: noun_class 4 should be one of the classes 0 to 3"),
        ("00:00:00.14", "0.14", ", line 2: start_timestamp '0.14' should be a time as HH:MM:SS.sss"),
        (
            "00:00:03.37",
            "00:00:63.37",
            ", line 2: stop_timestamp '00:00:63.37' should be a time as HH:MM:SS.sss",
        ),
        (
            "00:00:03.37",
            "00:00:00.14",
            ", line 2: stop_timestamp 00:00:00.14 is not after start_timestamp 00:00:00.14",
        ),
        ("P02_01_7", "P01_01_0", ": names P01_01_0 2 times; name each clip once"),
        (
            "verb_class,noun,",
            "verb_klass,substantive,",
            ": has no column verb_class; its first line should name it",
        ),
        ("stop_timestamp", "end", ": has no column stop_timestamp; its first line should name it"),
        (
            ",['door'],[3]\n",
            ",['door'],[3],4\n",
            ", line 2: has 16 columns where the header has 15; put a text that holds a comma in double "
            "quotes",
        ),
        (TRAIN, "\n", ": names no clip; a split needs at least one"),
        (HEADER + TRAIN, "", ": is empty; it should have a header and a line for each entry"),
    ],
)
def test_rows_that_are_refused(root, old, new, message):
    text = HEADER + TRAIN
    assert old in text
    write(root, "train", text.replace(old, new, 1))
    refused(root, f"{root}/EPIC_100_train.csv{message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",8,202", ",203,202", "stop_frame 202 is before start_frame 203; a clip needs a frame"),
        (",8,202", ",0,202", "start_frame '0' should be a whole number from 1"),
        (",8,202", ",8,last", "stop_frame 'last' should be a whole number from 1"),
    ],
)
def test_frames_that_are_refused(root, old, new, message):
    (root / "P01_01").mkdir()
    write(root, "train", HEADER + TRAIN.replace(old, new))
    refused(root, f"{root}/EPIC_100_train.csv, line 2: {message}")


def test_a_missing_file(root):
    (root / "EPIC_100_validation.csv").unlink()
    refused(root, f"data.root: {root} has no EPIC_100_validation.csv")
    refused(
        root,
        f"data.annotations: {root}/no is no folder; it should hold EPIC_100_train.csv and "
        "EPIC_100_validation.csv",
        annotations=f"{root}/no",
    )
