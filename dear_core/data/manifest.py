"""Which clips a data set has, read from its annotation files; nothing is decoded here.

One reader so far: Something-Something V2 as distributed (Goyal et al. 2017), a folder of ``ID.webm`` files
with ``labels.json``, ``train.json`` and ``validation.json``, also under the longer
``something-something-v2-*.json`` names. Labels come from ``template`` with its brackets removed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dear_core.errors import InputError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Clip:
    id: str
    path: Path
    label: int


@dataclass(frozen=True)
class Manifest:
    """``classes[label]`` is a class's text; ``splits["train"]`` its clips in annotation order."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Clip, ...]]

    def identity(self, depth_store: str | None = None) -> str:
        """Hash of labels, clips, file sizes and, where a depth store is read, what made that store."""
        digest = hashlib.sha256(json.dumps([self.classes, depth_store]).encode())
        for split in SPLITS:
            for clip in self.splits[split]:
                line = f"{split} {clip.id} {clip.label} {clip.path.stat().st_size}\n"
                digest.update(line.encode())
        return digest.hexdigest()[:16]

    def flip_targets(self) -> tuple[int | None, ...]:
        return flip_targets(self.classes)


def read_ssv2(root: Path, videos: Path | None = None) -> Manifest:
    """Read Something-Something V2's annotations under ``root``; every named video must exist.

    Raises:
        InputError: a missing folder or file, a broken JSON file, an unknown template, a missing video.
    """
    if not root.is_dir():
        raise InputError(
            f"data.root: {root.absolute()} is no folder; it should hold labels.json, train.json, "
            "validation.json and videos/"
        )
    videos = videos or _video_folder(root)
    if not videos.is_dir():
        raise InputError(f"data.videos: {videos.absolute()} is no folder; it should hold ID.webm files")
    labels_file = _annotation(root, "labels")
    labels = _read_json(labels_file, dict)
    try:
        index = {text: int(number) for text, number in labels.items()}
    except (TypeError, ValueError):
        raise InputError(f"{labels_file}: should map each template to its number") from None
    if sorted(index.values()) != list(range(len(index))):
        raise InputError(f"{labels_file}: the numbers should be 0 to {len(index) - 1}, each once")
    present = {path.name for path in videos.iterdir()}
    splits = {split: _read_split(_annotation(root, split), index, videos, present) for split in SPLITS}
    return Manifest(root, tuple(sorted(index, key=index.__getitem__)), splits)


def flip_targets(classes: tuple[str, ...]) -> tuple[int | None, ...]:
    """For every class the class of its mirrored clip; ``None`` where the mirror has no class.

    "… from left to right" and "… from right to left" exchange; a text without left or right is its own
    mirror; a text that speaks of a side but has no partner must not be mirrored.
    """
    index = {text: number for number, text in enumerate(classes)}
    return tuple(index.get(_mirror(text)) for text in classes)


def _mirror(text: str) -> str:
    swap = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return " ".join(swap.get(word, word) for word in text.split(" "))


def _video_folder(root: Path) -> Path:
    distributed = root / "20bn-something-something-v2"
    return distributed if distributed.is_dir() else root / "videos"


def _annotation(root: Path, name: str) -> Path:
    for candidate in (root / f"{name}.json", root / f"something-something-v2-{name}.json"):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"data.root: {root.absolute()} has no {name}.json (nor something-something-v2-{name}.json)"
    )


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: should be a JSON {'object' if kind is dict else 'list'}")
    return value


def _read_split(path: Path, index: dict[str, int], videos: Path, present: set[str]) -> tuple[Clip, ...]:
    clips, missing = [], []
    for number, entry in enumerate(_read_json(path, list)):
        if not isinstance(entry, dict) or not {"id", "template"} <= entry.keys():
            raise InputError(f"{path}: entry {number} should be an object with id and template")
        text = str(entry["template"]).replace("[", "").replace("]", "")
        if text not in index:
            raise InputError(f"{path}: entry {number} has template '{text}', not in labels.json")
        name = f"{entry['id']}.webm"
        if name not in present:
            missing.append(name)
        clips.append(Clip(str(entry["id"]), videos / name, index[text]))
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path}: names {missing[0]}{others}, not found in {videos.absolute()}; "
            "add the video or remove the entry"
        )
    if not clips:
        raise InputError(f"{path}: names no clip; a split needs at least one")
    return tuple(clips)
