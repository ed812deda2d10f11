"""The five best classes of every clip, in a file of one JSON object a line.

    {"clip": "74225", "label": {"label": "Pushing it"}, "top5": {"label": [["Pushing it", 0.61], …]}}

``label`` is left out where the split has none. The file appears when it is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from dear_core.errors import InputError
from dear_core.training.heads import Heads


def best(scores_K: Tensor, classes: Mapping[str, Sequence[str]], count: int = 5) -> dict[str, list[list]]:
    """The best classes of every head with their probabilities, best first."""
    found: dict[str, list[list]] = {}
    for (head, texts), part in zip(classes.items(), Heads.of(dict(classes)).split(scores_K), strict=True):
        top = part.double().softmax(0).topk(min(count, len(texts)))
        numbers, shares = top.indices.tolist(), top.values.tolist()
        found[head] = [[texts[n], round(p, 6)] for n, p in zip(numbers, shares, strict=True)]
    return found


class PredictionFile:
    """Written while a split is evaluated; use as a context. ``path`` None: nothing is written."""

    def __init__(
        self, path: Path | None, clip_ids: Sequence[str], classes: Mapping[str, Sequence[str]]
    ) -> None:
        self.path, self.clip_ids, self.classes = path, clip_ids, classes
        self.count = 0

    def __enter__(self) -> PredictionFile:
        if self.path is not None:
            self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                self._file = self._part.open("w", encoding="utf-8")
            except OSError as error:
                raise InputError(f"{self.path}: cannot be written ({error.strerror})") from None
        return self

    def add(self, batch: dict, scores_BK: Tensor) -> None:
        """The clips of a batch with their scores (B,K)."""
        self.count += len(scores_BK)
        if self.path is None:
            return
        rows = zip(
            batch["index"].tolist(), batch["labels"].tolist(), torch.as_tensor(scores_BK).cpu(), strict=True
        )
        for index, labels, scores_K in rows:
            row: dict[str, object] = {"clip": self.clip_ids[index]}
            if min(labels) >= 0:
                named = zip(self.classes.items(), labels, strict=True)
                row["label"] = {head: texts[label] for (head, texts), label in named}
            row["top5"] = best(scores_K, self.classes)
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is None:
            return
        self._file.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)
