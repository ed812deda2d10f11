"""Evaluate a checkpoint on its validation split: the figures of the run that wrote it, again.

    python -m dear_core.eval --checkpoint results/runs/KEY/last.pt
    python -m dear_core.eval --checkpoint … --json > scores.json

Everything comes from the checkpoint: model, data set, sizes, precision, CPU threads. The split's
annotations must be the ones it was validated on; a move of the folder is told by --data-root.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from dear_core import build, distributed
from dear_core.errors import InputError, readable_errors
from dear_core.models.clip import tower_hash
from dear_core.training import checkpoint
from dear_core.training.evaluate import evaluate


@dataclass(frozen=True)
class Options:
    checkpoint: Path
    """A run's last.pt or best.pt."""
    data_root: str | None = None
    """Where the data set lies now, if it was moved."""
    json: bool = False
    """Print JSON alone on standard output, without the table."""
    output: Path | None = None
    """Also write the JSON here."""
    per_class: bool = False
    """Show the accuracy of every class in the table."""


def evaluate_checkpoint(path: Path, data_root: str | None = None) -> dict[str, Any]:
    """Scores of a checkpoint on its validation split.

    Returns:
        row, key, epoch, clips, loss, top1, top5, per_class {text: share}, and ``recorded``, the figures that
        training wrote, to compare with.

    Raises:
        InputError: the checkpoint, its data or its tower cannot be used.
    """
    saved = checkpoint.read(path)
    config = saved.config
    if data_root is not None:
        moved = {"data.root": data_root, "data.videos": None, "data.depth_root": None, "data.cache_dir": None}
        config = config.replace(moved)
    # the branches' weights come from the checkpoint, so the files that they started from may be gone
    config = config.replace({"model.side4video.pretrained": None, "model.videomamba.pretrained": None})
    config = build.resolve(config)
    torch.set_num_threads(saved.threads)
    network = build.model(config, len(saved.classes))
    if network.tower is not None and tower_hash(network.tower) != saved.tower:
        raise InputError(
            f"{path}: was trained beside another frozen tower than {config.model.tower.name} "
            f"({config.model.tower.pretrained or 'random'}) gives here; use the weights it was trained with"
        )
    try:
        network.load_trainable_state(saved.model)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    split = build.dataset(config, build.manifest(config.data), "validation")
    scores = evaluate(
        network.to(distributed.device()),
        build.loader(config, split, train=False),
        num_classes=len(saved.classes),
        precision=config.train.precision,
    )
    return {
        "row": config.model.row,
        "key": config.key,
        "epoch": saved.epoch,
        "clips": scores.clips,
        **scores.figures(),
        "per_class": dict(zip(saved.classes, scores.per_class(), strict=True)),
        "recorded": dict(saved.figures),
    }


def show(console: Console, scores: dict[str, Any], *, per_class: bool) -> None:
    console.print(f"[bold]{scores['row']}[/], epoch {scores['epoch']}, {scores['clips']} validation clips")
    view = Table("", "Now", "In training")
    recorded = scores["recorded"]
    for name, label in (("top1", "Top-1 %"), ("top5", "Top-5 %"), ("loss", "Loss")):
        factor = 1 if name == "loss" else 100
        before = f"{factor * recorded[name]:.6g}" if name in recorded else "–"
        view.add_row(label, f"{factor * scores[name]:.6g}", before)
    console.print(view)
    if per_class:
        classes = Table("Class", "Top-1 %")
        for text, share in scores["per_class"].items():
            classes.add_row(text, "–" if share is None else f"{100 * share:.1f}")
        console.print(classes)


def main(options: Options) -> int:
    scores = evaluate_checkpoint(options.checkpoint, options.data_root)
    text = json.dumps(scores, indent=1)
    if options.output is not None:
        try:
            options.output.write_text(text + "\n")
        except OSError as error:
            raise InputError(f"--output {options.output}: cannot be written ({error.strerror})") from None
    if options.json:
        print(text)
    else:
        show(Console(), scores, per_class=options.per_class)
    return 0


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main(tyro.cli(Options, description=__doc__)))
