"""Tensors of a TorchScript archive, such as OpenAI's original CLIP files, without running what is in it.

Why: `torch.load(weights_only=True)` refuses these archives (so open_clip cannot read OpenAI's file from a
local path), and `torch.jit.load` compiles the archive's code and runs its `__setstate__` methods, which may
write files; it is deprecated besides. The attributes are a pickle, and in it every name but three
kinds (tensor, storage, dict) is met here by an object that takes anything and does nothing. No module
is imported and no function is called because the archive names it.

What it does not do: it reads no code, so there is no module to call; and no quantised or sparse tensors.
"""

import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_archive(path: Path) -> bool:
    """Whether the file is a zip with a TorchScript archive's table of constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def read_archive(path: Path) -> dict[str, Tensor]:
    """Every tensor attribute by its dotted name: parameters and buffers as in the module's state dict.

    Raises whatever a damaged pickle or zip raises.
    """
    with zipfile.ZipFile(path) as file:
        root = next(name for name in file.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        module = _Unpickler(file, root).load()
    found: dict[str, Tensor] = {}
    _collect(module, "", found)
    return found


class _Inert:
    """Stands for whatever class or function the archive names; keeps a module's attributes."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object):
        self.attributes: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(file.read(f"{root}data.pkl")))
        self.file, self.root = file, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        return _Inert

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, _ = pid  # the device that it was on does not matter
        if key not in self.storages:
            content = bytearray(self.file.read(f"{self.root}data/{key}"))
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self.storages[key] = flat
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _collect(module: object, prefix: str, found: dict[str, Tensor]) -> None:
    if not isinstance(module, _Inert):
        raise pickle.UnpicklingError("the archive holds no module")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Inert):
            _collect(value, f"{prefix}{name}.", found)
