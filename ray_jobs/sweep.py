"""Train every arm of a sweep with Ray Tune and Optuna, log all to MLflow, and print the table.

    python ray_jobs/sweep.py                                  # the paper's four rows on the demo data
    python ray_jobs/sweep.py --set train.epochs=30 train.seed=1
    python ray_jobs/sweep.py --preset ssv2_vitb16             # the paper's setting on data/ssv2
    python ray_jobs/sweep.py --workers-per-trial 2            # each trial is a DDP group
    ray submit cluster.yaml ray_jobs/sweep.py                 # the same on a cluster

A run is found by what it is: starting a sweep again continues what was interrupted and trains nothing that
has finished. Data and results lie under DEAR_HOME (default: the working folder).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from dear_core import places, presets, tracking
from dear_core.config import RunConfig, parse_assignments
from dear_core.errors import EXIT_BAD_INPUT, InputError, readable_errors
from dear_core.runs import RunFolder, make_folder
from ray_jobs import report, search

if TYPE_CHECKING:
    from ray_jobs.plan import Plan

EXIT_FAILED_TRIALS = 1


@dataclass(frozen=True)
class Options:
    sweep: str = "branches"
    """Which sweep: the name of one that ships with the project (--list), or the path of a Python file."""
    preset: str | None = None
    """Base of every arm instead of the sweep's own: a preset, with encoders after + if wanted, for example
    ssv2_vitb16 or ssv2_vitl14+videomamba_middle."""
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


def main(options: Options) -> int:
    console = Console()
    if options.list:
        return _show_sweeps(console)
    sweep = search.load(options.sweep)
    base = presets.by_name(options.preset) if options.preset else sweep.base()
    base = base.replace(parse_assignments(word for words in options.set for word in words))
    if options.keys:
        return _show_keys(console, base)
    _check_places(options)
    from ray_jobs import plan as planning  # torch takes seconds to import; a misspelt key should not wait

    results = (options.results or places.home() / "results").absolute()
    make_folder(results)
    planning.make_demo_data(base)
    plan = planning.make(sweep, base, results)
    if options.fresh:
        planning.set_aside(plan, options.experiment)
    console.print(f"[bold]{sweep.name}[/]: {sweep.question}", soft_wrap=True)
    for line in plan.weights:
        console.print(f"Weights of {line}", soft_wrap=True, highlight=False, markup=False)
    pending = plan.pending()
    console.print(f"{len(plan.runs)} arms, {len(plan.runs) - len(pending)} of them finished before.")
    failures: list[report.Failure] = []
    if pending:
        planning.fill_caches(console, plan)
        started = time.monotonic()
        failures = _run(options, plan, pending)
        console.print(f"The sweep took {time.monotonic() - started:.0f} s.")
    by_arm = plan.results_by_arm()
    report.closing(console, f"{sweep.name}: validation, last epoch", by_arm, plan.uri)
    for name, result in by_arm.items():
        if result is not None and result.get("bad_clips"):
            left_out = f"{name}: {result['bad_clips']} clips could not be read and were left out, named in "
            folder = RunFolder(plan.results, result["key"])
            console.print(f"{left_out}{folder.bad}", soft_wrap=True, highlight=False, markup=False)
    for failure in failures:
        where = "" if failure.bad_input else f"{failure.arm}: "
        console.print(f"error: {where}{failure.message}", soft_wrap=True, highlight=False, markup=False)
    if any(failure.bad_input for failure in failures):
        return EXIT_BAD_INPUT
    return EXIT_FAILED_TRIALS if None in by_arm.values() else 0


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


def _run(options: Options, plan: Plan, pending: list[search.Arm]) -> list[report.Failure]:
    """Train the pending arms and log the sweep; returns those that failed."""
    from ray_jobs import schedule, trial  # and so does Ray

    parent = tracking.SweepTracker(plan.uri, options.experiment, plan.results)
    schedule.connect(options.ray_address, plan.results / "ray.log")
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
    best = report.best_arm(by_arm)
    figures = {"best/top1": by_arm[best]["top1"]} if best else {}
    files = {"table.md": report.markdown(by_arm), "results.json": report.as_json(by_arm)}
    plots = {"per_class.png": report.figure(by_arm)}
    parent.finish(figures, files, plots, failed=bool(failures))
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
        sys.exit(main(tyro.cli(Options, description=__doc__, config=(FlagCreatePairsOff,))))
