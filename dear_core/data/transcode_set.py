"""Writes all videos of a data set again (:mod:`transcode`), on all cores, into a folder of their own.

Annotations stay where they are: every video keeps its name below the videos' folder, so ``data.videos`` can
name the new one. What is there is complete and is kept, so the same command goes on where it was stopped. A
video that cannot be written is told by name; the others are. The folder knows how it was made, and only one
such command at a time writes in it.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import filelock

from dear_core.data import decode
from dear_core.data.manifest import Manifest
from dear_core.data.transcode import UNFINISHED, Outcome, Recipe, transcode
from dear_core.errors import InputError

RECIPE, LOCK = "transcode.json", ".transcode.lock"


@dataclass
class Report:
    """Bytes count videos that are there now."""

    made: int = 0
    kept: int = 0
    before: int = 0
    after: int = 0
    psnr: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        if outcome.failure is not None:
            self.failures.append(outcome.failure)
            return
        self.made += bool(outcome.psnr)
        self.kept += not outcome.psnr
        self.before += outcome.before
        self.after += outcome.after
        self.psnr += outcome.psnr


def originals(found: Manifest) -> dict[str, Path]:
    """Every video of a data set, by its name below the videos' folder.

    Raises:
        InputError: its sources are folders of frames, or not all below one folder.
    """
    if found.frame_pattern is not None:
        raise InputError(f"{found.root}: its sources are folders of frames; only video files are transcoded")
    names = {source + clip.path.suffix: clip.path for source, clip in found.sources().items()}
    roots = {str(path).removesuffix(name): path for name, path in names.items()}
    if len(roots) > 1 or "/" in roots:
        raise InputError(
            f"{found.root}: {list(roots.values())[-1]} is not below the folder of the videos, so data.videos "
            "could not name its copy; write a path relative to that folder in the annotations"
        )
    return names


def transcode_all(
    names: Mapping[str, Path], to: Path, recipe: Recipe, workers: int, progress: Callable[[int, int], None]
) -> Report:
    """Write every video that is not yet in ``to``; ``progress`` is called with (done, total).

    Raises:
        InputError: ``to`` is not empty and was not made by this recipe, or cannot be written.
    """
    report, todo = Report(), []
    lock = _claim(to, recipe, {(to / name).parent for name in names})
    try:
        for name, path in names.items():
            target = to / name
            if target.is_file() and decode.is_whole(target):
                before = path.stat().st_size if path.is_file() else 0
                report.add(Outcome(before, target.stat().st_size))
            else:
                todo.append((path, target, recipe))
        progress(report.kept, len(names))
        for done, outcome in enumerate(_outcomes(todo, workers), start=report.kept + 1):
            report.add(outcome)
            progress(done, len(names))
    finally:
        lock.release()
    report.failures.sort()
    return report


def _claim(to: Path, recipe: Recipe, folders: set[Path]) -> filelock.BaseFileLock:
    """``to`` for this recipe and this process, without what a killed process left."""
    settings = json.dumps(asdict(recipe))
    lock = filelock.FileLock(to / LOCK, timeout=0)
    try:
        to.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if (to / RECIPE).is_file():
            if (made := (to / RECIPE).read_text().strip()) != settings:
                raise InputError(f"--to {to}: was made with {made}, not {settings}; choose another folder")
        elif any(path.name != LOCK for path in to.iterdir()):
            raise InputError(f"--to {to}: is not empty; choose another folder")
        else:
            (to / RECIPE).write_text(settings + "\n")
        for left in [left for folder in folders for left in folder.glob(f".*{UNFINISHED}")]:
            left.unlink()
    except filelock.Timeout:
        raise InputError(f"--to {to}: another transcode writes there; wait for it") from None
    except (InputError, OSError) as error:
        lock.release()
        if isinstance(error, InputError):
            raise
        raise InputError(f"--to {to}: cannot be written ({error.strerror})") from None
    return lock


def _outcomes(todo: list[tuple[Path, Path, Recipe]], workers: int) -> Iterator[Outcome]:
    """In fresh processes, a few at a time, so that 200,000 videos do not wait in memory; one is this one."""
    if min(workers, len(todo)) < 2:
        yield from (transcode(*job) for job in todo)
        return
    context, left = multiprocessing.get_context("spawn"), iter(todo)
    pool = ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_ignore_interrupt)
    try:
        running: dict[Future[Outcome], Path] = {}
        while True:
            for job in islice(left, 2 * workers - len(running)):
                running[pool.submit(transcode, *job)] = job[0]
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield future.result()
                del running[future]
    except BrokenExecutor:
        names = ", ".join(sorted(path.name for path in running.values()))
        raise InputError(f"a process was killed, by one of {names} or for want of memory") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the pool
