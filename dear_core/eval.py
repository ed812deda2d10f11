"""Evaluate a checkpoint on its validation split: the figures of the run that wrote it, again.

    python -m dear_core.eval --checkpoint results/runs/KEY/last.pt
    python -m dear_core.eval --checkpoint … --clips 2 --crops 3          # more views of each video
    python -m dear_core.eval --checkpoint … --split test --predictions test.jsonl
    python -m dear_core.eval --checkpoint … --json > scores.json

Everything comes from the checkpoint: model, data set, sizes, precision, CPU threads. The split's
annotations must be the ones it was validated on; a move of the folder is told by --data-root. A split
without labels is predicted, not scored.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dear_core import build, restore
from dear_core.data.manifest import class_names
from dear_core.errors import InputError, readable_errors
from dear_core.predictions import PredictionFile
from dear_core.training import checkpoint
from dear_core.training.evaluate import Bad, evaluate
from dear_core.training.heads import Heads

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    checkpoint: Path
    """A run's last.pt or best.pt."""
    split: Literal["validation", "test", "train"] = "validation"
    """Which split; train is read as validation is, without augmentation."""
    clips: int | None = None
    """Clips of every video whose probabilities are averaged; default: as the run validated."""
    crops: Literal[1, 3] | None = None
    """Square crops of every clip, averaged too; Side4Video tests with 2 clips of 3 crops."""
    data_root: str | None = None
    """Where the data set lies now, if it was moved."""
    predictions: Path | None = None
    """Write the five best classes of every clip here, with probabilities, one JSON object a line."""
    json: bool = False
    """Print JSON alone on standard output, without the table."""
    output: Path | None = None
    """Also write the JSON here."""
    per_class: bool = False
    """Show the accuracy of every class in the table."""


def evaluate_checkpoint(
    path: Path,
    data_root: str | None = None,
    *,
    split: str = "validation",
    clips: int | None = None,
    crops: int | None = None,
    predictions: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Scores of a checkpoint on a split of its data set.

    Returns:
        row, key, epoch, split, views, clips, bad_clips, loss, top1, top5, per_class {text: share}, and
        ``recorded``, the figures that training wrote, to compare with. Without labels no figures.

    Raises:
        InputError: the checkpoint, its data or its tower cannot be used, or too many clips cannot be read.
    """
    saved = checkpoint.read(path)
    asked = {"data.test_clips": clips, "data.test_crops": crops}
    views = {key: value for key, value in asked.items() if value is not None}
    config = build.resolve(restore.config(saved, {**restore.moved(data_root), **views}))
    found = build.manifest(config.data)
    labelled = split in found.splits and found.splits[split][0].labels is not None
    if not labelled and split in found.splits and predictions is None:
        raise InputError(f"--split {split}: has no labels, so it cannot be scored; give --predictions FILE")
    network = restore.network(path, saved, config)
    dataset = build.dataset(config, found, split, train=False)
    loader = build.loader(config, dataset, train=False)
    ids = [one.id for one in found.splits[split]]
    with PredictionFile(predictions, ids, saved.classes) as file:
        scores = evaluate(
            network,
            track(loader, "evaluating", transient=True, console=Console(stderr=True)) if progress else loader,
            Heads.of(saved.classes),
            precision=config.train.precision,
            on_bad=lambda bad: _tell(split, bad),
            on_batch=file.add,
        )
    if scores.bad > config.data.max_bad_fraction * len(dataset):
        raise InputError(
            f"{scores.bad} of the {len(dataset)} clips of the {split} split cannot be read, more than "
            f"data.max_bad_fraction {config.data.max_bad_fraction:g} allows; they are named above"
        )
    per_class = dict(zip(class_names(saved.classes), scores.per_class(), strict=True))
    return {
        "row": config.model.row,
        "key": saved.config.key,
        "epoch": saved.epoch,
        "split": split,
        "views": config.data.test_clips * config.data.test_crops,
        "clips": file.count,
        "bad_clips": scores.bad,
        **({**scores.figures(), "per_class": per_class} if labelled else {}),
        "recorded": dict(saved.figures),
    }


def _tell(split: str, bad: Bad) -> None:
    for number, reason in bad:
        log.warning("left out clip %d of the %s split: %s", number, split, reason)


def show(console: Console, scores: dict[str, Any], *, per_class: bool) -> None:
    console.print(
        f"[bold]{scores['row']}[/], epoch {scores['epoch']}, {scores['clips']} {scores['split']} clips, "
        f"{scores['views']} view{'s' if scores['views'] > 1 else ''} each"
    )
    if "top1" not in scores:
        return
    view = Table("", "Now", "In training")
    recorded = scores["recorded"]
    names = [name for name in scores if name.endswith(("top1", "top5"))]
    for name in (*names, "loss"):
        factor = 1 if name == "loss" else 100
        before = f"{factor * recorded[name]:.6g}" if name in recorded else "–"
        view.add_row(_label(name), f"{factor * scores[name]:.6g}", before)
    console.print(view)
    if per_class:
        classes = Table("Class", "Top-1 %")
        for text, share in scores["per_class"].items():
            classes.add_row(text, "–" if share is None else f"{100 * share:.1f}")
        console.print(classes)


def _label(name: str) -> str:
    """``verb_top1`` as ``Verb top-1 %``."""
    text = name.replace("_", " ").replace("top", "top-")
    return (text if name == "loss" else f"{text} %").capitalize()


def main(options: Options) -> int:
    scores = evaluate_checkpoint(
        options.checkpoint,
        options.data_root,
        split=options.split,
        clips=options.clips,
        crops=options.crops,
        predictions=options.predictions,
        progress=not options.json,
    )
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
