"""Clips as tensors: what is read for a clip, how often, and with which draws.

Everything random about a sample is a pure function of (seed, epoch, index, sample): it does not depend on
the worker, the rank or the order in which samples are asked for, so a resumed run sees what the undisturbed
one would have seen. A clip that cannot be read comes back as such; it is never swapped for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dear_core.data import controls
from dear_core.data.frames import FrameSource, Pick
from dear_core.data.sampling import FrameSampler
from dear_core.data.transforms import ClipTransform
from dear_core.errors import InputError

Depth = Literal["matched", "shuffled", "constant", "time_shuffled"]


class Item(TypedDict):
    samples: list[dict[str, Tensor]]
    """{modality: (C,T,H,W)} of every augmented sample (training) or view (evaluation)."""
    labels: Tensor
    """(samples, heads) int64 in training, (1, heads) in evaluation; -1 where a clip has none."""
    index: int
    views: int
    """Samples that are views of one clip: their probabilities are averaged. 1 in training."""
    bad: str | None
    """Why the clip cannot be read; it then has no samples."""


@dataclass(frozen=True)
class Views:
    """Views of a clip in evaluation: ``clips`` in time, each with ``crops`` squares."""

    clips: int = 1
    crops: Literal[1, 3] = 1


class ClipDataset(Dataset[Item]):
    """One split. Items are asked for by ``(epoch, index)``; evaluation ignores the epoch.

    Args:
        sources: frames by modality; depth is left out where it is constant.
        labels: the classes of every clip, one a head; None where a clip has none.
        transform, sampler: frames to tensors, and which frames.
        seed: of every draw.
        repeats: augmented samples of a clip in training, decoded once.
        flip_targets: for every head and class the class of the mirrored clip; without it nothing is flipped.
        depth: whose depth a clip gets, see :mod:`controls`.
        views: in evaluation.
    """

    def __init__(
        self,
        sources: Mapping[str, FrameSource],
        labels: Sequence[tuple[int, ...] | None],
        transform: ClipTransform,
        sampler: FrameSampler,
        *,
        seed: int = 0,
        repeats: int = 1,
        flip_targets: Sequence[Sequence[int | None]] | None = None,
        depth: Depth = "matched",
        views: Views | None = None,
    ) -> None:
        self.sources, self.labels = dict(sources), labels
        self.transform, self.sampler = transform, sampler
        self.seed, self.repeats, self.flip_targets = seed, repeats, flip_targets
        self.depth, self.views = depth, views or Views()
        self._other = controls.other_clips(len(labels), seed) if depth == "shuffled" else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, where: tuple[int, int]) -> Item:
        epoch, index = where
        try:
            return self._train_item(epoch, index) if self.transform.train else self._test_item(index)
        except InputError as error:
            return {"samples": [], "labels": torch.empty(0), "index": index, "views": 1, "bad": str(error)}

    def frames(self, index: int) -> dict[str, np.ndarray]:
        """The frames of a clip's first view in evaluation, as they are read: uint8 {modality: (T,H,W,C)}.

        Raises:
            InputError: the clip cannot be read.
        """
        clip = self._read(index, lambda length: self.sampler.test(length, 1))[0]
        return {name: video_TCHW.permute(0, 2, 3, 1).numpy() for name, video_TCHW in clip.items()}

    def _train_item(self, epoch: int, index: int) -> Item:
        place = np.random.default_rng([self.seed, epoch, index]).random(self.sampler.num_frames)
        frames = self._read(index, lambda length: self.sampler.train(length, place)[None])[0]
        samples, labels = [], []
        for sample in range(self.repeats):
            rng = np.random.default_rng([self.seed, epoch, index, sample + 1])
            label, flip = self._flipped(index, rng)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**63)))
                samples.append(self._completed(self.transform(frames, flip=flip)))
            labels.append(label)
        return {"samples": samples, "labels": torch.tensor(labels), "index": index, "views": 1, "bad": None}

    def _test_item(self, index: int) -> Item:
        clips = self._read(index, lambda length: self.sampler.test(length, self.views.clips))
        samples = [
            self._completed(crop) for clip in clips for crop in self.transform.crops(clip, self.views.crops)
        ]
        label = torch.tensor([self.labels[index] or (-1,)])
        return {"samples": samples, "labels": label, "index": index, "views": len(samples), "bad": None}

    def _flipped(self, index: int, rng: np.random.Generator) -> tuple[tuple[int, ...], bool]:
        """The labels, and whether the clip is mirrored: half the time, where the mirror has labels."""
        labels = self.labels[index]
        assert labels is not None, "a training clip has labels"
        if self.flip_targets is None or rng.random() >= 0.5:
            return labels, False
        targets = [head[label] for head, label in zip(self.flip_targets, labels, strict=True)]
        if None in targets:
            return labels, False
        return tuple(target for target in targets if target is not None), True

    def _read(self, index: int, pick: Pick) -> list[dict[str, Tensor]]:
        """For each row of indices that ``pick`` gives its frames, uint8 {modality: (T,C,H,W)}."""
        clips: list[dict[str, Tensor]] = []
        lengths: dict[str, int] = {}
        for modality, source in self.sources.items():
            number = index
            if modality == "depth" and self._other is not None:
                number = int(self._other[index])
            indices_VT = np.empty((0, 0))

            def flat(length: int, modality: str = modality) -> np.ndarray:
                nonlocal indices_VT
                lengths[modality] = length
                indices_VT = pick(length)
                return indices_VT.reshape(-1)

            frames = source.read(number, flat)
            frames = frames.reshape(*indices_VT.shape, *frames.shape[1:])
            if modality == "depth" and self.depth == "time_shuffled":
                frames = frames[:, controls.frame_order(frames.shape[1], self.seed, index)]
            clips = clips or [{} for _ in frames]
            for clip, one in zip(clips, frames, strict=True):
                clip[modality] = torch.from_numpy(np.ascontiguousarray(one)).permute(0, 3, 1, 2)
        if self._other is None and len(set(lengths.values())) > 1:
            counts = ", ".join(
                f"{self.sources[name].media[index].path} has {length}" for name, length in lengths.items()
            )
            raise InputError(f"depth and video differ in their number of frames: {counts}")
        return clips

    def _completed(self, clip: dict[str, Tensor]) -> dict[str, Tensor]:
        """With depth of one value, the mean of the normalised input, if that is what is asked for."""
        if self.depth == "constant":
            rgb_CTHW = next(iter(clip.values()))
            clip["depth"] = rgb_CTHW.new_zeros(1, *rgb_CTHW.shape[1:])
        return clip
