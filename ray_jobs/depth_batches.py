"""Batches of frames across videos, for the device of one depth worker.

A batch has frames that the network sees at one size, whatever videos they are of. Nothing here has threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from dear_core.depth.estimator import DepthEstimator

PATIENCE = 8  # batches that frames of a rare size wait for company


@dataclass(frozen=True)
class Item:
    """One source: a video file, or with ``pattern`` a folder of frames."""

    source: str
    path: str
    pattern: str | None = None
    frames: int | None = None


@dataclass(frozen=True)
class Done:
    source: str
    frames: int


@dataclass(frozen=True)
class Failed:
    source: str
    reason: str


Outcome = Done | Failed


@dataclass(eq=False)
class Video:
    """A video on its way through the pipeline."""

    item: Item
    future: Future[Outcome]
    rate: Fraction = Fraction(0)
    depth_THW: np.ndarray | None = None
    missing: int = 0
    """Frames whose depth is not there yet."""

    @property
    def over(self) -> bool:
        return self.future.done()


@dataclass(eq=False)
class Piece:
    """Some consecutive frames of a video."""

    video: Video
    start: int
    frames_BHWC: np.ndarray
    round: int = 0

    def split(self, count: int) -> tuple[Piece, Piece]:
        first, rest = self.frames_BHWC[:count], self.frames_BHWC[count:]
        return Piece(self.video, self.start, first, self.round), Piece(
            self.video, self.start + count, rest, self.round
        )


@dataclass
class Batches:
    """Pieces that wait for a batch, by the size at which the network sees them."""

    size: int
    shape: Callable[[int, int], tuple[int, int]]
    waiting: dict[tuple[int, int], deque[Piece]] = field(default_factory=dict)
    round: int = 0

    def add(self, piece: Piece) -> None:
        piece.round = self.round
        key = self.shape(*piece.frames_BHWC.shape[1:3])
        self.waiting.setdefault(key, deque()).append(piece)

    def full(self) -> tuple[int, int] | None:
        """A size with frames for a whole batch, or with frames that have waited long enough."""
        for key, pieces in self.waiting.items():
            if pieces[0].round + PATIENCE < self.round:
                return key
        enough = (key for key in self.waiting if self._count(key) >= self.size)
        return next(enough, None)

    def take(self, key: tuple[int, int] | None) -> list[Piece]:
        """Up to a batch of that size, or of the one with the oldest frames; [] if nothing waits."""
        if key is None:
            if not self.waiting:
                return []
            key = min(self.waiting, key=lambda k: self.waiting[k][0].round)
        pieces, taken, room = self.waiting[key], [], self.size
        while pieces and room:
            piece = pieces.popleft()
            if len(piece.frames_BHWC) > room:
                piece, rest = piece.split(room)
                pieces.appendleft(rest)
            taken.append(piece)
            room -= len(piece.frames_BHWC)
        if not pieces:
            del self.waiting[key]
        self.round += 1
        return taken

    def _count(self, key: tuple[int, int]) -> int:
        return sum(len(piece.frames_BHWC) for piece in self.waiting[key])


class Running:
    """A batch that the device works on."""

    def __init__(self, estimator: DepthEstimator, pieces: list[Piece]) -> None:
        inputs = torch.cat([estimator.prepare(piece.frames_BHWC) for piece in pieces])
        parts = estimator.infer(inputs).split([len(piece.frames_BHWC) for piece in pieces])
        self._parts: list[tuple[Piece, Tensor]] = []
        for piece, part_BHW in zip(pieces, parts, strict=True):
            depth_THW = piece.video.depth_THW
            if depth_THW is not None:
                self._parts.append((piece, _to_host(estimator.resize(part_BHW, depth_THW.shape[1:]))))
        self._copied = None
        if estimator.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def results(self) -> Iterator[tuple[Piece, np.ndarray]]:
        """Each piece with its depth (B,h,w) float32; waits for the device."""
        if self._copied is not None:
            self._copied.synchronize()
        for piece, depth_BHW in self._parts:
            yield piece, depth_BHW.numpy()


def _to_host(tensor: Tensor) -> Tensor:
    """The same in memory, without waiting for the device."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
