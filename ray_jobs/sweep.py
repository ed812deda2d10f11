"""Train every arm of a sweep with Ray Tune and Optuna, log all to MLflow, and print the table.

    python ray_jobs/sweep.py                                  # the paper's four rows on the demo data
    python ray_jobs/sweep.py --set train.epochs=30 train.seed=1
    python ray_jobs/sweep.py --workers-per-trial 2            # each trial is a DDP group
    ray submit cluster.yaml ray_jobs/sweep.py                 # the same on a cluster

A run is found by what it is: starting a sweep again continues what was interrupted and trains nothing that
has finished. Data and results lie under DEAR_HOME (default: the working folder).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import UseAppendAction, arg

from dear_core import build, presets, tracking
from dear_core.config import RunConfig, parse_assignments
from dear_core.data import synthetic
from dear_core.errors import EXIT_BAD_INPUT, InputError, readable_errors
from dear_core.runs import RunFolder, make_folder
from ray_jobs import report, search

EXIT_FAILED_TRIALS = 1


@dataclass(frozen=True)
class Options:
    sweep: str = "branches"
    """Which sweep: the name of one that ships with the project (--list), or the path of a Python file."""
    set: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="KEY=VALUE ...")] = ()
    """Replace keys of the sweep's base RunConfig, for example --set train.epochs=30 train.seed=1.
    Values are YAML. --keys lists every key."""
    workers_per_trial: int = 1
    """Workers of one trial. One trains in the trial's own process, more form a DDP group of Ray Train."""
    cpus_per_worker: int = 1
    """CPUs, and so threads, of one worker."""
    gpus_per_worker: float | None = None
    """GPUs of one worker; a fraction lets one-worker trials share one. Default: 1 if the cluster has any."""
    results: Path | None = None
    """Folder of runs, checkpoints and the MLflow database, seen by every node. Default: DEAR_HOME/results."""
    experiment: str = "dear"
    """MLflow experiment. The server is MLFLOW_TRACKING_URI, or a SQLite file in the results folder."""
    ray_address: str | None = None
    """Ray cluster to use; default: the one running here, else a local one started for this sweep."""
    fresh: bool = False
    """Set finished runs of this sweep aside and train them anew. Nothing is deleted."""
    list: bool = False
    """Show the sweeps that ship with the project, and stop."""
    keys: bool = False
    """Show every RunConfig key with its value in this sweep's base and what it means, and stop."""


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked: every arm with the validated run it means."""

    sweep: search.Sweep
    base: RunConfig
    runs: dict[str, tuple[search.Arm, RunConfig]]
    results: Path
    uri: str

    @property
    def key(self) -> str:
        text = json.dumps([self.sweep.name, sorted(run.key for _, run in self.runs.values())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def results_by_arm(self) -> dict[str, dict | None]:
        return {name: RunFolder(self.results, run.key).result() for name, (_, run) in self.runs.items()}

    def pending(self) -> list[search.Arm]:
        done = self.results_by_arm()
        return [arm for name, (arm, _) in self.runs.items() if done[name] is None]


def main(options: Options) -> int:
    console = Console()
    if options.list:
        return _show_sweeps(console)
    sweep = search.load(options.sweep)
    base = sweep.base().replace(parse_assignments(word for words in options.set for word in words))
    if options.keys:
        return _show_keys(console, base)
    _check_places(options)
    results = (options.results or home() / "results").absolute()
    make_folder(results)
    _make_demo_data(base)
    plan = _plan(sweep, base, results)
    if options.fresh:
        _set_aside(plan, options.experiment)
    console.print(f"[bold]{sweep.name}[/]: {sweep.question}", soft_wrap=True)
    pending = plan.pending()
    console.print(f"{len(plan.runs)} arms, {len(plan.runs) - len(pending)} of them finished before.")
    failures: list[report.Failure] = []
    if pending:
        _fill_caches(console, plan)
        started = time.monotonic()
        failures = _run(options, plan, pending)
        console.print(f"The sweep took {time.monotonic() - started:.0f} s.")
    by_arm = plan.results_by_arm()
    report.closing(console, f"{sweep.name}: validation, last epoch", by_arm, plan.uri)
    for failure in failures:
        where = "" if failure.bad_input else f"{failure.arm}: "
        console.print(f"error: {where}{failure.message}", soft_wrap=True, highlight=False, markup=False)
    if any(failure.bad_input for failure in failures):
        return EXIT_BAD_INPUT
    return EXIT_FAILED_TRIALS if None in by_arm.values() else 0


def home() -> Path:
    """Where data and results lie if nothing else is said: DEAR_HOME, else the working folder."""
    return Path(os.environ.get("DEAR_HOME") or ".").absolute()


def _check_places(options: Options) -> None:
    for name, value in (
        ("--workers-per-trial", options.workers_per_trial),
        ("--cpus-per-worker", options.cpus_per_worker),
    ):
        if value < 1:
            raise InputError(f"{name} {value}: should be at least 1")
    if options.workers_per_trial > 1 and options.gpus_per_worker and options.gpus_per_worker % 1:
        raise InputError(
            f"--gpus-per-worker {options.gpus_per_worker:g}: workers of one group cannot share a GPU; "
            "give a whole number, or --workers-per-trial 1"
        )


def _make_demo_data(base: RunConfig) -> None:
    """The demo preset's data set is made where it is asked for and not there yet."""
    if base.data.root == presets.DEMO_ROOT:
        synthetic.ensure(home() / presets.DEMO_ROOT)


