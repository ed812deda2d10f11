"""Where a clip's frames come from: its files, or a cache that holds every decoded frame once.

Files give frames at their own size; the cache gives them resized by :func:`decode.resize_short_side`. The
cache is one flat file a split and modality, memory-mapped, so all runs on a node share the page cache. It is
filled once, on all cores, behind a lock; a killed fill starts over. A clip that cannot be read is an
``InputError`` in either, each time it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import filelock
import numpy as np

from dear_core.data import decode
from dear_core.data.manifest import FrameSpan, Span
from dear_core.errors import InputError

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""
Pick = Callable[[int], np.ndarray]
"""From a clip's number of frames to the indices of the frames that are wanted."""


@dataclass(frozen=True)
class Media:
    """What is decoded for one clip in one modality."""

    path: Path
    span: Span | None = None
    pattern: str | None = None
    """Name of a frame's file if ``path`` is a folder."""
    frames: int | None = None
    """Frames in ``path``, where known."""


class FrameSource(Protocol):
    media: Sequence[Media]

    def read(self, number: int, pick: Pick) -> np.ndarray:
        """Frames (T,H,W,C) uint8 of clip ``number`` at the indices that ``pick(length)`` gives.

        Raises:
            InputError: the clip cannot be read; names its file.
        """
        ...


class FileSource:
    """Decodes on every read, at the files' own size, or with the shorter side at ``short_side`` pixels."""

    def __init__(self, media: Sequence[Media], channels: int, short_side: int | None = None) -> None:
        self.media, self.channels, self.short_side = media, channels, short_side

    def read(self, number: int, pick: Pick) -> np.ndarray:
        one = self.media[number]
        reader = decode.open_frames(one.path, one.pattern, one.frames)
        start, stop = span_frames(one, reader)
        frames = reader.read(start + pick(stop - start))[..., : self.channels]
        return frames if self.short_side is None else decode.resize_short_side(frames, self.short_side)


class CachedSource:
    """Reads from the memory-mapped cache of a :class:`FileSource` that resizes."""

    def __init__(self, source: FileSource, folder: Path, name: str, progress: Progress | None = None) -> None:
        assert source.short_side is not None, "a cache needs frames of one height"
        stem = f"{name}-{_fingerprint(source)}"
        self.media = source.media
        self._data, self._index = folder / f"{stem}.bin", folder / f"{stem}.json"
        if not self._index.is_file():
            _make_folder(folder)
            with filelock.FileLock(folder / f"{stem}.lock"):
                if not self._index.is_file():
                    self._fill(source, name, progress)
        rows = json.loads(self._index.read_text())
        # (offset, shape), or the reason why the clip cannot be read
        self._rows = [row if isinstance(row, str) else (row[0], tuple(row[1])) for row in rows]
        self._map: np.ndarray | None = None

    def read(self, number: int, pick: Pick) -> np.ndarray:
        row = self._rows[number]
        if isinstance(row, str):
            raise InputError(row)
        if self._map is None:  # opened on first use, so that the source can be sent to a worker
            self._map = np.memmap(self._data, dtype=np.uint8, mode="r")
        offset, shape = row
        frames = self._map[offset : offset + int(np.prod(shape))].reshape(shape)
        return frames[pick(shape[0])]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}

    def _fill(self, source: FileSource, name: str, progress: Progress | None) -> None:
        def decode_all(number: int) -> np.ndarray | str:
            try:
                return source.read(number, np.arange)
            except InputError as error:
                return str(error)

        temporary = self._data.with_suffix(f".{os.getpid()}.tmp")
        rows: list[object] = []
        offset, total = 0, len(source.media)
        try:
            with temporary.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
                file.write(b"\0")  # so that a cache without a readable clip can be mapped too
                offset = 1
                for start in range(0, total, 64):  # bounded, so that memory is
                    numbers = range(start, min(start + 64, total))
                    for frames in pool.map(decode_all, numbers):
                        if isinstance(frames, str):
                            rows.append(frames)
                            continue
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


def span_frames(media: Media, reader: decode.Reader) -> tuple[int, int]:
    """The clip's frames in its source, first and one past the last; raises ``InputError`` if it has none."""
    span, length = media.span, len(reader)
    if span is None:
        return 0, length
    if isinstance(span, FrameSpan):
        start, stop = span.start, span.stop
        if stop > length:
            raise InputError(f"{media.path}: the clip ends at frame {stop}, the source has {length} frames")
    else:
        start = int(span.start * reader.rate)
        stop = min(max(round(span.stop * reader.rate), start + 1), length)
    if not 0 <= start < stop:
        raise InputError(f"{media.path}: the clip {span} lies outside its {length} frames")
    return start, stop


def _fingerprint(source: FileSource) -> str:
    digest = hashlib.sha256(f"v2 {source.short_side} {source.channels}\n".encode())
    for one in source.media:
        try:
            status = one.path.stat()
        except OSError:
            raise InputError(f"{one.path}: no such video") from None
        what = f"{one.path.name} {one.span} {one.frames} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(what.encode())
    return digest.hexdigest()[:16]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data.cache_dir: {folder} cannot be made ({error.strerror})") from None
