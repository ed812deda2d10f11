"""Estimate the depth of every frame of a data set, on all GPUs or CPUs of a Ray cluster, or of this machine.

    python ray_jobs/depth.py --data.root /path/to/ssv2                       # Intel/dpt-hybrid-midas
    python ray_jobs/depth.py --preset ssv2_vitb16 --model depth-anything/Depth-Anything-V2-Small-hf
    python ray_jobs/depth.py --data.root /path --weights FOLDER --precision bf16 --gpus-per-worker 0.5
    python ray_jobs/depth.py --data.root /path --verify                      # is the store whole?
    ray submit cluster.yaml ray_jobs/depth.py                                # the same on a cluster

Each video becomes one file of the depth store, whole or not at all; the same command goes on after a kill,
does nothing that is done, and tries again what failed. Videos that cannot be read are listed at the end, with
exit code 1. The store is --out, data.depth_root or ROOT/depth; relative paths lie below DEAR_HOME.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pydantic
import tyro
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff

from dear_core import places, presets
from dear_core.config import DataConfig
from dear_core.errors import InputError, readable_errors

if TYPE_CHECKING:
    from dear_core.data.manifest import Clip, Manifest
    from dear_core.depth.store import DepthStore
    from ray_jobs.depth_pool import Pool
    from ray_jobs.depth_work import Job

EXIT_FAILED_VIDEOS = 1

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Options:
    data: DataConfig = field(default_factory=DataConfig)
    """Which videos; of these, root, format, videos, annotations, frame-pattern and depth-root matter."""
    preset: str | None = None
    """Take the data set's keys from a preset; those given here go before."""
    model: str = "Intel/dpt-hybrid-midas"
    """Intel/dpt-hybrid-midas, Intel/dpt-large, or depth-anything/Depth-Anything-V2-Small-hf, -Base-hf,
    -Large-hf."""
    weights: Path | None = None
    """Folder of the model in transformers' form, seen by every node. Default: the hub, and its cache."""
    out: Path | None = None
    """Folder of the depth store, seen by every node. Default: data.depth_root, or ROOT/depth."""
    height: int = 240
    """Shorter side of the depth videos, in pixels."""
    normalisation: Literal["video-minmax", "video-percentile"] | None = None
    """How depth becomes grey levels, over a whole video (docs/depth.md). Default: video-minmax."""
    codec: str | None = None
    """How grey levels are encoded; a wrong name lists the known ones (docs/depth.md)."""
    batch: int = 16
    """Frames that the network sees at once."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster on a GPU; the layer that gives the depth stays fp32."""
    workers: int | None = None
    """Workers at once. Default: as many as the cluster has room for, also when it grows."""
    gpus_per_worker: float | None = None
    """0.5 lets two workers share a GPU. Default: 1 if the cluster has any, else 0."""
    cpus_per_worker: int | None = None
    """On a GPU, threads that decode and encode; without one, threads of the network too. Default: with GPUs
    an equal share of the cluster's CPUs, at most 8; without, 4 or what there is."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    """Splits whose videos are wanted; one that the data set lacks counts nothing."""
    ray_address: str | None = None
    """Ray cluster to use; default: the one running here, else a local one started for this command."""
    verify: bool = False
    """Estimate nothing; check the store's videos and their frames against the data set."""


def main(options: Options) -> int:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    _check_numbers(options)
    from dear_core.data import formats  # torch takes seconds to import
    from dear_core.depth.store import DepthStore

    try:
        data = places.absolute_data(options.data)
    except pydantic.ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    manifest = formats.read(data)
    sources = manifest.sources(options.splits)
    _require_files(manifest, options.splits)
    out = places.home() / (options.out or data.depth_root or Path(data.root) / "depth")
    if options.verify:
        return _verify(console, options, DepthStore.open(out), manifest)
    store = _open_store(options, out)
    try:
        with FileLock(out / ".depth.lock", timeout=0):
            return _estimate(console, options, store, manifest, sources)
    except Timeout:
        raise InputError(f"{out}: another depth command is writing there; wait for it, or stop it") from None


def _check_numbers(options: Options) -> None:
    for name in ("batch", "workers", "cpus_per_worker"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: should be at least 1")
    if options.gpus_per_worker is not None and options.gpus_per_worker < 0:
        raise InputError(f"--gpus-per-worker {options.gpus_per_worker:g}: should be 0 or more")


def _require_files(manifest: Manifest, splits: Sequence[str]) -> None:
    missing = manifest.missing(splits)
    if missing:
        names = ", ".join(str(path) for path in missing[:5])
        others = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"{manifest.root}: its annotations name files that are not there: {names}{others}; "
            "add them or remove the entries"
        )


def _weights_folder(options: Options) -> Path | None:
    return None if options.weights is None else places.home() / options.weights