def _plan(sweep: search.Sweep, base: RunConfig, results: Path) -> Plan:
    """Check every arm before anything runs: keys, files, sizes, and that its network can be built."""
    places = {"data.root": base.data.root, "data.videos": base.data.videos}
    places |= {"data.depth_root": base.data.depth_root, "data.cache_dir": base.data.cache_dir}
    base = base.replace({key: str(home() / path) for key, path in places.items() if path is not None})
    runs = {}
    for arm in search.arms(sweep.space):
        try:
            config = build.resolve(base.replace(arm.values))
            build.model(config, len(build.manifest(config.data).classes))
        except InputError as error:
            raise InputError(
                f"{error} (arm {arm.name})" if arm.name not in str(error) else str(error)
            ) from None
        runs[arm.name] = (arm, config)
    return Plan(sweep, base, runs, results, tracking.default_uri(results))


def _set_aside(plan: Plan, experiment: str) -> None:
    for _, run in plan.runs.values():
        RunFolder(plan.results, run.key).set_aside()
        tracking.set_aside(plan.uri, experiment, run.key)


def _fill_caches(console: Console, plan: Plan) -> None:
    """Decode once, here on all cores, what the trials will read; does nothing if it was done."""
    if plan.base.data.cache_dir is None:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, int] = {}

        def show(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        for _, config in plan.runs.values():
            for split in ("train", "validation"):
                build.dataset(config, build.manifest(config.data), split, show)


def _run(options: Options, plan: Plan, pending: list[search.Arm]) -> list[report.Failure]:
    """Train the pending arms and log the sweep; returns those that failed."""
    from ray_jobs import schedule, trial  # Ray takes seconds to import; bad input should not wait for it

    schedule.connect(options.ray_address, plan.results / "ray.log")
    parent = tracking.SweepTracker(plan.uri, options.experiment, plan.results)
    place = trial.Place(
        base=plan.base.model_dump(mode="json"),
        results=str(plan.results),
        tracking_uri=plan.uri,
        experiment_id=parent.experiment_id,
        parent_run_id=parent.start(plan.sweep.name, plan.key, plan.base.flat()),
        workers=options.workers_per_trial,
        cpus=options.cpus_per_worker,
        gpus=schedule.gpus_per_worker(options.gpus_per_worker),
        metric=plan.sweep.metric,
    )
    failures = schedule.train(plan.sweep, pending, place)
    by_arm = plan.results_by_arm()
    figures = {f"top1/{name}": done["top1"] for name, done in by_arm.items() if done is not None}
    files = {"table.md": report.markdown(by_arm), "results.json": report.as_json(by_arm)}
    classes = build.manifest(plan.base.data).classes
    parent.finish(figures, files, {"per_class.png": report.figure(by_arm, classes)}, failed=bool(failures))
    return failures


def _show_sweeps(console: Console) -> int:
    view = Table("Sweep", "Question", "Arms")
    for name in search.shipped():
        sweep = search.load(name)
        view.add_row(name, sweep.question, str(len(search.arms(sweep.space))))
    console.print(view)
    return 0


def _show_keys(console: Console, base: RunConfig) -> int:
    view = Table("Key", "Value", "Meaning")
    for key, value, meaning in base.explain():
        view.add_row(key, str(value), meaning)
    console.print(view)
    return 0


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main(tyro.cli(Options, description=__doc__)))
