"""The reference of ``data.py``: a training clip as Side4Video's published code makes it, written plainly.

In the order of its Recognition/utils/Augmentation.py for Something-Something: eight frames at full size, each
a PIL image; RandAugment on them, one draw for all; 256×320 bicubic; one random crop of 0.08 to 1 of the area,
resized to 224; a flip; one array, to a tensor, normalised. RandAugment is timm's own; theirs is a copy of it
for lists of frames. decord has one thread. Labels are not made.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import av  # noqa: F401 - before decord, which publishes an older libvpx
import decord
import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SCALE, CROP = (320, 256), 224  # width and height; side
Images = list[Image.Image]

_rand_augment = rand_augment_transform(
    "rand-m7-n4-mstd0.5-inc1", {"translate_const": 115, "interpolation": Image.BICUBIC}
)


def read(path: Path, indices: np.ndarray) -> Images:
    video = decord.VideoReader(str(path), num_threads=1)
    return [Image.fromarray(video[int(index)].asnumpy()).convert("RGB") for index in indices]


def augmented(images: Images) -> Images:
    """The same operations, at the same strength, on every frame."""
    draws = random.getstate(), np.random.get_state()
    result = []
    for image in images:
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        result.append(_rand_augment(image))
    return result


def scaled(images: Images) -> Images:
    return [image.resize(SCALE, Image.BICUBIC) for image in images]


def cropped(images: Images) -> Images:
    left, top, width, height = _box(*images[0].size)
    box = (left, top, left + width, top + height)
    images = [image.crop(box).resize((CROP, CROP), Image.BILINEAR) for image in images]
    if random.random() < 0.5:
        images = [image.transpose(Image.FLIP_LEFT_RIGHT) for image in images]
    return images


def tensor(images: Images) -> Tensor:
    """(T*C,H,W), normalised."""
    stacked_HWK = np.concatenate(images, axis=2)
    clip_KHW = torch.from_numpy(stacked_HWK).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values * len(images))[:, None, None] for values in (MEAN, STD))
    return clip_KHW.sub_(mean).div_(std)


def transformed(images: Images) -> Tensor:
    return tensor(cropped(scaled(augmented(images))))


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part; the middle where ten draws do not fit."""
    for _ in range(10):
        area = random.uniform(0.08, 1) * width * height
        aspect = random.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if random.random() < 0.5:
            w, h = h, w
        if w <= width and h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side
