"""Ray Tune with Optuna: which run is next, and where.

Ray's own chatter goes to a log file among the results; the terminal has Tune's table of trials.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.search.optuna import OptunaSearch

from dear_core.errors import InputError
from ray_jobs import trial
from ray_jobs.report import Failure
from ray_jobs.search import Arm, Sweep, Values

WORKER_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A busy host may need longer than the default 60 s to start a worker group.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # After each operator torch's threads wait spinning, milliseconds by default, and hold the cores that the
    # compiled scan needs next: a step of VideoMamba-S took 1.2 to 1.4 times as long.
    "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
}
DRIVER_ENVIRONMENT = WORKER_ENVIRONMENT | {
    "RAY_AIR_NEW_OUTPUT": "0",  # the reporter that can be told which columns to show
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # figures go to MLflow
}


def connect(address: str | None, log_file: Path) -> None:
    """Join the cluster at ``address``, or the one started here, or start a local one."""
    handler = logging.FileHandler(log_file)
    for name in ("ray", "ray.tune", "ray.train"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    os.environ.update(DRIVER_ENVIRONMENT)
    for patience in (True, True, False):
        try:
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
            )
        except Exception as error:  # Ray raises no narrower class when a busy host is slow to start it
            if not patience or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
        else:
            return


def train(sweep: Sweep, pending: Sequence[Arm], place: trial.Place) -> list[Failure]:
    """Run every pending arm once; returns the failed ones. Ray is connected."""
    results = tune.Tuner(
        trial.trainable(place),
        tune_config=tune.TuneConfig(
            search_alg=optuna_search(sweep, pending),
            num_samples=len(pending),
            max_concurrent_trials=_most_at_once(place),
            reuse_actors=place.workers == 1,
            trial_name_creator=lambda t: f"{sweep.name}_{t.trial_id}",
            trial_dirname_creator=lambda t: t.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"{sweep.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=str(Path(place.results) / "ray"),
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=1,
            progress_reporter=_reporter(sweep, pending),
        ),
    ).fit()
    return [_failure(result.error, result.config, pending) for result in results if result.error is not None]


def optuna_search(sweep: Sweep, pending: Sequence[Arm]) -> OptunaSearch:
    """Optuna's search, told to try exactly the ``pending`` arms, in their order.

    Every arm is enqueued once and as many trials are asked for as there are arms, so no sampler draws
    (Optuna's ``GridSampler`` runs cells twice when points are enqueued, and never ends).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(
        space=_Space(sweep.space),
        metric=sweep.metric,
        mode=sweep.mode,
        points_to_evaluate=[arm.point for arm in pending],
        study_name=sweep.name,
    )


def gpus_per_worker(asked: float | None) -> float:
    """What was asked for, else one GPU if the cluster has any."""
    if asked is not None:
        return asked
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


@dataclass(frozen=True)
class _Space:
    """Trials receive the dotted keys under one name, apart from what was suggested. Tune pickles it."""

    space: Callable[[Any], Values]

    def __call__(self, optuna_trial: Any) -> Values:
        return {"values": self.space(optuna_trial)}


def _most_at_once(place: trial.Place) -> int:
    """As many trials as the cluster holds worker groups now; at least one."""
    have = ray.cluster_resources()
    fits = have.get("CPU", 1) // (place.workers * place.cpus)
    if place.gpus:
        fits = min(fits, have.get("GPU", 0) // (place.workers * place.gpus))
    if fits < 1:
        raise InputError(
            f"--workers-per-trial {place.workers} × --cpus-per-worker {place.cpus}, "
            f"--gpus-per-worker {place.gpus:g}: the cluster has {have.get('CPU', 0):g} CPUs and "
            f"{have.get('GPU', 0):g} GPUs; ask for less"
        )
    return int(fits)


def _name(config: dict[str, Any], pending: Sequence[Arm]) -> str:
    """The arm's name of a trial, from the values that it was given."""
    return next((arm.name for arm in pending if arm.values == config.get("values")), "?")


def _reporter(sweep: Sweep, pending: Sequence[Arm]) -> tune.CLIReporter:
    """Tune's table of trials: what each was given, and how far it is."""
    suggested = dict.fromkeys(name for arm in pending for name in arm.point)
    shown = {"epoch": "epoch", "train/loss": "train loss", "validation/top1": "top-1", "seconds": "seconds"}
    return tune.CLIReporter(
        metric_columns=shown | {sweep.metric: shown.get(sweep.metric, sweep.metric)},
        parameter_columns=list(suggested),
        print_intermediate_tables=True,
        max_column_length=40,
        max_report_frequency=10,
    )


def _failure(error: Exception, config: dict[str, Any] | None, pending: Sequence[Arm]) -> Failure:
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    name = _name(config or {}, pending)
    if isinstance(cause, InputError):
        return Failure(name, str(cause), bad_input=True)
    return Failure(name, f"{type(cause).__name__}: {cause}", bad_input=False)
