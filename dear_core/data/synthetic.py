"""The demo data set: small rendered tabletop clips in the on-disk form of Something-Something V2.

Why: to show honestly, without a download, whether depth helps. Four of the ten actions can be told
from colour; the other six come in pairs whose colour frames have the same distribution and differ
in depth alone (see scene_actions), so colour alone cannot exceed 70 % accuracy.

Run `python -m dear_core.data.synthetic --root data/demo`. It writes ROOT/videos/<id>.webm, the
annotations labels.json, train.json and validation.json, estimated-like depth in ROOT/depth (see
depth.store), and ROOT/synthetic.json last. An interrupted run is continued by the next one. There
is no test split, no claim to realism, and nothing here reads clips for training.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import uuid
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dear_core.data.scene import (
    DEPTH_HEIGHT,
    draw_scene,
    label_text,
    render_clip,
)
from dear_core.data.scene_actions import TEMPLATES
from dear_core.depth.store import DepthStore, StoreInfo
from dear_core.errors import InputError, readable_errors

__all__ = ["ensure", "generate", "render_clip", "split_labels"]

GENERATOR = 2  # raise when the same parameters would give other files
FIRST_ID = 100001
COMPLETE, STARTED = "synthetic.json", "synthetic.partial.json"
ENCODER = {"deadline": "realtime", "cpu-used": "8", "row-mt": "0", "lag-in-frames": "0", "crf": "24"}
KEY_FRAME_EVERY = 24  # frames


def generate(
    root: str | Path,
    *,
    train: int = 600,
    validation: int = 200,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Make the data set under `root`, or what is missing of it.

    `train` and `validation` count clips; `workers` are processes, by default one per usable core.
    Finished clips of the same parameters are kept. InputError (a ValueError): a bad count, or a
    folder that holds something else. A clip that fails raises RuntimeError with its id.
    """
    root = Path(root)
    parameters = _parameters(train, validation, seed)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise InputError(f"workers is {workers}; give at least 1.")
    _claim(root, parameters)
    (root / "videos").mkdir(exist_ok=True)
    store = DepthStore.create(root / "depth", StoreInfo("synthetic", DEPTH_HEIGHT))
    labels = np.concatenate([split_labels(seed, 0, train), split_labels(seed, 1, validation)])
    depth_ids = store.ids()
    jobs = [
        (root, seed, number, int(label))
        for number, label in enumerate(labels)
        if not (_clip_path(root, number).exists() and _clip_id(number) in depth_ids)
    ]
    if jobs:
        _run(jobs, min(workers, len(jobs)), len(labels), progress)
    entries = [_entry(seed, number, int(label)) for number, label in enumerate(labels)]
    classes = {_plain(template): str(index) for index, template in enumerate(TEMPLATES)}
    _write_json(root / "labels.json", classes)
    _write_json(root / "train.json", entries[:train])
    _write_json(root / "validation.json", entries[train:])
    _write_json(root / COMPLETE, parameters)


def ensure(
    root: str | Path,
    *,
    train: int = 600,
    validation: int = 200,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Like `generate`, but return at once where synthetic.json records the same data set."""
    root = Path(root)
    parameters = _parameters(train, validation, seed)
    if (root / COMPLETE).exists():
        _claim(root, parameters)
        return
    generate(root, train=train, validation=validation, seed=seed, workers=workers, progress=progress)


def split_labels(seed: int, split: int, count: int) -> np.ndarray:
    """Class indices (count,) of a split (0 train, 1 validation): balanced, in random order."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, split, count, 0x1ABE1]))
    classes = len(TEMPLATES)
    whole, rest = divmod(count, classes)
    extra = rng.permutation(classes)[:rest]
    return rng.permutation(np.concatenate([np.tile(np.arange(classes), whole), extra]))


def make_clip(root: Path, seed: int, number: int, label: int) -> None:
    """Render and write one clip: the depth, then the colour, each published by a rename."""
    rgb_THWC, inverse_THW, fps = render_clip(seed, number, label)
    DepthStore.open(root / "depth").write(_clip_id(number), inverse_THW, fps)
    path = _clip_path(root, number)
    part = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.webm")
    try:
        _encode(part, rgb_THWC, fps)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encode(path: Path, rgb_THWC: np.ndarray, fps: int) -> None:
    _, height, width, _ = rgb_THWC.shape
    with av.open(str(path), "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=fps, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.bit_rate = 0  # so that crf alone decides
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        for t, rgb_HWC in enumerate(rgb_THWC):
            frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the pool


def _run(jobs: list[tuple[Path, int, int, int]], workers: int, total: int, progress: bool) -> None:
    """Run the jobs in fresh processes; the first failure or an interrupt cancels what waits."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("demo clips", total=total, completed=total - len(jobs))
        try:
            numbers: dict[Future[None], int] = {pool.submit(make_clip, *j): j[2] for j in jobs}
            for future in as_completed(numbers):
                error = future.exception()
                if error is not None:
                    raise RuntimeError(f"clip {_clip_id(numbers[future])}: {error}") from error
                bar.advance(task)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _parameters(train: int, validation: int, seed: int) -> dict[str, Any]:
    for name, value, least in (("train", train, 1), ("validation", validation, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more.")
    return {"generator": GENERATOR, "train": train, "validation": validation, "seed": seed}


def _claim(root: Path, parameters: dict[str, Any]) -> None:
    """Record the parameters first; refuse a folder that holds anything else."""
    for name in (COMPLETE, STARTED):
        path = root / name
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise InputError(f"{path} is not readable JSON; choose another folder.") from None
            if found != parameters:
                raise InputError(
                    f"{root} holds the data set {found}, not {parameters}; choose another "
                    "folder, or delete it"
                )
    if not (root / STARTED).exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            if (root / COMPLETE).exists():
                return
            raise InputError(f"{root} exists and is no synthetic data set; choose another folder.")
        root.mkdir(parents=True, exist_ok=True)
        _write_json(root / STARTED, parameters)


def _entry(seed: int, number: int, label: int) -> dict[str, Any]:
    """The annotation of one clip, as Something-Something V2's."""
    template, nouns = TEMPLATES[label], draw_scene(seed, number, label).placeholders
    return {
        "id": _clip_id(number),
        "label": label_text(template, nouns),
        "template": template,
        "placeholders": list(nouns),
    }


def _plain(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _clip_id(number: int) -> str:
    return str(FIRST_ID + number)


def _clip_path(root: Path, number: int) -> Path:
    return root / "videos" / f"{_clip_id(number)}.webm"


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    """The command line; see `python -m dear_core.data.synthetic --help`."""

    def command(
        root: Annotated[Path, tyro.conf.arg(help="Folder to make; an unfinished one is continued.")],
        train: Annotated[int, tyro.conf.arg(help="Clips in the train split.")] = 600,
        validation: Annotated[int, tyro.conf.arg(help="Clips in the validation split.")] = 200,
        seed: Annotated[int, tyro.conf.arg(help="Seed of every random choice, 0 or more.")] = 0,
        workers: Annotated[
            int | None, tyro.conf.arg(help="Processes; by default one per usable core.")
        ] = None,
    ) -> None:
        """Make the synthetic demo data set: rendered clips in Something-Something V2's form."""
        generate(root, train=train, validation=validation, seed=seed, workers=workers)

    with readable_errors():
        tyro.cli(command, prog="python -m dear_core.data.synthetic")


if __name__ == "__main__":
    main()
