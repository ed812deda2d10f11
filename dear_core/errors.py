"""The one error that a user is meant to read.

An ``InputError`` says in one sentence what is wrong, where (dotted key, file, line) and what would be
right. Entry points print that sentence and exit with code 2; they show no traceback. Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class InputError(ValueError):
    """Something the user gave cannot be used: a key, a value, a file, a folder."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Wrap an entry point: an ``InputError`` or Ctrl-C becomes one line on stderr and an exit code."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
