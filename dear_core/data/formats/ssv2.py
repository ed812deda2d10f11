"""Something-Something V2 as distributed (Goyal et al. 2017): a folder of ``ID.webm`` and JSON annotations.

``labels.json``, ``train.json``, ``validation.json`` and ``test.json``, also under the longer
``something-something-v2-*.json`` names. A class comes from ``template`` with its brackets removed; the
distributed test split has no templates, so its clips have no labels; answers in other files are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dear_core.config import DataConfig
from dear_core.data.formats.annotation_files import (
    open_folder,
    read_json,
)
from dear_core.data.manifest import Clip, Manifest, unique_ids
from dear_core.errors import InputError

DISTRIBUTED = "20bn-something-something-v2"


def read(data: DataConfig) -> Manifest:
    """Raises ``InputError`` for a missing folder or file, broken JSON, or an unknown template."""
    there = open_folder(data, "labels.json, train.json, validation.json and videos/")
    distributed = Path(data.root) / DISTRIBUTED
    if data.videos is not None:
        videos = Path(data.videos)
    else:
        videos = distributed if distributed.is_dir() else Path(data.root) / "videos"
    labels_file = there.require(*_names("labels"))
    classes = _classes(labels_file)
    index = {text: number for number, text in enumerate(classes)}
    files = {split: there.require(*_names(split)) for split in ("train", "validation")}
    if (test := there.find(*_names("test"))) is not None:
        files["test"] = test
    splits = {
        split: unique_ids(_clips(file, split, index, labels_file.name, videos), file)
        for split, file in files.items()
    }
    return Manifest(Path(data.root), {"label": classes}, splits)


def _names(name: str) -> tuple[str, str]:
    return f"{name}.json", f"something-something-v2-{name}.json"


def _classes(path: Path) -> tuple[str, ...]:
    labels = read_json(path, dict)
    try:
        index = {text: int(number) for text, number in labels.items()}
    except (TypeError, ValueError):
        raise InputError(f"{path}: should map each template to its number") from None
    if not index:
        raise InputError(f"{path}: names no class")
    if sorted(index.values()) != list(range(len(index))):
        raise InputError(f"{path}: the numbers should be 0 to {len(index) - 1}, each once")
    return tuple(sorted(index, key=index.__getitem__))


def _clips(path: Path, split: str, index: dict[str, int], labels_name: str, videos: Path) -> Iterator[Clip]:
    entries = read_json(path, list)
    labelled = split != "test" or any(isinstance(one, dict) and "template" in one for one in entries)
    needed = ("id", "template") if labelled else ("id",)
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str | int) for key in needed):
            raise InputError(f"{path}: entry {number} should be an object with {' and '.join(needed)}")
        labels = None
        if labelled:
            text = str(entry["template"]).replace("[", "").replace("]", "")
            if text not in index:
                raise InputError(
                    f"{path}: entry {number} has template '{text}', which {labels_name} does not have"
                )
            labels = (index[text],)
        name = str(entry["id"])
        yield Clip(name, videos / f"{name}.webm", labels, source=name)
