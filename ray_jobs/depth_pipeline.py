"""Decode, estimate and write depth, all three at once, in one process.

Decoding threads read each video once, from its first frame to its last; the device's thread makes batches
across videos; writing threads encode a video when its last frame is there. So the device waits only where
decoding or encoding cannot keep up. There is no Ray here, and no choice of what is next.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from dear_core.data import decode
from dear_core.depth.estimator import DepthEstimator
from dear_core.depth.store import DepthStore, even_size
from dear_core.errors import InputError
from ray_jobs.depth_batches import Batches, Done, Failed, Item, Outcome, Piece, Running, Video

SPOOL_ABOVE = 256 << 20  # bytes of a video's depth in memory; more go to a file


class Pipeline:
    """Videos in, depth videos in the store; ``submit`` returns at once, its future has the outcome.

    A video that cannot be read or written is ``Failed``. Any other error (of the device, of the disk) breaks
    the pipeline: it is the exception of every future from then on.
    """

    def __init__(
        self, estimator: DepthEstimator, store: DepthStore, batch: int, decoders: int = 1, writers: int = 1
    ) -> None:
        self.frames = 0
        """Frames estimated so far."""
        self._estimator, self._store, self._batch = estimator, store, batch
        self._inbox: queue.SimpleQueue[Video | None] = queue.SimpleQueue()
        self._pieces: queue.Queue[Piece | None] = queue.Queue(2 * decoders + 2)
        self._outbox: queue.SimpleQueue[Video | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._active: set[Video] = set()
        self._broken: Exception | None = None
        self._decoders, self._device, self._writers = (
            [threading.Thread(target=self._guard, args=(loop,), daemon=True) for _ in range(count)]
            for loop, count in (
                (self._decode_all, decoders),
                (self._estimate_all, 1),
                (self._write_all, writers),
            )
        )
        for thread in (*self._decoders, *self._device, *self._writers):
            thread.start()

    def submit(self, item: Item) -> Future[Outcome]:
        video = Video(item, Future())
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._active.add(video)
        self._inbox.put(video)
        return video.future

    def close(self) -> None:
        """Finish what was submitted, and stop."""
        for inbox, threads in (
            (self._inbox, self._decoders),
            (self._pieces, self._device),
            (self._outbox, self._writers),
        ):
            for _ in threads:
                inbox.put(None)
            for thread in threads:
                thread.join()

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            error = InputError(f"--batch {self._batch}: too much for the device's memory; give fewer frames")
        elif not isinstance(error, InputError):
            error = RuntimeError(f"{type(error).__name__}: {error}")  # of a class that can be sent
        with self._lock:
            self._broken, active, self._active = error, self._active, set()
        for video in active:
            video.future.set_exception(error)

    def _end(self, video: Video, outcome: Outcome) -> None:
        with self._lock:
            if video not in self._active:
                return  # ended by another thread
            self._active.remove(video)
        video.depth_THW = None
        video.future.set_result(outcome)

    def _decode_all(self) -> None:
        while (video := self._inbox.get()) is not None:
            try:
                for piece in self._decode(video):
                    self._pieces.put(piece)
                    if video.over:
                        break
            except InputError as error:
                self._end(video, Failed(video.item.source, str(error)))

    def _decode(self, video: Video) -> Iterator[Piece]:
        item = video.item
        reader = decode.open_frames(Path(item.path), item.pattern, item.frames)
        total = video.missing = len(reader)
        if not total:
            raise InputError(f"{item.path}: holds no frames")
        video.rate, size = reader.rate, None
        for start in range(0, total, self._batch):
            frames_BHWC = reader.read(np.arange(start, min(start + self._batch, total)))
            if size is None:
                size = frames_BHWC.shape[1:3]
                video.depth_THW = self._room(total, *even_size(*size, self._store.info.height))
            elif frames_BHWC.shape[1:3] != size:
                raise InputError(f"{item.path}: its frames differ in size; make them alike")
            yield Piece(video, start, frames_BHWC)

    def _room(self, *shape_THW: int) -> np.ndarray:
        """Where a video's depth is gathered: memory, or for a long one a file without a name."""
        if 4 * np.prod(shape_THW, dtype=np.int64) <= SPOOL_ABOVE:
            return np.empty(shape_THW, np.float32)
        with tempfile.TemporaryFile(dir=self._store.root) as file:  # the map outlives the handle
            os.posix_fallocate(file.fileno(), 0, 2 * int(np.prod(shape_THW)))  # a full disk is told now
            return np.memmap(file, np.float16, "w+", shape=shape_THW)

    def _estimate_all(self) -> None:
        batches = Batches(self._batch, self._estimator.batch_shape)
        running: Running | None = None
        more = True
        while more or batches.waiting or running:
            key = batches.full()
            while more and key is None:
                try:
                    piece = self._pieces.get(block=not (batches.waiting or running))
                except queue.Empty:
                    break
                if piece is None:
                    more = False
                else:
                    batches.add(piece)
                    key = batches.full()
            pieces = [piece for piece in batches.take(key) if not piece.video.over]
            launched = Running(self._estimator, pieces) if pieces else None
            if running:  # gathered while the device has the next batch to do
                self._gather(running)
            running = launched

    def _gather(self, running: Running) -> None:
        for piece, depth_BHW in running.results():
            video, count = piece.video, len(depth_BHW)
            self.frames += count
            if (depth_THW := video.depth_THW) is None:
                continue  # its decoding failed meanwhile
            depth_THW[piece.start : piece.start + count] = depth_BHW
            video.missing -= count
            if not video.missing:
                self._outbox.put(video)

    def _write_all(self) -> None:
        while (video := self._outbox.get()) is not None:
            source, depth_THW = video.item.source, video.depth_THW
            assert depth_THW is not None, "a whole video has no end but this"
            try:
                self._store.write(source, depth_THW, video.rate)
            except ValueError as error:  # InputError too
                self._end(video, Failed(source, str(error)))
            else:
                self._end(video, Done(source, len(depth_THW)))
