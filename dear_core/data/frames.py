"""Where a clip's frames come from: the video files, or a cache that holds every decoded frame once.

Both give the same bytes: frames resized to ``short_side`` by :func:`decode.resize_short_side`. The cache is
one flat file a split and modality, memory-mapped, so all runs on a node share the page cache. It is filled
once, on all cores, behind a lock; a killed fill starts over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import filelock
import numpy as np

from dear_core.data import decode
from dear_core.errors import InputError

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


class FrameSource(Protocol):
    paths: Sequence[Path]

    def read(self, number: int, pick: Callable[[int], np.ndarray]) -> np.ndarray:
        """Frames (T,H,W,C) uint8 of clip ``number`` at the indices that ``pick(length)`` gives."""
        ...


class VideoSource:
    """Decodes on every read."""

    def __init__(self, paths: Sequence[Path], short_side: int, channels: int) -> None:
        self.paths, self.short_side, self.channels = paths, short_side, channels

    def read(self, number: int, pick: Callable[[int], np.ndarray]) -> np.ndarray:
        path = self.paths[number]
        reader = decode.open_video(path)
        frames = decode.read_frames(reader, path, pick(len(reader)))
        return decode.resize_short_side(frames[..., : self.channels], self.short_side)


class CachedSource:
    """Reads from the memory-mapped cache of a :class:`VideoSource`."""

    def __init__(
        self, source: VideoSource, folder: Path, name: str, progress: Progress | None = None
    ) -> None:
        stem = f"{name}-{_fingerprint(source)}"
        self.paths = source.paths
        self._data, self._index = folder / f"{stem}.bin", folder / f"{stem}.json"
        if not self._index.is_file():
            _make_folder(folder)
            with filelock.FileLock(folder / f"{stem}.lock"):
                if not self._index.is_file():
                    self._fill(source, name, progress)
        rows = json.loads(self._index.read_text())
        self._rows: list[tuple[int, tuple[int, ...]]] = [(row[0], tuple(row[1])) for row in rows]
        self._map: np.ndarray | None = None

    def read(self, number: int, pick: Callable[[int], np.ndarray]) -> np.ndarray:
        if self._map is None:  # opened on first use, so that the source can be sent to a worker
            self._map = np.memmap(self._data, dtype=np.uint8, mode="r")
        offset, shape = self._rows[number]
        frames = self._map[offset : offset + int(np.prod(shape))].reshape(shape)
        return frames[pick(shape[0])]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}

    def _fill(self, source: VideoSource, name: str, progress: Progress | None) -> None:
        def decode_all(number: int) -> np.ndarray:
            return source.read(number, np.arange)

        temporary = self._data.with_suffix(f".{os.getpid()}.tmp")
        rows, offset, total = [], 0, len(source.paths)
        try:
            with temporary.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
                for start in range(0, total, 64):  # bounded, so that memory is
                    numbers = range(start, min(start + 64, total))
                    for frames in pool.map(decode_all, numbers):
                        rows.append([offset, frames.shape])
                        file.write(frames.tobytes())
                        offset += frames.nbytes
                    if progress:
                        progress(len(rows), total, f"decoding {name}")
            temporary.replace(self._data)
        finally:
            temporary.unlink(missing_ok=True)
        index = self._index.with_suffix(f".{os.getpid()}.tmp")
        index.write_text(json.dumps(rows))
        index.replace(self._index)


def _fingerprint(source: VideoSource) -> str:
    digest = hashlib.sha256(f"v1 {source.short_side} {source.channels}\n".encode())
    for path in source.paths:
        if not path.is_file():
            raise InputError(f"{path}: no such video")
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data.cache_dir: {folder} cannot be made ({error.strerror})") from None
