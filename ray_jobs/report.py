"""The end of a sweep: its table, its picture, and the lines that lead on from it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dear_core.tracking import ui_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """A trial that ended without a result."""

    arm: str
    message: str
    bad_input: bool
    """The user's input was at fault, and ``message`` says how."""


COLUMNS = ("Top-1", "Top-5", "Trainable\nparameters", "GFLOPs\na clip", "Seconds")


def cells(result: Result) -> list[str]:
    """A row's figures as they are shown, in the order of ``COLUMNS``."""
    return [
        f"{100 * result['top1']:.1f}",
        f"{100 * result['top5']:.1f}",
        f"{result['trainable_parameters']:,}",
        f"{result['gflops']:.3f}",
        f"{result['seconds']:.1f}",
    ]


def table(title: str, results: Mapping[str, Result | None]) -> Table:
    """One line an arm, in the sweep's order; an arm without a result says so."""
    view = Table(title=title, title_justify="left", title_style="bold")
    view.add_column("Branches", no_wrap=True, min_width=max(map(len, results)))
    for column in COLUMNS:
        view.add_column(column, justify="right")
    best = best_arm(results)
    for name, result in results.items():
        if result is None:
            view.add_row(name, "failed", style="red")
        else:
            view.add_row(name, *cells(result), style="bold" if name == best else None)
    return view


def markdown(results: Mapping[str, Result | None]) -> str:
    heads = [column.replace("\n", " ") for column in COLUMNS]
    lines = ["| Branches | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(cells(result) if result else ["failed"]) + " |")
    return "\n".join(lines) + "\n"


def best_arm(results: Mapping[str, Result | None]) -> str | None:
    """The arm with the highest top-1; of equal ones the first."""
    finished = {name: result["top1"] for name, result in results.items() if result is not None}
    return max(finished, key=finished.__getitem__) if finished else None


def figure(results: Mapping[str, Result | None]) -> Figure:
    """Top-1 of every class for every arm: which branch helps which action."""
    from matplotlib.figure import Figure

    finished = {name: result for name, result in results.items() if result is not None}
    if not finished:
        return Figure()
    classes = next(iter(finished.values()))["per_class"]
    shown = sorted(classes, key=lambda c: _spread([r["per_class"][c] or 0.0 for r in finished.values()]))[
        -20:
    ]
    view = Figure(figsize=(9, 1.2 + 0.45 * len(shown)), layout="constrained")
    axes = view.subplots()
    height = 0.8 / max(1, len(finished))
    for number, (name, result) in enumerate(finished.items()):
        places = [i + 0.4 - (number + 0.5) * height for i in range(len(shown))]
        label = f"{name} ({100 * result['top1']:.1f})"
        axes.barh(places, [100 * (result["per_class"][c] or 0.0) for c in shown], height, label=label)
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.set(xlabel="top-1 of the class, %", xlim=(0, 100), title="Per class, most different at the top")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return view


def closing(console: Console, title: str, results: Mapping[str, Result | None], uri: str) -> None:
    """Print the table, the best checkpoint with the line that evaluates it, and the line of the UI."""
    console.print()
    console.print(table(title, results))
    best = best_arm(results)
    if best is not None:
        result = results[best]
        assert result is not None
        path = shlex.quote(_short(Path(result["checkpoint"])))
        _say(console, f"Best checkpoint ({best})", _short(Path(result["checkpoint"])))
        _say(console, "Evaluate it", f"{_python()} -m dear_core.eval --checkpoint {path}")
    command = ui_command(uri)
    _say(
        console, "Compare the runs", f"{_python()} -m {command}" if command.startswith("mlflow") else command
    )


def as_json(results: Mapping[str, Result | None]) -> str:
    return json.dumps(results, indent=1)


def _say(console: Console, what: str, line: str) -> None:
    """A heading and a line that can be copied whole: never wrapped, never coloured."""
    console.print(f"\n{what}:")
    console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)


def _python() -> str:
    return shlex.quote(_short(Path(sys.executable)))


def _short(path: Path) -> str:
    """Relative to the working folder where it lies under it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0
