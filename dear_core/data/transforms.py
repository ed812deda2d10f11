"""From decoded frames to the network's input: one geometric draw for all modalities, colour for RGB alone.

Why as it is: frames come at the video's own size, and every resampling costs time and sharpness, so there is
one. A crop is a box in shares of height and width, which each modality takes at its own resolution, resized
straight to the network's size; where RandAugment drew geometric operations, they, the crop and the flip are
one warp. Colour comes after geometry, on the small crop, and ends in the same pass as the normalisation.

Frames are (T,C,H,W) views of (T,H,W,C) memory, as decoders and the cache give them; other layouts work but
are resized more slowly. Layout letters: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import v2

from dear_core.data.rand_augment import Draw, RandAugment, colour, geometry, look_up

# OpenAI CLIP's input statistics (open_clip.constants); depth maps are fed as images (paper section 2).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

RATIO = (3 / 4, 4 / 3)
"""Width by height of random crops (torchvision's and the usual choice)."""

FILL = {"rgb": 128, "depth": 0}
"""Grey level outside the image: timm's grey for RGB; for depth 0, the farthest, as behind everything."""

SHRINK_FIRST = 1.5
"""A warp with more source pixels than this to a pixel of the result, along a side, would skip some of them
(its four neighbours cover two); the source is shrunk first."""


class Box(NamedTuple):
    """A part of the frame, in shares of its height and width."""

    top: float
    left: float
    height: float
    width: float

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """In a frame of this size: top, left, height, width, each edge at the nearest pixel's."""
        top, left = min(round(self.top * height), height - 1), min(round(self.left * width), width - 1)
        bottom, right = round((self.top + self.height) * height), round((self.left + self.width) * width)
        return top, left, max(1, bottom - top), max(1, right - left)

    @property
    def matrix(self) -> np.ndarray:
        """(3,3) from a place (x, y, 1) in the box to one in the frame, both in shares."""
        return np.array([[self.width, 0, self.left], [0, self.height, self.top], [0, 0, 1]])


class ClipTransform:
    """Random crop, flip, RandAugment and colour in training; centre crop, or three crops, in evaluation.

    Args:
        crop_size: side of the square result in pixels.
        short_side: evaluation sees the video as if its shorter side were this many pixels, ``crop_size`` of
            them in the centre; it is not resized to that.
        train: random draws, from torch's global random state.
        scale: least and greatest share of the frame's area in a training crop.
        colour_jitter: greatest change of brightness, contrast and saturation in training.
        rand_augment: in timm's words (:meth:`RandAugment.parse`); training only.

    Raises:
        ValueError: ``rand_augment`` is not understood.
    """

    def __init__(
        self,
        *,
        crop_size: int,
        short_side: int,
        train: bool,
        scale: tuple[float, float] = (0.5, 1.0),
        colour_jitter: float = 0.0,
        rand_augment: str | None = None,
    ) -> None:
        assert train or crop_size <= short_side, (crop_size, short_side)
        self.crop_size, self.short_side, self.train, self.scale = crop_size, short_side, train, scale
        self.colour_jitter = colour_jitter
        self.rand_augment = RandAugment.parse(rand_augment) if rand_augment is not None else None

    def __call__(self, clip_TCHW: dict[str, Tensor], *, flip: bool = False) -> dict[str, Tensor]:
        """uint8 {modality: (T,C,H,W)} to normalised float32 {modality: (C,T,crop,crop)}.

        Modalities may differ in size, as the same field of view at another resolution. Of another shape, as
        another video's depth (``data.depth`` shuffled), only the middle of the first one's shape is taken.
        """
        first = next(iter(clip_TCHW.values()))
        height, width = first.shape[-2:]
        if not self.train:
            side = self.crop_size / self.short_side * min(height, width)
            return view(clip_TCHW, _square(height, width, side, 0.5), self.crop_size, flip=flip)
        top, left, h, w = v2.RandomResizedCrop.get_params(first, list(self.scale), list(RATIO))
        box = Box(top / height, left / width, h / height, w / width)
        draw = self.rand_augment.draw() if self.rand_augment else []
        return view(clip_TCHW, box, self.crop_size, flip=flip, draw=draw + self._draw_jitter())

    def crops(self, clip_TCHW: dict[str, Tensor], count: Literal[1, 3]) -> list[dict[str, Tensor]]:
        """Views for evaluation. 1: the centre crop. 3: squares as high as the video (as wide as an upright
        one) at the start, centre and end of its longer side; ``short_side`` has no part in them."""
        assert not self.train
        if count == 1:
            return [self(clip_TCHW)]
        height, width = next(iter(clip_TCHW.values())).shape[-2:]
        boxes = [_square(height, width, min(height, width), place) for place in (0.0, 0.5, 1.0)]
        return [view(clip_TCHW, box, self.crop_size) for box in boxes]

    def _draw_jitter(self) -> Draw:
        """Brightness, contrast and saturation in a random order, as torchvision's ColorJitter draws them."""
        if not self.colour_jitter:
            return []
        limits = [max(0.0, 1 - self.colour_jitter), 1 + self.colour_jitter]
        order, *factors = v2.ColorJitter.get_params(limits, limits, limits, None)
        steps = list(zip(("Brightness", "Contrast", "Color"), factors[:3], strict=True))
        return [steps[k] for k in order.tolist() if k < len(steps)]


def view(
    clip_TCHW: dict[str, Tensor], box: Box, size: int, *, flip: bool = False, draw: Draw | None = None
) -> dict[str, Tensor]:
    """One view of a clip, nothing random: the box of each modality as normalised (C,T,size,size).

    ``draw``'s geometric operations move the frames under the box, before the flip; its colour operations
    change ``rgb`` alone.
    """
    height, width = next(iter(clip_TCHW.values())).shape[-2:]
    moved = geometry(draw or [], width / height)
    result = {}
    for name, frames_TCHW in clip_TCHW.items():
        frames_TCHW = _middle(frames_TCHW, width / height)
        if moved is None:
            frames_CTHW = _resized_crop(frames_TCHW, box, size, flip)
        else:
            mirror = np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]) if flip else np.eye(3)
            frames_CTHW = _warp(frames_TCHW, moved @ box.matrix @ mirror, size, FILL[name])
        table = None
        if name == "rgb" and draw:
            frames_CTHW, table = colour(frames_CTHW, draw)
        result[name] = _normalise(frames_CTHW, table)
    return result


