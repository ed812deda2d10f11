"""EPIC-KITCHENS-100 as distributed (Damen et al. 2022): long videos, or their frames, cut by CSV tables.

``EPIC_100_train.csv``, ``EPIC_100_validation.csv`` and, without classes, ``EPIC_100_test_timestamps.csv``;
the texts of the classes from ``EPIC_100_verb_classes.csv`` and ``EPIC_100_noun_classes.csv``. ``data.task``
says what is recognised: an action is a verb and a noun, each with its own head; a pair is no class.

Folders of frames are used where there is any, else the videos: frame numbers cut the former, times the
latter, because the numbers are those of the distributed frames. Videos are looked for by listing folders,
not one by one; that they are there is not required here.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dear_core.config import DataConfig
from dear_core.data.formats.annotation_files import (
    Annotations,
    class_texts,
    frame_pattern,
    one_of,
    open_folder,
    table,
    video_folder,
    whole_number,
)
from dear_core.data.manifest import Clip, FrameSpan, Manifest, Span, TimeSpan, unique_ids
from dear_core.errors import InputError

FRAME_PATTERN = "frame_{:010d}.jpg"
FILES = {
    "train": "EPIC_100_train.csv",
    "validation": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",
}
HEADS = {"verb": ("verb",), "noun": ("noun",), "action": ("verb", "noun")}
CLASSES = {"verb": 97, "noun": 300}
CUTS = (
    "narration_id",
    "participant_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "start_frame",
    "stop_frame",
)
# Below the videos' folder, the distributed place first; {} is the participant.
FRAME_PLACES = ("{}/rgb_frames", ".", "{}")
VIDEO_PLACES = ("{}/videos", ".", "{}")
DISTRIBUTED = VIDEO_PLACES[0], "P01_01.MP4"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")

Table = list[tuple[int, dict[str, str]]]


def read(data: DataConfig) -> Manifest:
    """Raises ``InputError`` for a missing folder, file or column and for a row that cannot be understood."""
    there = open_folder(data, f"{FILES['train']} and {FILES['validation']}")
    files = {split: there.require(FILES[split]) for split in ("train", "validation")}
    heads = HEADS[data.task]
    classes = tuple(f"{head}_class" for head in heads)
    rows = {split: list(table(file, (*CUTS, *classes), heads)) for split, file in files.items()}
    if (test := there.find(FILES["test"])) is not None:
        files["test"] = test
        rows["test"] = list(table(test, CUTS, classes))
    texts = {head: _class_texts(there, head, files, rows) for head in heads}
    videos = video_folder(data)
    media = _find_media(videos, {r["video_id"]: r["participant_id"] for t in rows.values() for _, r in t})
    splits = {
        split: unique_ids(_clips(file, rows[split], texts, videos, media), file)
        for split, file in files.items()
    }
    pattern = frame_pattern(data, FRAME_PATTERN) if media.folders else None
    return Manifest(Path(data.root), texts, splits, pattern)


def _class_texts(
    there: Annotations, head: str, files: dict[str, Path], rows: dict[str, Table]
) -> tuple[str, ...]:
    """From the table of classes; without it the word that a class's narrations have most often."""
    path = there.find(f"EPIC_100_{head}_classes.csv")
    if path is not None:
        return class_texts(path, "key")
    words: dict[int, Counter[str]] = defaultdict(Counter)
    for split in ("train", "validation"):
        for line, row in rows[split]:
            where = f"{files[split]}, line {line}"
            number = _class(row, head, CLASSES[head], where)
            words[number].update([row[head]] if row.get(head) else [])
    texts: dict[str, None] = {}
    for number in range(CLASSES[head]):
        word = next((word for word, _ in words[number].most_common() if word not in texts), str(number))
        texts[word] = None
    return tuple(texts)


def _clips(
    path: Path, rows: Table, texts: dict[str, tuple[str, ...]], videos: Path, media: _Media
) -> Iterator[Clip]:
    cut: Callable[[dict[str, str], str], Span] = _frame_span if media.folders else _time_span
    places = {
        video: (videos / name, str(name if media.folders else name.with_suffix("")))
        for video, name in media.names.items()
    }
    for line, row in rows:
        where = f"{path}, line {line}"
        labels: tuple[int, ...] | None = None
        if all(f"{head}_class" in row for head in texts):
            labels = tuple(_class(row, head, len(texts[head]), where) for head in texts)
        file, source = places[row["video_id"]]
        yield Clip(row["narration_id"], file, labels, source, cut(row, where))


def _class(row: dict[str, str], head: str, classes: int, where: str) -> int:
    column = f"{head}_class"
    return one_of(whole_number(row[column], column, where), classes, column, where)


def _frame_span(row: dict[str, str], where: str) -> FrameSpan:
    """The annotation counts frames from 1 and means ``stop_frame`` to be the last one."""
    start = whole_number(row["start_frame"], "start_frame", where, lowest=1)
    stop = whole_number(row["stop_frame"], "stop_frame", where, lowest=1)
    if stop < start:
        raise InputError(f"{where}: stop_frame {stop} is before start_frame {start}; a clip needs a frame")
    return FrameSpan(start - 1, stop)


def _time_span(row: dict[str, str], where: str) -> TimeSpan:
    start, stop = (_seconds(row[key], key, where) for key in ("start_timestamp", "stop_timestamp"))
    if stop <= start:
        raise InputError(
            f"{where}: stop_timestamp {row['stop_timestamp']} is not after start_timestamp "
            f"{row['start_timestamp']}"
        )
    return TimeSpan(start, stop)


def _seconds(text: str, what: str, where: str) -> float:
    match = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)", text)
    if match is None:
        raise InputError(f"{where}: {what} '{text}' should be a time as HH:MM:SS.sss")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


@dataclass(frozen=True)
class _Media:
    """Where every video of the annotations is, or should be, below the videos' folder."""

    folders: bool
    names: dict[str, PurePosixPath]


def _find_media(videos: Path, participants: dict[str, str]) -> _Media:
    """Folders of frames if there is any, else videos; what is missing is expected beside the first found."""
    for folders, places in ((True, FRAME_PLACES), (False, VIDEO_PLACES)):
        below = {place.format(one) for place in places for one in participants.values()}
        listed = {folder: _list(videos / folder, folders) for folder in below}
        found: dict[str, tuple[str, str]] = {}
        for video, one in participants.items():
            place = next((place for place in places if video in listed[place.format(one)]), None)
            if place is not None:
                found[video] = place, listed[place.format(one)][video]
        if found:
            break
    place, file = next(iter(found.values()), DISTRIBUTED)
    suffix = "" if folders else PurePosixPath(file).suffix
    expected = {video: (place, f"{video}{suffix}") for video in participants}
    names = {
        video: PurePosixPath(place.format(participants[video])) / name
        for video, (place, name) in (expected | found).items()
    }
    return _Media(folders, names)


def _list(folder: Path, folders: bool) -> dict[str, str]:
    """Names in a folder: of its folders, or of its video files by their name without suffix."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        ordered: Iterable[os.DirEntry[str]] = sorted(entries, key=lambda entry: entry.name)
    if folders:
        return {entry.name: entry.name for entry in ordered if entry.is_dir()}
    found: dict[str, str] = {}
    for path in (PurePosixPath(entry.name) for entry in ordered):
        if path.suffix.lower() in VIDEO_SUFFIXES and found.setdefault(path.stem, path.name) != path.name:
            raise InputError(
                f"data.videos: {folder.absolute()} has {found[path.stem]} and {path.name}; keep one of them"
            )
    return found
