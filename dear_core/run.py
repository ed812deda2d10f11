"""One run from its config to its result: found by its key, started, continued, or already done.

Knows no launcher. Every worker of a run calls :func:`run`; worker 0 tracks and writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dear_core import build, distributed
from dear_core.config import RunConfig
from dear_core.data.manifest import class_names
from dear_core.runs import RunFolder
from dear_core.tracking import NoTracker, Tracker
from dear_core.training.loop import Row, fit
from dear_core.training.metrics import Scores


def run(
    config: RunConfig,
    results: Path,
    *,
    make_tracker: Callable[[RunFolder], Tracker] | None = None,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:
    """Do what is still to be done of ``config``'s run and return its result.

    Args:
        config: from :func:`dear_core.build.resolve`.
        results: folder of all runs; every worker sees the same one.
        make_tracker: makes worker 0's tracker; nothing is tracked without it.
        on_epoch: called on every worker after each epoch.

    Returns:
        What ``result.json`` holds; for a finished run, without training anything.
    """
    folder = RunFolder(results, config.key)
    first = distributed.rank() == 0
    with folder.lock() if first else contextlib.nullcontext():
        distributed.barrier()
        done = folder.result()
        if done is not None:
            return done
        if first:
            folder.create(config)
        distributed.barrier()
        tracker = make_tracker(folder) if make_tracker and first else NoTracker()
        job = build.job(config)
        tracker.start(config)
        try:
            scores = fit(job, folder, lambda row: (tracker.rows(), on_epoch(row)))
        except BaseException as error:  # whatever ends the run, Ctrl-C too, is recorded and goes on its way
            tracker.fail(f"{type(error).__name__}: {error}")
            raise
        result = _result(config, folder, scores, build.cost(config, job.model), job.classes)
        if first:
            folder.finish(result)
        tracker.finish(result)
        distributed.barrier()
        return result


def _result(
    config: RunConfig,
    folder: RunFolder,
    scores: Scores,
    cost: dict[str, float],
    classes: dict[str, tuple[str, ...]],
) -> dict[str, Any]:
    return {
        "key": config.key,
        "row": config.model.row,
        "epochs": config.train.epochs,
        **scores.figures(),
        "clips": scores.clips,
        "bad_clips": len(folder.bad_clips()),
        "per_class": dict(zip(class_names(classes), scores.per_class(), strict=True)),
        **cost,
        "seconds": folder.history()[-1]["seconds"],
        "checkpoint": str(folder.last.absolute()),
    }
