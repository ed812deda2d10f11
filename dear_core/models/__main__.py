"""What the paper's four rows cost: parameters, operations a clip, and where they go.

    python -m dear_core.models
    python -m dear_core.models --preset ssv2_vitl14+videomamba_middle
    python -m dear_core.models --set model.tower.name=ViT-H-14 model.fusion.tokens=patch
    python -m dear_core.models --set model.branches=[rgb:videomamba] --json

Nothing is trained or run: models are built without weights and counted (``flops`` says what is counted).
It reads no data set, so the number of classes is given here, and it downloads no weights. It takes
seconds and needs no GPU.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from dear_core import build, presets
from dear_core.config import RunConfig, parse_assignments
from dear_core.errors import InputError, readable_errors
from dear_core.models import flops

CONVENTION = (
    "M: million. GFLOPs: 2 operations a multiply-add, one clip of {frames} frames of {size}×{size}; papers "
    "that count a multiply-add once show half. A training step is forward and backward of one clip; the "
    "tower is frozen and has no backward. Norms, activations, softmax and additions are not counted."
)


@dataclass(frozen=True)
class Options:
    preset: str = "ssv2_vitb16"
    """A preset, and any named changes to it after a +. An unknown name lists the known ones."""
    set: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="KEY=VALUE ...")] = ()
    """Replace RunConfig keys. With model.branches, that one row is shown instead of the paper's four."""
    classes: int = presets.SSV2_CLASSES
    """Classes that the heads tell apart; Something-Something V2 has 174."""
    json: bool = False
    """Print one JSON object on standard output, without the table."""


@dataclass(frozen=True)
class Cost:
    """Of a model or one part of it; operations in GFLOPs for one clip."""

    parameters: int
    trainable_parameters: int
    gflops: float
    step_gflops: float


@dataclass(frozen=True)
class Row:
    """One row of the table: a model and its parts, which add up to it."""

    row: str
    branches: tuple[str, ...]
    total: Cost
    parts: dict[str, Cost]


def configs(options: Options) -> list[RunConfig]:
    """A config for each row. Raises ``InputError`` for a wrong name, key or value."""
    if options.classes < 1:
        raise InputError(f"--classes {options.classes}: should be at least 1")
    changes = parse_assignments(word for words in options.set for word in words)
    base = presets.by_name(options.preset).replace(changes)
    if "model.branches" in changes:
        return [base]
    return [base.replace({"model.branches": list(branches)}) for branches in presets.PAPER_ROWS]


def measure(config: RunConfig, classes: int) -> Row:
    """One row, from a model without weights. Raises ``InputError`` where no model can be built."""
    with flops.without_weights():
        network = build.model(config.replace({"model.tower.pretrained": None}), classes)
    counted = flops.count(network, build.clip_shapes(config.data, config.model.modalities), backward=True)
    total = _cost(flops.parameters(network), counted.total_flops, counted.step_flops)
    parts = {
        name: _cost(
            flops.parameters(part),
            counted.by_part[name],
            counted.by_part[name] + counted.backward_by_part[name],
        )
        for name, part in flops.parts(network)
    }
    rest = _difference(total, parts)
    if rest.parameters or rest.gflops:
        parts["rest"] = rest
    return Row(config.model.row, tuple(map(str, config.model.branches)), total, parts)


def _cost(parameters: tuple[int, int], forward: int, step: int) -> Cost:
    return Cost(*parameters, gflops=forward / 1e9, step_gflops=step / 1e9)


def _difference(total: Cost, parts: dict[str, Cost]) -> Cost:
    """What the whole has beyond its parts, such as learned weights of the streams."""
    spent = {f.name: sum(getattr(part, f.name) for part in parts.values()) for f in dataclasses.fields(Cost)}
    return Cost(**{name: round(getattr(total, name) - value, 9) for name, value in spent.items()})


def show(console: Console, config: RunConfig, rows: list[Row], *, title: str) -> None:
    """The table; each model's parts are indented below it. On a narrow screen names fold, figures stay."""
    view = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 0, 0, 1), pad_edge=False)
    view.add_column("Row, and where it goes", overflow="fold")
    for head in ("Params\nM", "trained\nM", "GFLOPs\na clip", "share\n%", "GFLOPs\na step"):
        view.add_column(head, justify="right", no_wrap=True, min_width=8 if "FLOPs" in head else 7)
    digits = (
        _digits(max(row.total.parameters for row in rows) / 1e6),
        _digits(max(row.total.step_gflops for row in rows)),
    )
    for row in rows:
        lines = [(row.row, row.total), *((f"  {_label(name)}", cost) for name, cost in row.parts.items())]
        for index, (label, cost) in enumerate(lines):
            cells = _cells(cost, row.total, digits)
            view.add_row(label, *cells, style=None if index else "bold", end_section=cost is lines[-1][1])
    console.print(view)
    convention = CONVENTION.format(frames=config.data.num_frames, size=config.data.crop_size)
    console.print(convention, highlight=False)


def _cells(cost: Cost, whole: Cost, digits: tuple[int, int]) -> list[str]:
    millions = [_figure(count / 1e6, digits[0]) for count in (cost.parameters, cost.trainable_parameters)]
    share = _figure(100 * cost.gflops / whole.gflops if whole.gflops else 0.0, 1)
    return [*millions, _figure(cost.gflops, digits[1]), share, _figure(cost.step_gflops, digits[1])]


def _digits(largest: float) -> int:
    """Digits behind the point: two, or more for a small model."""
    return 2 if largest >= 10 else 4


def _figure(value: float, digits: int) -> str:
    """Zero is a dash; what would be rounded to zero is shown as less than the last digit."""
    if value == 0:
        return "–"
    smallest = 10**-digits
    return f"{value:.{digits}f}" if value >= smallest / 2 else f"<{smallest:.{digits}f}"


def _label(part: str) -> str:
    """``streams.rgb:side4video+depth:videomamba`` → ``fusion with depth:videomamba``."""
    group, _, name = part.partition(".")
    if group == "streams":
        _, pair, other = name.partition("+")
        return f"fusion with {other}" if pair else f"head of {name}"
    return name or group


def main(options: Options) -> int:
    chosen = configs(options)
    rows = [measure(config, options.classes) for config in chosen]
    if options.json:
        report: dict[str, Any] = {
            "preset": options.preset,
            "classes": options.classes,
            "operations_per_multiply_add": 2,
            "clip": {"frames": chosen[0].data.num_frames, "size": chosen[0].data.crop_size},
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        print(json.dumps(report, indent=1))
        return 0
    tower = f"tower {chosen[0].model.tower.name}" if any("tower" in row.parts for row in rows) else "no tower"
    show(Console(), chosen[0], rows, title=f"{options.preset}, {tower}, {options.classes} classes")
    return 0


if __name__ == "__main__":
    with readable_errors():
        prog = "python -m dear_core.models"
        sys.exit(main(tyro.cli(Options, prog=prog, description=__doc__, config=(FlagCreatePairsOff,))))
