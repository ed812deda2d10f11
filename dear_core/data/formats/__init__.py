"""Readers of annotation files, one module a form of data set; ``read`` chooses by ``data.format``."""

from __future__ import annotations

from dear_core.config import DataConfig
from dear_core.data.formats import epic, lists, ssv2
from dear_core.data.manifest import Manifest

READERS = {"ssv2": ssv2.read, "list": lists.read_list, "csv": lists.read_csv, "epic": epic.read}


def read(data: DataConfig) -> Manifest:
    """The data set of a config; its videos need not be there (see ``Manifest.require_files``).

    Raises:
        InputError: a missing folder or annotation file, or an annotation that cannot be understood.
    """
    return READERS[data.format](data)
