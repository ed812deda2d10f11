"""Annotation files as every reader needs them: found by name, read whole, every refusal with file and line.

Nothing here knows a data set. Lines count from 1. Files are UTF-8, with or without a byte order mark; blank
lines are the only ones passed over.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dear_core.config import DataConfig
from dear_core.errors import InputError

_NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Annotations:
    """The folder that holds the annotation files, and the key that named it."""

    folder: Path
    key: str

    def find(self, *names: str) -> Path | None:
        """The one file that has one of the names; None where there is none."""
        found = [name for name in names if (self.folder / name).is_file()]
        if len(found) > 1:
            raise InputError(
                f"{self.key}: {self.folder.absolute()} has {' and '.join(found)}; only one of them can be "
                "meant, so move the others away"
            )
        return self.folder / found[0] if found else None

    def require(self, *names: str) -> Path:
        found = self.find(*names)
        if found is None:
            others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
            raise InputError(f"{self.key}: {self.folder.absolute()} has no {names[0]}{others}")
        return found


def open_folder(data: DataConfig, holds: str) -> Annotations:
    """Where the annotations of ``data`` are; ``holds`` says what should be there."""
    root = Path(data.root)
    if not root.is_dir():
        raise InputError(f"data.root: {root.absolute()} is no folder; it should hold {holds}")
    if data.annotations is None:
        return Annotations(root, "data.root")
    folder = Path(data.annotations)
    if not folder.is_dir():
        raise InputError(f"data.annotations: {folder.absolute()} is no folder; it should hold {holds}")
    return Annotations(folder, "data.annotations")


def video_folder(data: DataConfig) -> Path:
    """``data.videos``, else ROOT/videos where there is one, else ROOT."""
    if data.videos is not None:
        return Path(data.videos)
    videos = Path(data.root) / "videos"
    return videos if videos.is_dir() else Path(data.root)


def frame_pattern(data: DataConfig, default: str) -> str:
    """``data.frame_pattern`` or the default; raises ``InputError`` where it does not name frames apart."""
    pattern = data.frame_pattern or default
    try:
        distinct = pattern.format(1) != pattern.format(2)
    except (IndexError, KeyError, ValueError, AttributeError):
        distinct = False
    if not distinct:
        raise InputError(
            f"data.frame_pattern: '{pattern}' does not format a frame's number; write it like {default}"
        )
    return pattern


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: should be a JSON {'object' if kind is dict else 'list'}")
    return value


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank, without blanks around it."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if text := line.strip():
            yield number, text


def table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of every row below the header: ``columns``, and ``optional`` where there are."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise InputError(f"{path}: is empty; it should have a header and a line for each entry")
        if missing := [name for name in columns if name not in header]:
            raise InputError(f"{path}: has no column {', '.join(missing)}; its first line should name it")
        place = {name: header.index(name) for name in (*columns, *optional) if name in header}
        for row in reader:
            if not "".join(row).strip() and len(row) < 2:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: has {len(row)} columns where the header has "
                    f"{len(header)}; put a text that holds a comma in double quotes"
                )
            yield reader.line_num, {name: row[column] for name, column in place.items()}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: no valid CSV ({error})") from None


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def whole_number(text: str, what: str, where: str, lowest: int = 0) -> int:
    """``text`` as a number; ``where`` is its file and line."""
    if not is_number(text) or int(text) < lowest:
        raise InputError(f"{where}: {what} '{text}' should be a whole number from {lowest}")
    return int(text)


def one_of(number: int, classes: int, what: str, where: str) -> int:
    """``number``, where it is a class."""
    if number >= classes:
        raise InputError(f"{where}: {what} {number} should be one of the classes 0 to {classes - 1}")
    return number


def class_texts(path: Path, text_column: str) -> tuple[str, ...]:
    """Texts of the classes in order, from a CSV file with the columns ``id`` and ``text_column``."""
    texts: dict[int, str] = {}
    for line, row in table(path, ("id", text_column)):
        number = whole_number(row["id"], "id", f"{path}, line {line}")
        if number in texts:
            raise InputError(f"{path}, line {line}: id {number} stands twice; give each class its own")
        texts[number] = row[text_column].strip()
    if sorted(texts) != list(range(len(texts))):
        raise InputError(f"{path}: the ids should be 0 to {len(texts) - 1}, each once")
    return distinct_texts(tuple(texts[number] for number in range(len(texts))), path)


def distinct_texts(texts: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The texts; raises ``InputError`` for none, an empty one, and one that two classes share."""
    if not texts:
        raise InputError(f"{path}: names no class")
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        if not text:
            raise InputError(f"{path}: class {number} has no text")
        if text in first:
            raise InputError(
                f"{path}: classes {first[text]} and {number} are both '{text}'; give each its own text"
            )
        first[text] = number
    return texts
