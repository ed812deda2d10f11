"""Before anything runs: every arm of a sweep as a validated run, its data checked and decoded.

A wrong key, an impossible combination or a missing file is found here, in seconds, and names the arm.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dear_core import build, places, presets, starting_weights, tracking
from dear_core.config import RunConfig
from dear_core.data import synthetic
from dear_core.errors import InputError
from dear_core.runs import RunFolder
from ray_jobs import search


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked: every arm with the validated run it means."""

    sweep: search.Sweep
    base: RunConfig
    runs: dict[str, tuple[search.Arm, RunConfig]]
    gflops: dict[str, float]
    results: Path
    uri: str
    weights: tuple[str, ...] = ()
    """What was loaded from weights files, a line each, as the arms' networks were built."""

    @property
    def key(self) -> str:
        text = json.dumps([self.sweep.name, sorted(run.key for _, run in self.runs.values())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def results_by_arm(self) -> dict[str, dict | None]:
        return {name: RunFolder(self.results, run.key).result() for name, (_, run) in self.runs.items()}

    def pending(self) -> list[search.Arm]:
        """Arms without a result, the costliest first: the last ones to end are then the short ones."""
        done = self.results_by_arm()
        names = sorted((name for name in self.runs if done[name] is None), key=lambda n: -self.gflops[n])
        return [self.runs[name][0] for name in names]


def make_demo_data(base: RunConfig) -> None:
    """The demo preset's data set is made where it is asked for and not there yet."""
    if base.data.root == presets.DEMO_ROOT:
        synthetic.ensure(places.home() / presets.DEMO_ROOT)


def make(sweep: search.Sweep, base: RunConfig, results: Path) -> Plan:
    """Check every arm before anything runs: keys, files, sizes, and that its network can be built."""
    base = places.absolute(base)
    runs, gflops, weights = {}, {}, {}
    for arm in search.arms(sweep.space):
        try:
            config = build.resolve(base.replace(arm.values))
            network = build.model(config, build.manifest(config.data).num_classes)
        except InputError as error:
            raise InputError(
                f"{error} (arm {arm.name})" if arm.name not in str(error) else str(error)
            ) from None
        runs[arm.name] = (arm, config)
        gflops[arm.name] = build.cost(config, network)["gflops"]
        for part, loaded in starting_weights.reports(network).items():
            weights[f"{part}: {loaded.summary()}"] = None
    return Plan(sweep, base, runs, gflops, results, tracking.default_uri(results), tuple(weights))


def set_aside(plan: Plan, experiment: str) -> None:
    for _, run in plan.runs.values():
        RunFolder(plan.results, run.key).set_aside()
        tracking.set_aside(plan.uri, experiment, run.key)
    tracking.set_aside(plan.uri, experiment, plan.key)


def fill_caches(console: Console, plan: Plan) -> None:
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
