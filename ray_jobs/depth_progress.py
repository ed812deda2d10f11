"""How far the depth command is: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ray_jobs.depth_pool import State

LINE_EVERY = 30.0  # seconds


def many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


class Show:
    """Call it with the state of the pool, often; use it as a context."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._started = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("depth"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("videos  {task.fields[rate]:.1f} frames/s  {task.fields[workers]} "),
            TimeRemainingColumn(),
            TextColumn("left{task.fields[failed]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, rate=0.0, workers="", failed="")

    def __enter__(self) -> Show:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, state: State) -> None:
        now = time.monotonic()
        seconds, over = now - self._started, len(state.outcomes)
        rate, failures = state.frames / seconds, len(state.failures)
        failed = f", {failures} failed" if failures else ""
        self._bar.update(
            self._task, completed=over, rate=rate, workers=many(state.workers, "worker"), failed=failed
        )
        if self._console.is_terminal or now - self._said < LINE_EVERY:
            return
        self._said = now
        left = f"{seconds / over * (self._total - over) / 60:.0f} min left" if over else "no video done yet"
        self._console.print(
            f"{over} of {self._total} videos{failed}, {rate:.1f} frames/s, "
            f"{many(state.workers, 'worker')}, {left}"
        )
