"""What became of the tensors of a weights file, for the log and for whoever asks later.

Why: a run must be able to say which weights it started from, and what of the file was resampled or left out.

What it does not do: it loads nothing (`weights` does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SHOWN = 3  # names of a group in the long form


@dataclass(frozen=True)
class Reshaped:
    """One tensor that had another shape in the file, as the module names it."""

    key: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        return f"{self.key} {_shape(self.before)} → {_shape(self.after)}, {self.how}"


@dataclass(frozen=True)
class LoadReport:
    """Tensors of one module and one file.

    `loaded` and `missing` (absent from the file) are the module's names and make up all its tensors;
    `unexpected` and `ignored` are the file's names, the latter by the reason why nothing was lost.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[Reshaped, ...] = ()
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line: counts, and the shapes of what was reshaped."""
        parts = [self._counts()]
        if self.reshaped:
            parts.append(f"reshaped {len(self.reshaped)} ({'; '.join(map(str, self.reshaped))})")
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                parts.append(f"{name} {_some(keys)}")
        if self.ignored:
            each = [f"{len(keys)} ({reason})" for reason, keys in self.ignored.items()]
            parts.append(f"ignored {', '.join(each)}")
        return ", ".join(parts + list(self.notes))

    def __str__(self) -> str:
        """The same by the line, with names."""
        lines = [self._counts()]
        lines += [f"  reshaped {one}" for one in self.reshaped]
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                lines.append(f"  {name} {_some(keys)}")
        lines += [f"  ignored {_some(keys)}: {reason}" for reason, keys in self.ignored.items()]
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def _counts(self) -> str:
        return f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.missing)} tensors"


def _shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _some(keys: Sequence[str]) -> str:
    rest = len(keys) - SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return f"{len(keys)} ({', '.join(keys[:SHOWN])}{more})"
