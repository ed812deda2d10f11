"""Which clips a data set has: what every reader in ``formats`` gives, and what can be asked of it.

Nothing is decoded here. A clip is a whole video file, a folder of frame files, or a part of either. Its
*source* is what is decoded: the file or folder, by the path below the videos' folder without its suffix; a
depth store has one depth video a source, under that name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dear_core.errors import InputError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class FrameSpan:
    """Frames ``start`` to ``stop`` of the source, counted from 0, without ``stop``."""

    start: int
    stop: int


@dataclass(frozen=True)
class TimeSpan:
    """Seconds of the source."""

    start: float
    stop: float


Span = FrameSpan | TimeSpan


@dataclass(frozen=True)
class Clip:
    id: str
    """Its name in messages and predictions, unique in its split."""
    path: Path
    """A video file, or a folder of frame files."""
    labels: tuple[int, ...] | None
    """The class of every head; None where the annotation gives none (a test split)."""
    source: str
    span: Span | None = None
    """The part of the source; None: all of it."""
    frames: int | None = None
    """Frames of the source, where the annotation says so."""


@dataclass(frozen=True)
class Manifest:
    """A data set. ``splits`` has train and validation, and test where it was distributed."""

    root: Path
    heads: dict[str, tuple[str, ...]]
    """What is recognised, with the texts of its classes: ``{"label": …}``, or ``{"verb": …, "noun": …}``."""
    splits: dict[str, tuple[Clip, ...]]
    frame_pattern: str | None = None
    """Name of a frame's file where sources are folders, for example ``img_{:05d}.jpg``; the first is 1."""

    @property
    def num_classes(self) -> int:
        """Of all heads together."""
        return sum(len(classes) for classes in self.heads.values())

    def identity(self) -> str:
        """Hash of classes, clips and file sizes.

        Only splits that training and validation read count. The files must be there.
        """
        digest = hashlib.sha256(json.dumps(self.heads).encode())
        sizes: dict[Path, int | None] = {}
        for split in ("train", "validation"):
            for clip in self.splits[split]:
                if clip.path not in sizes:
                    folder = self.frame_pattern is not None
                    sizes[clip.path] = clip.frames if folder else clip.path.stat().st_size
                digest.update(f"{split} {clip.id} {clip.labels} {clip.span} {sizes[clip.path]}\n".encode())
        return digest.hexdigest()[:16]

    def missing(self, splits: Iterable[str] = ("train", "validation")) -> list[Path]:
        """Files and folders that clips name and that are not there, each once, in order."""
        there: dict[Path, set[str]] = {}
        gone: dict[Path, None] = {}
        for split in splits:
            for clip in self.splits.get(split, ()):
                folder = clip.path.parent
                if folder not in there:
                    there[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
                if clip.path.name not in there[folder]:
                    gone[clip.path] = None
        return list(gone)

    def require_files(self) -> None:
        """Raises ``InputError`` that names the first missing video and counts the others."""
        missing = self.missing()
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"{missing[0].name}{others}, named by the annotations of {self.root}, not found in "
                f"{missing[0].parent.absolute()}; add the video or remove the entry"
            )

    def sources(self, splits: Iterable[str] = SPLITS) -> dict[str, Clip]:
        """Every source once, with the first clip that is cut from it, in order."""
        found: dict[str, Clip] = {}
        for split in splits:
            for clip in self.splits.get(split, ()):
                found.setdefault(clip.source, clip)
        return found

    def flip_targets(self) -> tuple[tuple[int | None, ...], ...]:
        """For every head and class the class of the mirrored clip, see :func:`flip_targets`."""
        return tuple(flip_targets(classes) for classes in self.heads.values())


def flip_targets(classes: tuple[str, ...]) -> tuple[int | None, ...]:
    """For every class the class of its mirrored clip; ``None`` where the mirror has no class.

    "… from left to right" and "… from right to left" exchange; a text without left or right is its own
    mirror; a text that speaks of a side but has no partner must not be mirrored. Classes that have numbers
    for texts do not say what they are, so none is mirrored.
    """
    if classes == tuple(map(str, range(len(classes)))):
        return (None,) * len(classes)
    index = {text: number for number, text in enumerate(classes)}
    return tuple(index.get(_mirror(text)) for text in classes)


def class_names(heads: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Every class of every head in order; with several heads as ``verb: take``."""
    for head, classes in heads.items():
        yield from classes if len(heads) == 1 else (f"{head}: {text}" for text in classes)


def unique_ids(clips: Iterable[Clip], where: Path) -> tuple[Clip, ...]:
    """The clips as a tuple; raises ``InputError`` for an ID that stands twice, and for no clip at all."""
    by_id: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_id[clip.id].append(clip)
    if not by_id:
        raise InputError(f"{where}: names no clip; a split needs at least one")
    twice = [name for name, group in by_id.items() if len(group) > 1]
    if twice:
        raise InputError(f"{where}: names {twice[0]} {len(by_id[twice[0]])} times; name each clip once")
    return tuple(group[0] for group in by_id.values())


def _mirror(text: str) -> str:
    """Left and right exchanged where they are words of their own; "right out" says when, not where."""
    swap = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b(?:[Ll]eft|[Rr]ight)\b(?! out\b)", lambda side: swap[side[0]], text)
