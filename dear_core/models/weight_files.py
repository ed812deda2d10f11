"""Weight files from disk to a mapping, without running anything that is in them.

Why: published checkpoints come as torch files (zipped or of the old form), as safetensors and as
TorchScript archives, some with the arguments of the run beside the tensors. One function reads them all, or
says in one sentence why not.

What it does not do: it knows no model (`weights` finds the tensors' places) and downloads nothing.

What may stand in a torch file beside tensors and plain Python values is `argparse.Namespace`, in which
VideoMamba's trainer keeps its arguments, and numpy's numbers: both only hold values. Any other class or
function refuses the file, as `torch.load(weights_only=True)` has it.
"""

import argparse
import functools
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import safe_globals

from dear_core.models import torchscript_archive

NUMPY_NUMBERS = "?bhilqBHILQefd"  # numpy's codes: bool, integers, floats
NUMPY_SCALAR = np.float64().__reduce__()[0]  # what numpy pickles a number with, wherever this numpy has it
HARMLESS = [
    argparse.Namespace,
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),  # numpy 2
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # numpy 1
    np.dtype,
    *{type(np.dtype(code)) for code in NUMPY_NUMBERS},
]


class WeightsError(ValueError):
    """A weights file cannot be read, or its weights do not fit; the message is one sentence."""


def read_state(path: str | Path) -> Mapping[str, object]:
    """What a .pt, .pth, .bin, .ckpt, .safetensors or TorchScript file holds, on the CPU.

    Zipped torch files and safetensors are mapped into memory, so large ones cost little until used.

    Raises WeightsError: no such file, empty, cut short, no weights file, or one that holds code.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"{path}: no such file")
    if file.stat().st_size == 0:
        raise WeightsError(f"{path}: is empty (0 bytes)")
    try:
        state = _read(file)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise WeightsError(f"{path}: is no whole safetensors file ({error})") from None
    except Exception as error:  # a damaged file fails in any way that a pickle or a zip can
        raise WeightsError(f"{path}: {_why(file, error)}") from None
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not tensors by name")
    if not state:
        raise WeightsError(f"{path}: holds nothing")
    return state


def fingerprint(path: str | Path) -> str:
    """16 hex digits that say what is in a file: the start of its sha256, wherever it lies.

    Raises WeightsError if there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"{path}: no such file")
    facts = file.stat()
    return _sha256(file.absolute(), (facts.st_ino, facts.st_size, facts.st_ctime_ns))[:16]


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, state: tuple[int, int, int]) -> str:
    """Of the file; ``state`` only makes a file that was changed or replaced another one for the cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if torchscript_archive.is_archive(path):
        return torchscript_archive.read_archive(path)
    with safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _why(path: Path, error: Exception) -> str:
    """What kept torch from reading the file, in the words of a sentence."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and name:
        return (
            f"holds more than tensors; reading {name[1]} from it could run code, so save its state dict alone"
        )
    with path.open("rb") as file:
        start = file.read(4)
    cut = start == b"PK\x03\x04" and not zipfile.is_zipfile(path)
    if cut or isinstance(error, EOFError) or "unexpected EOF" in str(error):
        return "is cut short; copy or download it again"
    return "is no weights file, or is damaged"
