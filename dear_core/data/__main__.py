"""Look after a data set: read all of it as training would, or make it faster to read.

    python -m dear_core.data check --data.root /data/ssv2
    python -m dear_core.data check --preset ssv2_vitb16 --data.root /data/ssv2 --sheet clips.png
    python -m dear_core.data transcode --data.root /data/ssv2 --to /data/ssv2-fast

``check`` names what is missing, unreadable or too short, and writes a picture of some clips. ``transcode``
writes every video again so that a clip is decoded faster (docs/data.md). Both can be stopped and go on where
they were. The exit code is 1 if a clip cannot be used, or a video cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dear_core import build, places, presets
from dear_core.config import DataConfig, RunConfig
from dear_core.data import check, sheet, transcode_set
from dear_core.data.manifest import Clip, Manifest
from dear_core.data.transcode import Recipe
from dear_core.depth.store import DepthStore
from dear_core.errors import InputError, readable_errors
from dear_core.runs import make_folder, write_text

EXIT_PROBLEMS = 1
WORDS = {
    "missing": "missing",
    "missing_depth": "without depth",
    "unreadable": "unreadable",
    "short": "too short",
}
SHOWN = 10  # names a list shows in the terminal; the report has all of them


@dataclass(frozen=True)
class Check:
    """Read every clip as training would; tell what is missing, unreadable or too short."""

    data: DataConfig = field(default_factory=DataConfig)
    preset: str | None = None
    """Start from the data keys of a preset, for example ssv2_vitb16."""
    splits: tuple[str, ...] = ()
    """Which splits; default: all that the data set has."""
    no_depth: bool = False
    """Leave depth out; else it is read too if there is a depth store."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes."""
    out: Path | None = None
    """Folder of the report and of what earlier checks found. Default: DEAR_HOME/results/check/ID."""
    sheet: Path | None = None
    """Where the contact sheet goes. Default: OUT/clips.png."""
    sheet_clips: int = 6
    """Clips on the contact sheet."""


@dataclass(frozen=True)
class Transcode:
    """Write every video again, so that a frame is decoded faster; annotations and depth stay as they are."""

    to: Path
    """Folder of the new videos, for data.videos."""
    data: DataConfig = field(default_factory=DataConfig)
    preset: str | None = None
    """Start from the data keys of a preset, for example ssv2_vitb16."""
    codec: Literal["mpeg4", "mjpeg", "h264", "vp9"] = "mpeg4"
    """docs/benchmarks.md has what each costs."""
    gop: int = 8
    """Frames from one key frame to the next."""
    intra: bool = False
    """Key frames only, as --gop 1."""
    height: int = 0
    """Shrink videos whose shorter side has more pixels; 0: keep their size."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes."""


def rewrite(options: Transcode) -> int:
    console, data = Console(), places.absolute_data(options.data)
    recipe = Recipe(options.codec, 1 if options.intra else options.gop, options.height)
    names = transcode_set.originals(build.manifest(data))
    to = places.home() / options.to
    with _bar(console, "videos") as tell:
        report = transcode_set.transcode_all(names, to, recipe, max(1, options.workers), tell)
    for line in report.failures:
        console.print(f"not written: {line}", soft_wrap=True, highlight=False, markup=False)
    psnr = report.psnr
    quality = f" PSNR {sum(psnr) / len(psnr):.1f} dB, at least {min(psnr):.1f}." if psnr else ""
    growth = f"{report.after / report.before:.2f}" if report.before else "-"
    lines = (
        f"{report.made} videos written, {report.kept} were there, {len(report.failures)} failed.{quality}",
        f"On disk: {decimal(report.before)} before, {decimal(report.after)} after ({growth} times).",
        f"To use them: --set data.videos={to}",
    )
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
    return EXIT_PROBLEMS if report.failures else 0


