"""Which worker does which video, on a cluster that may grow, shrink, or lose a worker at any time.

Every worker is given a few videos ahead, so that it never waits for the driver. What a lost worker had in
hand is given out again, each such video alone on a worker: a video that loses its worker then, too, is
listed as failed. A lost worker is replaced, unless workers are lost again and again with nothing done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from dear_core.errors import InputError
from ray_jobs.depth_batches import Done, Failed, Item, Outcome

LOOK_EVERY = 5.0  # seconds between looks at the cluster's size
WAIT = 0.5  # seconds
LOSSES = 3  # in a row, with nothing done, for every worker and one more


@dataclass(frozen=True)
class Needs:
    """What one worker takes of a node."""

    cpus: int
    gpus: float = 0.0

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU and " if self.gpus else ""
        return f"{gpus}{self.cpus} CPU{'s' if self.cpus > 1 else ''} for each worker"

    def fits(self) -> int:
        """Workers that the cluster has room for, if nothing else ran there."""
        return sum(self._on(node["Resources"]) for node in ray.nodes() if node["Alive"])

    def _on(self, has: dict[str, float]) -> int:
        count = int(has.get("CPU", 0) // self.cpus)
        return min(count, int(has.get("GPU", 0) / self.gpus + 1e-6)) if self.gpus else count


def needs(cpus: int | None, gpus: float | None) -> Needs:
    """What was asked for, completed for the cluster that is connected.

    Raises:
        InputError: no node has room for that.
    """
    has = ray.cluster_resources()
    all_cpus, all_gpus = has.get("CPU", 0), has.get("GPU", 0)
    if gpus is None:
        gpus = 1.0 if all_gpus else 0.0
    if cpus is None:
        share = all_cpus * gpus / all_gpus if gpus and all_gpus else 1
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
        cpus = max(1, min(8, int(share)) if gpus else min(4, int(largest)))
    wanted = Needs(cpus, gpus)
    if not wanted.fits():
        raise InputError(
            f"--cpus-per-worker {cpus}, --gpus-per-worker {gpus:g}: no node has room for that, the "
            f"cluster has {all_cpus:g} CPUs and {all_gpus:g} GPUs; ask for less"
        )
    return wanted


@dataclass(eq=False)
class _Worker:
    handle: Any
    starting: ray.ObjectRef | None
    calls: dict[ray.ObjectRef, Item] = field(default_factory=dict)
    alone: bool = False
    """Its one call is a video that has lost a worker before."""
    asked: ray.ObjectRef | None = None
    """A call of ``frames``."""
    frames: int = 0


@dataclass
class State:
    """How far it is."""

    total: int
    outcomes: list[Outcome] = field(default_factory=list)
    workers: int = 0
    """Workers that are up."""
    frames: int = 0
    """Frames estimated, also of videos that are not done."""
    given_up: str = ""
    """Why it ended before all videos were tried; "" if it did not."""

    @property
    def failures(self) -> list[Failed]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Failed)]

    @property
    def done(self) -> list[Done]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Done)]


class Pool:
    """Workers and what is left to do.

    ``make(ahead)`` gives a new actor with the methods of ``depth_work.Worker``, which takes ``ahead`` calls
    of ``process`` at once. Without ``workers`` there are as many as there is room for, now and later.
    """

    def __init__(self, make: Callable[[int], Any], needs: Needs, workers: int | None = None) -> None:
        self.needs = needs
        self._make, self._fixed = make, workers
        self._ahead = needs.cpus + 2
        self._workers: list[_Worker] = []
        self._todo: deque[Item] = deque()
        self._suspects: deque[Item] = deque()
        self._lost_in_a_row = 0
        self._looked = 0.0
        self._size = 0
        self._frames_of_lost = 0

    def run(self, items: Iterable[Item], show: Callable[[State], None] = lambda state: None) -> State:
        """Every item's outcome. Raises ``InputError`` where a worker does."""
        self._todo = deque(items)
        state = State(len(self._todo))
        try:
            while len(state.outcomes) < state.total and not state.given_up:
                self._grow()
                self._give()
                self._collect(state)
                state.workers = sum(worker.starting is None for worker in self._workers)
                state.frames = self._frames_of_lost + sum(worker.frames for worker in self._workers)
                show(state)
        finally:
            for worker in self._workers:
                ray.kill(worker.handle)
        state.frames = max(state.frames, sum(done.frames for done in state.done))
        return state

    def _grow(self) -> None:
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._looked, self._size = time.monotonic(), self._fixed or self.needs.fits()
        left = len(self._todo) + len(self._suspects) + sum(len(worker.calls) for worker in self._workers)
        while len(self._workers) < min(self._size, left):
            handle = self._make(self._ahead)
            self._workers.append(_Worker(handle, handle.start.remote()))

    def _give(self) -> None:
        """Suspects go to workers that have nothing in hand; the last videos are shared out evenly."""
        for worker in self._workers:
            if worker.starting is not None or worker.alone:
                continue
            if self._suspects and not worker.calls:
                worker.alone = True
                self._call(worker, self._suspects.popleft())
                continue
            many = len(self._todo) > self._ahead * len(self._workers)
            ahead = self._ahead if many else min(2, self._ahead)
            while self._todo and len(worker.calls) < ahead:
                self._call(worker, self._todo.popleft())

    def _call(self, worker: _Worker, item: Item) -> None:
        worker.calls[worker.handle.process.remote(item)] = item

    def _collect(self, state: State) -> None:
        owners: dict[ray.ObjectRef, _Worker] = {}
        for worker in self._workers:
            if worker.starting is None and worker.asked is None:
                worker.asked = worker.handle.frames.remote()
            refs = [*worker.calls, worker.starting, worker.asked]
            owners |= dict.fromkeys((ref for ref in refs if ref is not None), worker)
        events = [ref for ref, worker in owners.items() if ref is not worker.asked]
        if not events:
            time.sleep(WAIT)  # no room for a worker yet
            return
        ray.wait(events, num_returns=1, timeout=WAIT)
        ready, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        for ref in ready:
            worker = owners[ref]
            if worker not in self._workers:
                continue  # lost a moment ago
            try:
                self._finish(worker, ref, ray.get(ref), state)
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                self._lose(worker, str(error.cause or error).strip().splitlines()[-1], state)
            except RayActorError as error:
                self._lose(worker, f"its process died ({_first_line(error)})", state)
            except RayError as error:
                self._lose(worker, _first_line(error), state)

    def _finish(self, worker: _Worker, ref: ray.ObjectRef, value: Any, state: State) -> None:
        if ref is worker.starting:
            worker.starting = None
        elif ref is worker.asked:
            worker.asked, worker.frames = None, value
        else:
            del worker.calls[ref]
            worker.alone = False
            self._lost_in_a_row = 0
            state.outcomes.append(value)

    def _lose(self, worker: _Worker, reason: str, state: State) -> None:
        self._workers.remove(worker)
        ray.kill(worker.handle)
        self._frames_of_lost += worker.frames
        for item in worker.calls.values():
            if worker.alone:
                state.outcomes.append(Failed(item.source, f"two workers were lost on it: {reason}"))
            else:
                self._suspects.append(item)
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= LOSSES * (1 + self._size):
            state.given_up = f"{self._lost_in_a_row} workers in a row were lost, the last one so: {reason}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
