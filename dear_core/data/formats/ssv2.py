"""Something-Something V2 as distributed (Goyal et al. 2017): a folder of ``ID.webm`` and JSON annotations.

``labels.json``, ``train.json``, ``validation.json`` and ``test.json``, also under the longer
``something-something-v2-*.json`` names. Labels come from ``template`` with its brackets removed; the test
split has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dear_core.config import DataConfig
from dear_core.data.manifest import Clip, Manifest, unique_ids
from dear_core.errors import InputError


def read(data: DataConfig) -> Manifest:
    """Raises ``InputError`` for a missing folder or file, broken JSON, or an unknown template."""
    root = Path(data.root)
    if not root.is_dir():
        raise InputError(
            f"data.root: {root.absolute()} is no folder; it should hold labels.json, train.json, "
            "validation.json and videos/"
        )
    annotations = Path(data.annotations) if data.annotations else root
    videos = Path(data.videos) if data.videos else _video_folder(root)
    if not videos.is_dir():
        raise InputError(f"data.videos: {videos.absolute()} is no folder; it should hold ID.webm files")
    labels_file = _annotation(annotations, "labels")
    labels = _read_json(labels_file, dict)
    try:
        index = {text: int(number) for text, number in labels.items()}
    except (TypeError, ValueError):
        raise InputError(f"{labels_file}: should map each template to its number") from None
    if sorted(index.values()) != list(range(len(index))):
        raise InputError(f"{labels_file}: the numbers should be 0 to {len(index) - 1}, each once")
    files = {split: _annotation(annotations, split) for split in ("train", "validation")}
    if (test := _find(annotations, "test")) is not None:
        files["test"] = test
    splits = {
        split: unique_ids(_clips(file, index, videos, labelled=split != "test"), file)
        for split, file in files.items()
    }
    return Manifest(root, {"label": tuple(sorted(index, key=index.__getitem__))}, splits)


def _video_folder(root: Path) -> Path:
    distributed = root / "20bn-something-something-v2"
    return distributed if distributed.is_dir() else root / "videos"


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.json", folder / f"something-something-v2-{name}.json")
    return next((path for path in candidates if path.is_file()), None)


def _annotation(folder: Path, name: str) -> Path:
    found = _find(folder, name)
    if found is None:
        raise InputError(
            f"data.root: {folder.absolute()} has no {name}.json (nor something-something-v2-{name}.json)"
        )
    return found


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: should be a JSON {'object' if kind is dict else 'list'}")
    return value


def _clips(path: Path, index: dict[str, int], videos: Path, *, labelled: bool) -> Iterator[Clip]:
    needed = {"id", "template"} if labelled else {"id"}
    for number, entry in enumerate(_read_json(path, list)):
        if not isinstance(entry, dict) or not needed <= entry.keys():
            raise InputError(
                f"{path}: entry {number} should be an object with {' and '.join(sorted(needed))}"
            )
        labels = None
        if labelled:
            text = str(entry["template"]).replace("[", "").replace("]", "")
            if text not in index:
                raise InputError(f"{path}: entry {number} has template '{text}', not in labels.json")
            labels = (index[text],)
        name = str(entry["id"])
        yield Clip(name, videos / f"{name}.webm", labels, source=name)
