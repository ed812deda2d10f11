"""Clips as tensors: ``{"clip": {"rgb": CTHW, "depth": CTHW}, "label", "index"}``.

Everything random about a sample is a pure function of (seed, epoch, index): it does not depend on the
worker, the rank or the order in which samples are asked for, so a resumed run sees what the undisturbed one
would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dear_core.data.frames import FrameSource
from dear_core.data.sampling import segment_indices
from dear_core.data.transforms import ClipTransform
from dear_core.errors import InputError


class Sample(TypedDict):
    clip: dict[str, Tensor]
    label: int
    index: int


class ClipDataset(Dataset[Sample]):
    """One split. Items are asked for by ``(epoch, index)``; evaluation ignores the epoch."""

    def __init__(
        self,
        sources: Mapping[str, FrameSource],
        labels: Sequence[int],
        transform: ClipTransform,
        *,
        num_frames: int,
        seed: int = 0,
        flip_targets: Sequence[int | None] | None = None,
    ) -> None:
        self.sources, self.labels, self.transform = dict(sources), labels, transform
        self.num_frames, self.seed, self.flip_targets = num_frames, seed, flip_targets

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, where: tuple[int, int]) -> Sample:
        epoch, index = where
        rng = np.random.default_rng([self.seed, epoch, index]) if self.transform.train else None
        place = rng.random(self.num_frames) if rng is not None else None
        clip = self._read(index, place)
        label, flip = self.labels[index], False
        if rng is not None and self.flip_targets is not None and rng.random() < 0.5:
            target = self.flip_targets[label]
            if target is not None:
                label, flip = target, True
        if rng is None:
            return {"clip": self.transform(clip), "label": label, "index": index}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            return {"clip": self.transform(clip, flip=flip), "label": label, "index": index}

    def _read(self, index: int, place: np.ndarray | None) -> dict[str, Tensor]:
        """The same frames of every modality, uint8 (T,C,H,W) each."""
        clip, lengths = {}, {}
        for modality, source in self.sources.items():

            def pick(length: int, modality: str = modality) -> np.ndarray:
                lengths[modality] = length
                return segment_indices(length, self.num_frames, place)

            frames = np.ascontiguousarray(source.read(index, pick))
            clip[modality] = torch.from_numpy(frames).permute(0, 3, 1, 2)
        if len(set(lengths.values())) > 1:
            counts = ", ".join(
                f"{self.sources[name].paths[index]} has {length}" for name, length in lengths.items()
            )
            raise InputError(f"depth and video differ in their number of frames: {counts}")
        return clip


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)`` for one rank.

    The order is a function of (seed, epoch) alone. Training cuts it into global batches and gives each rank
    its share, so that the content of a step does not depend on how many ranks there are; an incomplete last
    batch is left out. Evaluation gives every clip to exactly one rank, once.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert not shuffle or batch_size % world == 0, (batch_size, world)
        self.length, self.batch_size, self.shuffle = length, batch_size, shuffle
        self.seed, self.rank, self.world, self.epoch = seed, rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return self.length // self.batch_size
        mine = len(range(self.rank, self.length, self.world))
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
            share = self.batch_size // self.world
            for step in range(len(self)):
                start = step * self.batch_size + self.rank * share
                yield [(self.epoch, int(i)) for i in order[start : start + share]]
        else:
            mine = range(self.rank, self.length, self.world)
            for start in range(0, len(mine), self.batch_size):
                yield [(self.epoch, i) for i in mine[start : start + self.batch_size]]
