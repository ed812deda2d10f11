"""What one Tune trial does: train one run, in its own process or in a worker group of Ray Train.

The code that trains is ``dear_core.run.run`` in both. Reports carry our own ``epoch``; Tune's
``training_iteration`` starts again at 1 when a trial is continued.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from dear_core import build
from dear_core.config import load
from dear_core.run import run
from dear_core.runs import RunFolder
from dear_core.tracking import MlflowTracker, Tracker


@dataclass(frozen=True)
class Place:
    """How a trial runs and where its results go; the same for every trial of a sweep."""

    base: dict[str, Any]
    """The sweep's base ``RunConfig`` as plain values, its paths absolute."""
    results: str
    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    workers: int
    cpus: int
    """CPUs, and so threads, of one worker."""
    gpus: float
    metric: str

    def make_tracker(self, folder: RunFolder) -> Tracker:
        return MlflowTracker(self.tracking_uri, self.experiment_id, self.parent_run_id, folder)


def trainable(place: Place) -> Callable[[dict[str, Any]], None]:
    """The function that Tune calls for each trial, with the resources it asks for."""
    if place.workers == 1:
        function = tune.with_parameters(train_here, place=place)
        return tune.with_resources(function, {"cpu": place.cpus, "gpu": place.gpus})
    # The trial only waits, while Ray Train's workers hold the resources in a placement group of their own. If
    # it took any CPU, waiting trials could leave too few for their own workers, and hang. Ray puts this one
    # resource on the head node alone, which is also the safest place for the trial.
    waiting = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    return tune.with_resources(tune.with_parameters(train_in_group, place=place), waiting)


def train_here(params: dict[str, Any], place: Place) -> None:
    """One worker: train in this process, which Tune uses again for the next trial."""
    _train(params["values"], place, tune.report)


def train_in_group(params: dict[str, Any], place: Place) -> None:
    """Several workers: a ``TorchTrainer`` whose reports go on to Tune."""
    reports = TuneReportCallback()
    trainer = ray.train.torch.TorchTrainer(
        _train_as_worker,
        train_loop_config={"values": params["values"], "place": place},
        scaling_config=ray.train.ScalingConfig(
            num_workers=place.workers,
            use_gpu=place.gpus > 0,
            resources_per_worker={"CPU": place.cpus} | ({"GPU": place.gpus} if place.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=str(Path(place.results) / "ray" / "groups"),
            callbacks=[reports],
            # Finite: an error in the code must not be tried again for ever.
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=2),
        ),
    )
    trainer.fit()
    _drain(reports)


def _train_as_worker(config: dict[str, Any]) -> None:
    _train(config["values"], config["place"], ray.train.report)


def _train(values: dict[str, Any], place: Place, report: Callable[[dict[str, Any]], None]) -> None:
    torch.set_num_threads(place.cpus)
    config = build.resolve(load(place.base).replace(values))
    reported = False

    def on_epoch(row: dict[str, Any]) -> None:
        nonlocal reported
        if place.metric in row:
            report({"row": config.model.row, **row})
            reported = True

    result = run(config, Path(place.results), make_tracker=place.make_tracker, on_epoch=on_epoch)
    if not reported:  # the run was finished before: tell what it found
        figures = {f"validation/{name}": result[name] for name in ("loss", "top1", "top5")}
        report({"row": config.model.row, "epoch": result["epochs"], **figures})


def _drain(reports: TuneReportCallback, limit_s: float = 60.0) -> None:
    """Wait until Tune has taken every report: a trial that returns with one in the queue can hang."""
    queue, deadline = reports._training_actor_item_queue, time.monotonic() + limit_s
    while not queue.empty() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)  # the last one is out of the queue but perhaps not yet taken over