def main(options: Check) -> int:
    logging.getLogger("dear_core").setLevel(logging.ERROR)
    console = Console()
    data = places.absolute_data(options.data).model_copy(update={"cache_dir": None})
    found = build.manifest(data)
    splits = options.splits or tuple(found.splits)
    store = None if options.no_depth else _store(data)
    branches = ["rgb:side4video"] + (["depth:side4video"] if store is not None else [])
    config = RunConfig(data=data).replace({"model.branches": branches})
    out = options.out or places.home() / "results" / "check" / _name(data)
    make_folder(out)
    reports = []
    for split in splits:
        if split not in found.splits:
            raise InputError(f"--splits {split}: the data set has {', '.join(found.splits)}")
        with _bar(console, split) as tell:
            reports.append(
                check.check_split(
                    found,
                    split,
                    partial(_dataset, config, split),
                    check.Ledger(out / "clips.jsonl"),
                    num_frames=data.num_frames,
                    depth=None if store is None else lambda clip: store.path(clip.source),
                    workers=options.workers,
                    progress=tell,
                )
            )
    write_text(out / "report.json", json.dumps([report.as_json() for report in reports], indent=1))
    picture = options.sheet or out / "clips.png"
    _draw(config, found, splits[0], reports[0], options.sheet_clips, picture)
    _show(console, reports, out, picture)
    return EXIT_PROBLEMS if any(report.problems for report in reports) else 0


def _dataset(config: RunConfig, split: str, part: Manifest) -> Any:
    return build.dataset(config, part, split)


def _store(data: DataConfig) -> DepthStore | None:
    root = Path(data.depth_root) if data.depth_root else Path(data.root) / "depth"
    return DepthStore.open(root) if (root / "store.json").is_file() else None


def _name(data: DataConfig) -> str:
    """A folder name for this data set and this way of reading it."""
    text = data.model_dump_json(exclude={"identity", "workers"})
    return f"{Path(data.root).name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; gives the function that moves it, called with (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _draw(
    config: RunConfig, found: Manifest, split: str, report: check.SplitReport, count: int, path: Path
) -> None:
    """The contact sheet, of clips that are there."""
    if not report.there:
        return
    picked = check.spread(report.there, count)
    part = Manifest(found.root, found.heads, {split: picked}, found.frame_pattern)
    strips = check.strips(build.dataset(config, part, split), [_title(found, c) for c in picked])
    try:
        sheet.draw(strips).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--sheet {path}: cannot be written ({error})") from None


def _title(found: Manifest, clip: Clip) -> str:
    if clip.labels is None:
        return clip.id
    texts = [classes[label] for classes, label in zip(found.heads.values(), clip.labels, strict=True)]
    return f"{' '.join(texts)}  ({clip.id})"


def _show(console: Console, reports: list[check.SplitReport], out: Path, picture: Path) -> None:
    table = Table("", *(report.split for report in reports))
    table.add_row("Clips", *(str(report.clips) for report in reports))
    table.add_row("Classes with clips", *(_filled(report) for report in reports))
    for what in ("missing", "missing_depth", "unreadable", "short"):
        table.add_row(WORDS[what].capitalize(), *(str(len(getattr(report, what))) for report in reports))
    rates = (f"{report.read / report.seconds:.1f}" if report.seconds else "read before" for report in reports)
    table.add_row("Clips a second", *rates)
    console.print(table)
    for report in reports:
        for what, word in WORDS.items():
            lines = getattr(report, what)
            for line in lines[:SHOWN]:
                console.print(
                    f"{report.split}, {word}: {line}", soft_wrap=True, highlight=False, markup=False
                )
            if len(lines) > SHOWN:
                console.print(f"{report.split}, {word}: and {len(lines) - SHOWN} more")
    frames = sum(report.frames for report in reports)
    seconds = sum(report.seconds for report in reports)
    if seconds:
        console.print(f"{frames} frames decoded in {seconds:.1f} s, {frames / seconds:.0f} a second.")
    console.print(f"Report: {out / 'report.json'}; pictures: {picture}", soft_wrap=True, highlight=False)


def _filled(report: check.SplitReport) -> str:
    filled = [count for count in report.classes.values() if count]
    return f"{len(filled)} of {len(report.classes)}" + (
        f", {min(filled)} to {max(filled)} each" if filled else ""
    )


def command(arguments: list[str]) -> int:
    base = presets.data_keys(arguments)
    commands = (
        Annotated[Check, tyro.conf.subcommand("check", default=Check(data=base))]
        | Annotated[Transcode, tyro.conf.subcommand("transcode", default=Transcode(tyro.MISSING, base))]
    )
    program = "python -m dear_core.data"
    flags = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(commands, args=arguments, prog=program, description=__doc__, config=flags)
    return main(options) if isinstance(options, Check) else rewrite(options)


if __name__ == "__main__":
    with readable_errors():
        sys.exit(command(sys.argv[1:]))
