"""The worker of ``depth.py``: a ``Pipeline`` as an actor, on a GPU, a part of one, or some CPUs.

Which video is next is decided in ``depth_pool``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch

from dear_core.depth.estimator import DepthEstimator
from dear_core.depth.store import DepthStore
from dear_core.errors import InputError
from ray_jobs.depth_batches import Done, Item, Outcome
from ray_jobs.depth_pipeline import Pipeline
from ray_jobs.depth_pool import Needs


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    model: str
    weights: str | None
    """Folder of the weights, on every node; none: the hub's cache there."""
    weights_hash: str
    store: str
    precision: Literal["fp32", "bf16"]
    batch: int
    cpus: int
    gpu: bool


class Worker:
    """The actor. ``start`` loads the model; up to ``max_concurrency`` calls of ``process`` are in work."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipeline: Pipeline | None = None

    def start(self) -> None:
        """Raises ``InputError`` if this node lacks the weights or the store, or has other weights."""
        job = self._job
        torch.set_num_threads(job.cpus)
        folder = None if job.weights is None else Path(job.weights)
        device = "cuda" if job.gpu else "cpu"
        estimator = DepthEstimator.load(job.model, folder, device, job.precision)
        if estimator.weights_hash != job.weights_hash:
            raise InputError(
                f"depth model {job.model}: a node has other weights than this one; make them alike"
            )
        self._store = DepthStore.open(Path(job.store))
        # On CPUs the network takes the time. Beside a GPU: VP9 takes four times as long to write as to read.
        decoders, writers = (max(1, job.cpus // 4), max(1, 3 * job.cpus // 4)) if job.gpu else (1, 1)
        self._pipeline = Pipeline(estimator, self._store, job.batch, decoders, writers)

    def process(self, item: Item) -> Outcome:
        assert self._pipeline is not None, "start comes first"
        if self._store.path(item.source).exists():  # by a worker that outlived a killed run
            return Done(item.source, 0)
        return self._pipeline.submit(item).result()

    def frames(self) -> int:
        """Frames estimated so far."""
        return 0 if self._pipeline is None else self._pipeline.frames


def actor(job: Job, needs: Needs, ahead: int) -> Any:
    """A new worker, which is not restarted by Ray: its videos must be given out again."""
    options = {
        "num_cpus": needs.cpus,
        "num_gpus": needs.gpus,
        "max_restarts": 0,
        "max_concurrency": ahead + 2,
    }
    return ray.remote(Worker).options(**options).remote(job)
