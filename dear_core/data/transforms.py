"""From decoded frames to the network's input: one geometric draw for all modalities, colour for RGB alone.

Built from torchvision's v2 transforms, which give every tensor of one call the same draw.
Layout letters: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

# OpenAI CLIP's input statistics (open_clip.constants); depth maps are fed as images (paper section 2).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipTransform:
    """Random crop, flip and colour in training; centre crop in evaluation."""

    def __init__(
        self,
        *,
        crop_size: int,
        train: bool,
        scale: tuple[float, float] = (0.5, 1.0),
        colour_jitter: float = 0.0,
    ) -> None:
        size = [crop_size, crop_size]
        self.train = train
        self.crop = (
            v2.RandomResizedCrop(size, scale=scale, ratio=(3 / 4, 4 / 3), antialias=True)
            if train
            else v2.CenterCrop(size)
        )
        j = colour_jitter
        self.colour = v2.ColorJitter(j, j, j) if train and j > 0 else None

    def __call__(self, clip_TCHW: dict[str, Tensor], *, flip: bool = False) -> dict[str, Tensor]:
        """uint8 {modality: (T,C,H,W)} to normalised float32 {modality: (C,T,H,W)}.

        Draws come from torch's global random state; modalities of other sizes than the first are
        resized to it, so that one crop means the same place in each.
        """
        names = list(clip_TCHW)
        size = list(clip_TCHW[names[0]].shape[-2:])
        videos = []
        for name in names:
            frames = clip_TCHW[name]
            if list(frames.shape[-2:]) != size:
                frames = v2.functional.resize(frames, size, antialias=True)
            videos.append(tv_tensors.Video(frames))
        videos = self.crop(*videos) if len(videos) > 1 else [self.crop(videos[0])]
        clip = {}
        for name, video in zip(names, videos, strict=True):
            if flip:
                video = v2.functional.horizontal_flip(video)
            if name == "rgb" and self.colour is not None:
                video = self.colour(video)
            clip[name] = _normalise(video.as_subclass(torch.Tensor))
        return clip


def _normalise(frames_TCHW: Tensor) -> Tensor:
    channels = frames_TCHW.shape[1]
    mean = torch.tensor(MEAN) if channels == 3 else torch.tensor([sum(MEAN) / 3])
    std = torch.tensor(STD) if channels == 3 else torch.tensor([sum(STD) / 3])
    frames = frames_TCHW.float().div_(255).sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
    return frames.transpose(0, 1).contiguous()
