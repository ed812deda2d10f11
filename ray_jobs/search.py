"""What a sweep asks: its file under ``sweeps/`` (or the user's own), its arms, found before anything runs.

A sweep's file has ``base`` (a function that returns a ``RunConfig``), ``METRIC``, ``MODE``, ``BASELINE``
and ``space(trial)``, which suggests values as Optuna does and returns dotted keys with their values.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import pkgutil
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import sweeps
from dear_core.config import RunConfig
from dear_core.errors import InputError

Values = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """One question asked of the model."""

    name: str
    question: str
    base: Callable[[], RunConfig]
    space: Callable[[Any], Values]
    metric: str
    mode: str
    baseline: str | None


@dataclass(frozen=True)
class Arm:
    """One point of a space: what was suggested, and the dotted keys that follow from it."""

    point: Values
    values: Values

    @property
    def name(self) -> str:
        """The suggested values, readable: ``RGB+Depth``, or ``gate=tanh, layers=2`` for several."""
        if not self.point:
            return "the only arm"
        if len(self.point) == 1:
            return str(next(iter(self.point.values())))
        return ", ".join(f"{name}={value}" for name, value in self.point.items())


def shipped() -> list[str]:
    """Names of the sweeps that come with the project."""
    return sorted(module.name for module in pkgutil.iter_modules(sweeps.__path__))


def load(name: str) -> Sweep:
    """A shipped sweep by name, or a Python file by its path."""
    if name in shipped():
        module = importlib.import_module(f"sweeps.{name}")
    elif name.endswith(".py"):
        module = _from_file(Path(name))
    else:
        raise InputError(
            f"--sweep {name}: no such sweep; known are {', '.join(shipped())}, or give a .py file"
        )
    wanted = ("base", "space", "METRIC", "MODE")
    missing = [attribute for attribute in wanted if not hasattr(module, attribute)]
    if missing:
        raise InputError(f"--sweep {name}: the file lacks {', '.join(missing)}; see sweeps/branches.py")
    if module.MODE not in ("max", "min"):
        raise InputError(f"--sweep {name}: MODE is {module.MODE!r}; it should be 'max' or 'min'")
    return Sweep(
        name=Path(name).stem,
        question=(module.__doc__ or "").strip().split("\n")[0],
        base=module.base,
        space=module.space,
        metric=module.METRIC,
        mode=module.MODE,
        baseline=getattr(module, "BASELINE", None),
    )


def arms(space: Callable[[Any], Values], *, most: int = 10_000) -> list[Arm]:
    """Every arm of a finite space, each once, conditions and all, in the order its choices are written.

    Raises:
        InputError: the space suggests a range that cannot be enumerated, or has more than ``most`` arms.
    """
    found, pending = [], deque([()])
    while pending:
        prefix = pending.popleft()
        trial = _Enumerator(prefix)
        found.append(Arm(trial.point, space(trial)))
        if len(found) > most:
            raise InputError(f"the space has more than {most} arms; make it smaller")
        for place in range(len(prefix), len(trial.picked)):
            for other in trial.options[place][1:]:
                pending.append((*trial.picked[:place], other))
    return found


class _Enumerator:
    """Stands in for an Optuna trial: takes ``prefix`` first, then the first option of each suggestion."""

    def __init__(self, prefix: tuple) -> None:
        self._prefix, self.picked, self.options, self.point = prefix, (), [], {}

    def suggest_categorical(self, name: str, choices: Sequence) -> Any:
        if name in self.point:
            return self.point[name]
        place = len(self.picked)
        value = self._prefix[place] if place < len(self._prefix) else choices[0]
        self.picked = (*self.picked, value)
        self.options.append(list(choices))
        self.point[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self.suggest_categorical(name, range(low, high + 1, step))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ):
        if step is None:
            raise InputError(f"{name}: a continuous range cannot be enumerated; give a step or categories")
        values = itertools.takewhile(lambda v: v <= high + 1e-9, (low + i * step for i in itertools.count()))
        return self.suggest_categorical(name, list(values))


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"--sweep {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"sweep_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Tune pickles the space by its module's name
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"--sweep {path}: line {error.lineno} is no valid Python ({error.msg})") from None
    return module
