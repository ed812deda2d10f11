"""Which clips make a step, and how clips become a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from dear_core.data.dataset import Item


class Batch(TypedDict):
    clip: dict[str, Tensor]
    """{modality: (N,C,T,H,W)}; empty if no clip of the batch could be read."""
    labels: Tensor
    """(N / views, heads) int64."""
    index: Tensor
    """(N / views,) numbers of the clips in their split."""
    views: int
    """Neighbouring samples of one clip whose probabilities are averaged; 1 in training."""
    bad: list[tuple[int, str]]
    """Clips that could not be read and are left out: number and reason."""


def collate(items: Sequence[Item]) -> Batch:
    """Items of one step as a batch; clips that could not be read are left out and named."""
    good = [item for item in items if item["bad"] is None]
    samples = [sample for item in good for sample in item["samples"]]
    names = samples[0] if samples else ()
    return {
        "clip": {name: torch.stack([sample[name] for sample in samples]) for name in names},
        "labels": torch.cat([item["labels"] for item in good]) if good else torch.empty(0, 1).long(),
        "index": torch.tensor([item["index"] for item in good for _ in item["labels"]]),
        "views": good[0]["views"] if good else 1,
        "bad": [(item["index"], item["bad"]) for item in items if item["bad"] is not None],
    }


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