def _square(height: int, width: int, side: float, place: float) -> Box:
    """A square of ``side`` pixels; ``place``: 0 at the upper or left end of the longer side, 1 at the other.

    Across the longer side it is in the middle. All in whole pixels of a frame of this size.
    """
    side = round(side)
    down, across = (place, 0.5) if height > width else (0.5, place)
    top, left = round((height - side) * down), round((width - side) * across)
    return Box(top / height, left / width, side / height, side / width)


def _middle(frames_TCHW: Tensor, aspect: float) -> Tensor:
    """The largest part in the middle that is ``aspect`` wide by high; all, where that is two pixels less."""
    height, width = frames_TCHW.shape[-2:]
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    if height - h <= 2 and width - w <= 2:  # another resolution, rounded
        return frames_TCHW
    return v2.functional.center_crop(frames_TCHW, [h, w])


def _resized_crop(frames_TCHW: Tensor, box: Box, size: int, flip: bool) -> Tensor:
    """The box, antialiased: uint8 (C,T,size,size)."""
    top, left, h, w = box.pixels(*frames_TCHW.shape[-2:])
    frames_CTHW = _resize(frames_TCHW[..., top : top + h, left : left + w], size, size).transpose(0, 1)
    return frames_CTHW.flip(-1) if flip else frames_CTHW


def _resize(frames_TCHW: Tensor, height: int, width: int) -> Tensor:
    """Antialiased. torch's uint8 kernel is made for 3 or 4 interleaved channels: one-channel frames go
    through it by fours, three times as fast."""
    frames, channels = frames_TCHW.shape[:2]
    if channels == 1 and frames % 4 == 0:
        frames_TCHW = frames_TCHW.reshape(frames // 4, 4, *frames_TCHW.shape[-2:])
    frames_TCHW = frames_TCHW.contiguous(memory_format=torch.channels_last)
    resized = v2.functional.resize(frames_TCHW, [height, width], antialias=True)
    return resized.reshape(frames, channels, height, width)


def _warp(frames_TCHW: Tensor, place_33: np.ndarray, size: int, fill: int) -> Tensor:
    """Bilinear resampling of uint8 frames: uint8 (C,T,size,size).

    Args:
        place_33: from a place (x, y, 1) of the result to one in the frame, in shares of width and height.
        fill: grey level of places outside the frame.
    """
    frames, channels, height, width = frames_TCHW.shape
    density = math.sqrt(abs(np.linalg.det(place_33)) * width * height) / size
    margin = 2 * max(1.0, density)  # pixels that neighbours of the outermost places reach, shrunk or not
    corners = (place_33 @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]]))[:2] * [[width], [height]]
    low = np.clip(np.floor(corners.min(1) - margin), 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil(corners.max(1) + margin), low + 1, [width, height]).astype(int)
    part_TCHW = frames_TCHW[..., low[1] : high[1], low[0] : high[0]]
    across, down = (high - low).tolist()  # of the part, in pixels of the frame
    if density > SHRINK_FIRST:
        part_TCHW = _resize(part_TCHW, max(1, round(down / density)), max(1, round(across / density)))
    # grid_sample counts from -1 to 1 between the outer edges of the part, and of the result.
    to_part = np.array(
        [
            [2 * width / across, 0, -2 * low[0] / across - 1],
            [0, 2 * height / down, -2 * low[1] / down - 1],
            [0, 0, 1],
        ]
    )
    to_share = np.array([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])
    theta = torch.from_numpy((to_part @ place_33 @ to_share)[None, :2]).float()
    grid = affine_grid(theta, [1, 1, size, size], align_corners=False)
    # Frames and channels are the channels of one image: one set of weights for all. Outside it is 0.
    planes = part_TCHW.transpose(0, 1).contiguous().float().sub_(fill).flatten(0, 1)[None]
    warped = grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.add_(fill + 0.5).to(torch.uint8).view(channels, frames, size, size)


def _normalise(frames_CTHW: Tensor, table_CTK: Tensor | None) -> Tensor:
    """uint8 frames, looked up in ``table`` if there is one, to contiguous float32 by CLIP's statistics."""
    one = len(frames_CTHW) == 1
    mean = torch.tensor([sum(MEAN) / 3] if one else MEAN).view(-1, 1, 1, 1)
    std = torch.tensor([sum(STD) / 3] if one else STD).view(-1, 1, 1, 1)
    factor, shift = 1 / (255 * std), -mean / std
    if table_CTK is not None:
        return look_up(frames_CTHW.contiguous(), table_CTK * factor[..., 0] + shift[..., 0])
    result = torch.empty(frames_CTHW.shape)  # copying into it converts and reorders in one pass
    return result.copy_(frames_CTHW).mul_(factor).add_(shift)
