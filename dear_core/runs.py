"""A run's folder: found by the run's key, it holds all that is known of the run.

RESULTS/runs/KEY/config.yaml     the validated RunConfig
                 metrics.jsonl   one line an epoch, also when no tracking server answers
                 last.pt         newest checkpoint; best.pt: the one with the best validation top-1
                 bad_clips.jsonl clips that could not be read and were left out, each once, if there are any
                 result.json     written last: the run is finished
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock
import yaml

from dear_core import jsonl
from dear_core.config import RunConfig
from dear_core.errors import InputError


class RunFolder:
    def __init__(self, results: Path, key: str) -> None:
        self.results, self.key = results, key
        self.path = results / "runs" / key
        self.last, self.best = self.path / "last.pt", self.path / "best.pt"
        self.bad = self.path / "bad_clips.jsonl"
        self.metrics, self._result = self.path / "metrics.jsonl", self.path / "result.json"

    def create(self, config: RunConfig) -> None:
        make_folder(self.path)
        write_text(self.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def lock(self) -> filelock.BaseFileLock:
        """Held while the run trains, so that two sweeps that share it do not train it twice."""
        locks = self.results / "locks"
        make_folder(locks)
        return filelock.FileLock(locks / f"{self.key}.lock")

    def result(self) -> dict[str, Any] | None:
        """The finished run's result, or None if it has not finished."""
        if not self._result.is_file():
            return None
        return json.loads(self._result.read_text())

    def finish(self, result: Mapping[str, Any]) -> None:
        write_text(self._result, json.dumps(result, indent=1))

    def history(self) -> list[dict[str, Any]]:
        """One mapping an epoch, oldest first; a line cut off by a crash is left out."""
        return jsonl.read(self.metrics)

    def append(self, row: Mapping[str, Any]) -> None:
        jsonl.append(self.metrics, [row])

    def add_bad(self, split: str, bad: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Note clips that cannot be read, by number and reason; returns those that were not noted before."""
        if not (bad := list(bad)):
            return []
        known = {(row["split"], row["clip"]) for row in jsonl.read(self.bad)}
        new = [(number, reason) for number, reason in bad if (split, number) not in known]
        jsonl.append(self.bad, ({"split": split, "clip": n, "reason": reason} for n, reason in new))
        return new

    def bad_clips(self) -> list[dict[str, Any]]:
        """The noted clips as {split, clip, reason}, in the order they were met."""
        return jsonl.read(self.bad)

    def keep_epochs(self, count: int) -> None:
        """Forget metrics of epochs after ``count``: they were not checkpointed and will be run again."""
        rows = [row for row in self.history() if row["epoch"] <= count]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def set_aside(self) -> Path | None:
        """Move the folder away so that the run starts anew; returns where it went. Nothing is deleted."""
        if not self.path.exists():
            return None
        away = self.results / "runs" / "set-aside" / f"{self.key}-{time.strftime('%Y%m%d-%H%M%S')}"
        make_folder(away.parent)
        self.path.rename(away)
        return away


def make_folder(path: Path) -> None:
    """Make a folder for results; raises ``InputError`` if it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{path}: results cannot be written there ({error.strerror}); "
            "choose another folder with --results"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
