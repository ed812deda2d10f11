"""The five best labels of any video, by a checkpoint.

    python -m dear_core.predict clip.mp4 --checkpoint results/runs/KEY/best.pt
    python -m dear_core.predict clip.mp4 --checkpoint … --preview clip-labelled.mp4
    python -m dear_core.predict data/demo/videos/100601.webm --checkpoint … \
        --depth data/demo/depth/100601.webm

Frames are taken as in validation. Where a branch reads depth, it is estimated for the whole video by the
model that the checkpoint names, normalised, encoded and read back as the training's depth store was; --depth
gives a depth video instead. Depth of the demo data was rendered, and no model can estimate it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dear_core import build, distributed, predictions, preview, restore
from dear_core.config import RunConfig
from dear_core.data.batches import collate
from dear_core.data.decode import open_frames
from dear_core.data.manifest import Clip, Manifest
from dear_core.depth.store import DepthStore, StoreInfo, even_size
from dear_core.errors import InputError, readable_errors
from dear_core.training import checkpoint
from dear_core.training.evaluate import predict
from dear_core.training.heads import Heads

RENDERED = "synthetic"  # the demo's depth store
SOURCE = "clip"
BATCH = 8  # frames a step of the depth model


@dataclass(frozen=True)
class Options:
    video: tyro.conf.Positional[Path]
    """Any video file."""
    checkpoint: Path
    """A run's last.pt or best.pt."""
    depth: Path | None = None
    """A depth video of the same frames, for example of a depth store; default: estimated."""
    depth_weights: Path | None = None
    """Folder of the depth model's weights; default: the hub's."""
    preview: Path | None = None
    """Write the video beside its depth, with the labels, here (.mp4)."""
    json: bool = False
    """Print JSON alone."""


def predict_video(
    video: Path,
    path: Path,
    *,
    depth: Path | None = None,
    depth_weights: Path | None = None,
    preview_to: Path | None = None,
    console: Console | None = None,
) -> dict[str, list[list]]:
    """The five best classes of every head with their probabilities, best first.

    Raises:
        InputError: the video, the checkpoint, the depth or a file to write cannot be used.
    """
    open_frames(video)
    saved = checkpoint.read(path)
    # one clip has no other clip whose depth it could get
    own = {"data.depth": "matched"} if saved.config.data.depth == "shuffled" else {}
    config = restore.config(saved, {**own, "data.cache_dir": None, "data.workers": 0})
    network = restore.network(path, saved, config)
    with tempfile.TemporaryDirectory(prefix="dear-depth-") as folder:
        if build.reads_depth(config):
            store = _store(Path(folder), config)
            target = store.path(SOURCE)
            if depth is not None:
                open_frames(depth)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(depth.absolute())
            else:
                _estimate(video, store, config, depth_weights, console)
            config = config.replace({"data.depth_root": folder})
        clip = Clip(video.name, video, None, source=SOURCE)
        found = Manifest(video.parent, saved.classes, {"validation": (clip,)})
        item = build.dataset(config, found, "validation")[0, 0]
        if item["bad"] is not None:
            raise InputError(item["bad"])
        with torch.no_grad():
            scores_BK = predict(network, collate([item]), Heads.of(saved.classes), config.train.precision)
        best = predictions.best(scores_BK[0].cpu(), saved.classes)
        if preview_to is not None:
            shown = target if build.reads_depth(config) else None
            preview.write(preview_to, video, shown, _lines(best))
    return best


def _store(folder: Path, config: RunConfig) -> DepthStore:
    """An empty store of the kind that the checkpoint was trained with."""
    made = config.data.depth_store.model_dump()
    return DepthStore.create(folder, StoreInfo(**made))


def _estimate(
    video: Path, store: DepthStore, config: RunConfig, weights: Path | None, console: Console | None
) -> None:
    """Depth of every frame of ``video`` into ``store``."""
    from dear_core.depth.estimator import DepthEstimator  # transformers takes seconds to import

    named = config.data.depth_store
    if named.model == RENDERED:
        raise InputError(
            "--depth: the checkpoint was trained on rendered depth, which no model estimates; give the depth "
            "video of the clip, for example --depth data/demo/depth/100601.webm"
        )
    assert named.model is not None and named.height is not None
    estimator = DepthEstimator.load(
        named.model, weights, distributed.device(), "bf16" if torch.cuda.is_available() else "fp32"
    )
    if named.weights is not None and estimator.weights_hash != named.weights:
        raise InputError(
            f"--depth-weights: the checkpoint's depth is from {named.model} with weights {named.weights}, "
            f"these are {estimator.weights_hash}; give the ones it was made with"
        )
    reader = open_frames(video)
    parts = []
    with Progress(console=console, transient=True, disable=console is None) as bar:
        task = bar.add_task("estimating depth", total=len(reader))
        for start in range(0, len(reader), BATCH):
            frames_BHWC = reader.read(np.arange(start, min(start + BATCH, len(reader))))
            size = even_size(*frames_BHWC.shape[1:3], named.height)
            parts.append(estimator.estimate(frames_BHWC, size).half().cpu().numpy())
            bar.advance(task, len(frames_BHWC))
    store.write(SOURCE, np.concatenate(parts), reader.rate)


def _lines(best: dict[str, list[list]]) -> list[str]:
    """The best class of every head with its probability, and the runners-up."""
    lines = []
    for head, rows in best.items():
        name = f"{head}: " if len(best) > 1 else ""
        lines += [f"{name}{text}  {100 * share:.1f} %" for text, share in rows[: 3 if len(best) == 1 else 2]]
    return lines


def main(options: Options) -> int:
    console = Console(stderr=True)
    best = predict_video(
        options.video,
        options.checkpoint,
        depth=options.depth,
        depth_weights=options.depth_weights,
        preview_to=options.preview,
        console=None if options.json else console,
    )
    if options.json:
        print(json.dumps({"video": str(options.video), "top5": best}, ensure_ascii=False))
        return 0
    for head, rows in best.items():
        view: Any = Table("", head.capitalize(), "Probability")
        for rank, (text, share) in enumerate(rows, start=1):
            view.add_row(str(rank), text, f"{100 * share:.1f} %")
        Console().print(view)
    if options.preview is not None:
        console.print(f"Preview: {options.preview}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main(tyro.cli(Options, description=__doc__)))
