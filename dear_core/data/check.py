"""Reads every clip of a data set as training would, and tells what is wrong with it.

What is found of a clip is kept in a file, so that a check that was stopped goes on where it was; a clip
whose files have changed, and one that was bad, is read again. Nothing of the data set is changed.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dear_core import jsonl
from dear_core.data.dataset import ClipDataset
from dear_core.data.manifest import Clip, Manifest
from dear_core.data.sampling import FrameSampler
from dear_core.data.sheet import Strip
from dear_core.errors import InputError


@dataclass
class SplitReport:
    """What was found in one split; lists hold a line a clip."""

    split: str
    clips: int
    classes: dict[str, int]
    """Clips of every class, by its text."""
    missing: list[str] = field(default_factory=list)
    missing_depth: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    """Readable, but with fewer frames than a clip has; some are then repeated."""
    read: int = 0
    """Clips read now; the others were read by an earlier check."""
    seconds: float = 0.0
    frames: int = 0
    """Frames decoded now, of every modality."""
    there: list[Clip] = field(default_factory=list, repr=False)
    """Clips whose files are there."""

    @property
    def problems(self) -> int:
        return len(self.missing) + len(self.missing_depth) + len(self.unreadable)

    def as_json(self) -> dict[str, Any]:
        rate = round(self.read / self.seconds, 2) if self.seconds else None
        shown = {name: value for name, value in vars(self).items() if name != "there"}
        return {**shown, "clips_per_second": rate}


class Ledger:
    """The clips that earlier checks have read: a line each, by ID and the state of the files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = {row["clip"]: row for row in jsonl.read(path)}

    def good(self, name: str, state: str) -> dict[str, Any] | None:
        """What was found, if the files are as they were then and the clip was readable."""
        row = self._known.get(name)
        return row if row is not None and row["state"] == state and row["bad"] is None else None

    def add(self, row: dict[str, Any]) -> None:
        self._known[row["clip"]] = row
        jsonl.append(self.path, [row])


class _Probe(Dataset[dict[str, Any]]):
    """Reads clips through their data set and notes how many frames they have."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset
        dataset.sampler = self._sampler = _NotingSampler(dataset.sampler)

    def __getitem__(self, index: int) -> dict[str, Any]:
        torch.set_num_threads(1)
        self._sampler.length = 0
        item = self.dataset[0, index]
        return {"index": index, "bad": item["bad"], "length": self._sampler.length}


class _NotingSampler:
    """A frame sampler that keeps the length it was last asked about."""

    def __init__(self, inner: FrameSampler) -> None:
        self.inner, self.num_frames, self.length = inner, inner.num_frames, 0

    def train(self, length: int, place: np.ndarray) -> np.ndarray:
        self.length = length
        return self.inner.train(length, place)

    def test(self, length: int, clips: int = 1) -> np.ndarray:
        self.length = length
        return self.inner.test(length, clips)


def check_split(
    found: Manifest,
    split: str,
    dataset: Callable[[Manifest], ClipDataset],
    ledger: Ledger,
    *,
    num_frames: int,
    depth: Callable[[Clip], Path] | None,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SplitReport:
    """Read every clip of a split that is there, on ``workers`` processes.

    Args:
        dataset: makes the split's data set from a manifest that lacks the clips whose files are missing.
        num_frames: frames of a clip; a video with fewer is too short.
        depth: where a clip's depth is, None where none is read.
        progress: told how many of the split's clips are done.
    """
    clips = found.splits[split]
    report = SplitReport(split, len(clips), _counts(found, clips))
    gone = set(found.missing((split,)))
    for clip in clips:
        if clip.path in gone:
            report.missing.append(f"{clip.id}: {clip.path}")
        elif depth is not None and not depth(clip).is_file():
            report.missing_depth.append(f"{clip.id}: {depth(clip)}")
        else:
            report.there.append(clip)
    states = {clip.id: _state(clip, depth) for clip in report.there}
    todo = []
    for clip in report.there:
        known = ledger.good(f"{split}/{clip.id}", states[clip.id])
        if known is None:
            todo.append(clip)
        else:
            _note(report, clip, known["length"], None, num_frames)
    progress(len(clips) - len(todo), len(clips))
    if todo:
        started = time.monotonic()
        made = dataset(dataclasses.replace(found, splits={**found.splits, split: tuple(todo)}))
        for row in _read_all(made, workers):
            clip = todo[row["index"]]
            name = f"{split}/{clip.id}"
            ledger.add({"clip": name, "state": states[clip.id], **row})
            _note(report, clip, row["length"], row["bad"], num_frames)
            report.read += 1
            report.frames += num_frames * len(made.sources)
            progress(len(clips) - len(todo) + report.read, len(clips))
        report.seconds = time.monotonic() - started
    return report


def spread(clips: Sequence[Clip], count: int) -> tuple[Clip, ...]:
    """``count`` clips, evenly spread over the split."""
    return tuple(clips[index] for index in np.unique(np.linspace(0, len(clips) - 1, count).astype(int)))


def strips(dataset: ClipDataset, titles: Sequence[str]) -> list[Strip]:
    """Every clip of a small data set as colour above depth; none of a clip that cannot be read."""
    drawn = []
    for index, title in enumerate(titles):
        try:
            drawn.append(Strip(title, dataset.frames(index)))
        except InputError:
            continue  # it is in the report
    return drawn


def _read_all(dataset: ClipDataset, workers: int) -> Iterator[dict[str, Any]]:
    probe, order = _Probe(dataset), range(len(dataset))
    yield from DataLoader(probe, batch_size=None, sampler=order, num_workers=workers if len(order) > 1 else 0)


def _note(report: SplitReport, clip: Clip, length: int, bad: str | None, num_frames: int) -> None:
    if bad is not None:
        report.unreadable.append(f"{clip.id}: {bad}")
    elif length < num_frames:
        report.short.append(f"{clip.id}: {length} frames, a clip has {num_frames}")


def _counts(found: Manifest, clips: Sequence[Clip]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for number, (head, classes) in enumerate(found.heads.items()):
        seen = Counter(clip.labels[number] for clip in clips if clip.labels is not None)
        prefix = f"{head}: " if len(found.heads) > 1 else ""
        counts |= {prefix + text: seen[label] for label, text in enumerate(classes)}
    return counts


def _state(clip: Clip, depth: Callable[[Clip], Path] | None) -> str:
    """Size and time of a clip's files, its span and its frames."""
    paths = [clip.path] + ([depth(clip)] if depth is not None else [])
    status = [path.stat() for path in paths]
    return f"{clip.span} {clip.frames} " + " ".join(f"{s.st_size}:{s.st_mtime_ns}" for s in status)
