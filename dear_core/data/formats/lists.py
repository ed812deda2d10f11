"""Plain lists of clips: ``list`` as Side4Video reads it, ``csv`` as VideoMamba and VideoMAE write it.

A line is ``path label`` (a video) or ``path frames label`` (a folder of frame files); a data set is all
videos or all folders. ``list`` separates by blanks and is read from the right, so a path may hold blanks;
``csv`` separates by commas or blanks, file by file, and quotes what holds its separator. A test file may have
no labels.

The ID of a clip is its source. No file is opened but the lists: whether the videos are there, and whether a
folder holds as many frames as its line says, is not looked at here.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dear_core.config import DataConfig
from dear_core.data.formats.annotation_files import (
    Annotations,
    class_texts,
    distinct_texts,
    frame_pattern,
    is_number,
    lines,
    one_of,
    open_folder,
    video_folder,
    whole_number,
)
from dear_core.data.manifest import Clip, Manifest, unique_ids
from dear_core.errors import InputError

FRAME_PATTERN = "img_{:05d}.jpg"
FILES = {
    "list": {
        "train": ("train.txt", "train_rgb.txt"),
        "validation": ("val.txt", "validation.txt", "val_rgb.txt"),
        "test": ("test.txt", "test_rgb.txt"),
    },
    "csv": {
        "train": ("train.csv",),
        "validation": ("val.csv", "validation.csv"),
        "test": ("test.csv",),
    },
}
CLASSES, CLASS_TABLE = "classes.txt", "labels.csv"

Row = tuple[int, list[str]]  # line number and columns
Columns = Callable[[Path, bool], Iterator[Row]]


@dataclass(frozen=True)
class Entry:
    """A line that was understood; ``label`` may still be too large for the classes."""

    line: int
    path: str
    frames: int | None
    label: int | None


def read_list(data: DataConfig) -> Manifest:
    """Raises ``InputError`` for a missing folder or file and for a line that is not of this form."""
    return _read(data, FILES["list"], _blank_columns)


def read_csv(data: DataConfig) -> Manifest:
    """Raises ``InputError`` for a missing folder or file and for a line that is not of this form."""
    return _read(data, FILES["csv"], _csv_columns)


def _read(data: DataConfig, names: dict[str, tuple[str, ...]], columns: Columns) -> Manifest:
    there = open_folder(data, f"{names['train'][0]} and {names['validation'][0]}")
    files = {split: there.require(*names[split]) for split in ("train", "validation")}
    if (test := there.find(*names["test"])) is not None:
        files["test"] = test
    rows = {path: list(columns(path, split != "test")) for split, path in files.items()}
    for path in rows:
        if not rows[path]:
            raise InputError(f"{path}: names no clip; a split needs at least one")
    folders = _lists_folders([(files[split], rows[files[split]]) for split in ("train", "validation")])
    entries = {
        split: list(_entries(path, rows[path], folders, labelled=split != "test" or None))
        for split, path in files.items()
    }
    classes = _classes(there, entries["train"] + entries["validation"])
    places = _Places(video_folder(data), folders)
    splits = {
        split: unique_ids(_clips(path, entries[split], len(classes), places), path)
        for split, path in files.items()
    }
    pattern = frame_pattern(data, FRAME_PATTERN) if folders else None
    return Manifest(Path(data.root), {"label": classes}, splits, pattern)


def _blank_columns(path: Path, labelled: bool) -> Iterator[Row]:
    for number, line in lines(path):
        parts = line.rsplit(maxsplit=2)
        if len(parts) == 3 and not (is_number(parts[1]) and is_number(parts[2])):
            parts = line.rsplit(maxsplit=1)
        if not labelled and len(parts) == 2 and not is_number(parts[1]):
            parts = [line]
        yield number, parts


def _csv_columns(path: Path, labelled: bool) -> Iterator[Row]:
    delimiter = ""
    for number, line in lines(path):
        delimiter = delimiter or ("," if "," in re.sub('"[^"]*"', "", line) else " ")
        try:
            parts = _split(line, delimiter)
        except csv.Error as error:
            raise InputError(f"{path}, line {number}: no valid CSV ({error})") from None
        if len(parts) > 3:
            holds = "a comma" if delimiter == "," else "blanks"
            raise InputError(
                f"{path}, line {number}: has {len(parts)} columns where path, frames and label make 3; put a "
                f"path that holds {holds} in double quotes"
            )
        yield number, parts


def _split(line: str, delimiter: str) -> list[str]:
    row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    return [part.strip() for part in row]


def _lists_folders(tables: list[tuple[Path, list[Row]]]) -> bool:
    """Whether the labelled lines have three columns; raises ``InputError`` where they differ."""
    first = ""
    wide = False
    for path, rows in tables:
        for number, parts in rows:
            where = f"{path}, line {number}"
            if len(parts) == 1:
                raise InputError(f"{where}: '{parts[0]}' has no label; write path and label")
            if not first:
                first, wide = where, len(parts) == 3
            elif wide != (len(parts) == 3):
                raise InputError(
                    f"{where}: has {len(parts)} columns, but {first} has {3 if wide else 2}; list videos "
                    "(path, label) or folders of frames (path, frames, label), not both"
                )
    return wide


def _entries(path: Path, rows: list[Row], folders: bool, labelled: bool | None) -> Iterator[Entry]:
    """``labelled`` None: as the first line is."""
    width = 3 if folders else 2
    if labelled is None:
        labelled = len(rows[0][1]) >= width
    for number, parts in rows:
        where = f"{path}, line {number}"
        if len(parts) != (width if labelled else width - 1):
            form = "path, frames and label" if folders else "path and label"
            raise InputError(
                f"{where}: has {len(parts)} column{'s' if len(parts) > 1 else ''}; write {form} as in the "
                "other splits, or leave the label out of every line of the file"
            )
        frames = whole_number(parts[1], "frames", where, lowest=1) if folders else None
        label = whole_number(parts[-1], "label", where) if labelled else None
        yield Entry(number, parts[0], frames, label)


def _classes(there: Annotations, entries: list[Entry]) -> tuple[str, ...]:
    path = there.find(CLASSES, CLASS_TABLE)
    if path is None:
        return tuple(str(number) for number in range(1 + max(one.label or 0 for one in entries)))
    if path.name == CLASS_TABLE:
        return class_texts(path, "name")
    numbered = list(lines(path))
    for count, (number, _) in enumerate(numbered, start=1):
        if number != count:
            raise InputError(f"{path}, line {count}: is blank; line N names class N-1, so leave none blank")
    return distinct_texts(tuple(text for _, text in numbered), path)


class _Places:
    """Where listed paths are. Two files may not share a source: they would share a depth video."""

    def __init__(self, videos: Path, folders: bool) -> None:
        self.videos, self.folders = videos, folders
        self._inside = os.path.abspath(videos) + "/"  # noqa: PTH100 (links stay as written)
        self._written: dict[str, tuple[str, str]] = {}

    def find(self, written: str, where: str) -> tuple[Path, str]:
        """The file or folder, and its source."""
        path = os.path.normpath(written)
        if path in (".", "/"):
            raise InputError(f"{where}: has no path")
        if path == ".." or path.startswith("../"):
            raise InputError(
                f"{where}: path '{written}' leads out of the videos' folder; write an absolute path, or set "
                "data.videos"
            )
        path = path.removeprefix(self._inside)
        name = path.lstrip("/")
        source = name if self.folders else os.path.splitext(name)[0]  # noqa: PTH122 (there may be 170,000)
        other, first = self._written.setdefault(source, (path, written))
        if other != path:
            raise InputError(
                f"{where}: '{written}' and '{first}' differ only in their suffix and would share a depth "
                "video; rename one"
            )
        return self.videos / path, source


def _clips(path: Path, entries: list[Entry], classes: int, places: _Places) -> Iterator[Clip]:
    for entry in entries:
        where = f"{path}, line {entry.line}"
        file, source = places.find(entry.path, where)
        labels = None if entry.label is None else (one_of(entry.label, classes, "label", where),)
        yield Clip(source, file, labels, source, frames=entry.frames)