def _open_store(options: Options, out: Path) -> DepthStore:
    """The store, made if there is none; it fits the model, or this raises ``InputError``."""
    from dear_core.depth.estimator import find_weights
    from dear_core.depth.store import DepthStore, StoreInfo

    found = find_weights(options.model, _weights_folder(options))
    ways = {"normalisation": options.normalisation, "codec": options.codec}
    given = {name: value for name, value in ways.items() if value is not None}
    return DepthStore.create(out, StoreInfo(options.model, options.height, weights=found.hash, **given))


def _estimate(
    console: Console, options: Options, store: DepthStore, manifest: Manifest, sources: dict[str, Clip]
) -> int:
    from ray_jobs.depth_batches import Item  # torch, too
    from ray_jobs.depth_progress import Show, many

    _remove_parts(store)
    done_before = store.ids()
    for source in sources:
        store.path(source)  # refuses a name that cannot be one
    items = [
        Item(source, str(clip.path.absolute()), manifest.frame_pattern, clip.frames)
        for source, clip in sources.items()
        if source not in done_before
    ]
    skipped = len(sources) - len(items)
    console.print(f"{len(sources)} videos, {skipped} of them done before, {len(items)} to do: {store.root}")
    if not items:
        return 0
    started = time.monotonic()
    job, pool = _pool(options, store)
    console.print(f"Model {job.model}, weights {job.weights_hash}; {pool.needs}")
    with Show(console, len(items)) as show:
        state = pool.run(items, show)
    for failure in state.failures:
        console.print(f"failed: {failure.source}: {failure.reason}")
    seconds = time.monotonic() - started
    console.print(
        f"{many(len(state.done), 'video')}, {many(state.frames, 'frame')} in {seconds:.0f} s "
        f"({state.frames / seconds:.1f} frames/s); {skipped} done before; {len(state.failures)} failed"
    )
    if state.given_up:
        console.print(f"error: {state.given_up}")
    if state.failures or state.given_up:
        console.print("The same command tries again what is not done.")
        return EXIT_FAILED_VIDEOS
    return 0


def _remove_parts(store: DepthStore) -> None:
    """What writers left that were killed; there is no other writer, as this command holds the lock."""
    for path in store.root.rglob(".*"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.\w+", path.name):
            path.unlink(missing_ok=True)


def _pool(options: Options, store: DepthStore) -> tuple[Job, Pool]:
    """The workers to be, on a cluster that is there; the model is known to load."""
    from dear_core.depth.estimator import DepthEstimator
    from ray_jobs import depth_pool, depth_work, schedule  # Ray takes seconds, too

    weights = _weights_folder(options)
    weights_hash = DepthEstimator.load(options.model, weights).weights_hash
    schedule.connect(options.ray_address, store.root / ".ray.log")
    needs = depth_pool.needs(options.cpus_per_worker, options.gpus_per_worker)
    job = depth_work.Job(
        model=options.model,
        weights=None if weights is None else str(weights),
        weights_hash=weights_hash,
        store=str(store.root),
        precision=options.precision,
        batch=options.batch,
        cpus=needs.cpus,
        gpu=needs.gpus > 0,
    )
    return job, depth_pool.Pool(lambda ahead: depth_work.actor(job, needs, ahead), needs, options.workers)


def _verify(console: Console, options: Options, store: DepthStore, manifest: Manifest) -> int:
    """Count the frames of every source, in threads, and let the store compare.

    Depth of splits that were not asked for is checked where it is there.
    """
    from dear_core.data import decode

    def count(clip: Clip) -> int | str:
        try:
            return len(decode.open_frames(clip.path, manifest.frame_pattern, clip.frames))
        except InputError as error:
            return str(error)

    wanted, there = manifest.sources(options.splits), store.ids()
    others = {source: clip for source, clip in manifest.sources().items() if source in there}
    sources = wanted | others
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        found = threads.map(count, sources.values())
        counts = dict(zip(sources, bar.track(found, len(sources), description="counting"), strict=True))
        frames = {source: n if isinstance(n, int) else None for source, n in counts.items()}
        wrong = [reason for reason in counts.values() if isinstance(reason, str)]
        task = bar.add_task("checking", total=len(frames))
        wrong += store.verify(frames, lambda done, total, what: bar.update(task, completed=done))
    for sentence in wrong:
        console.print(sentence)
    total = sum(number or 0 for number in frames.values())
    console.print(f"{len(sources)} videos, {total} frames: {len(wrong) or 'nothing'} wrong in {store.root}")
    return EXIT_FAILED_VIDEOS if wrong else 0


if __name__ == "__main__":
    with readable_errors():
        base = Options(data=presets.data_keys(sys.argv[1:]))
        sys.exit(main(tyro.cli(Options, description=__doc__, default=base, config=(FlagCreatePairsOff,))))
