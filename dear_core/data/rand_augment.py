"""RandAugment (arXiv 1909.13719) as timm has it, for clips: what is drawn, and what each operation does.

The string, the operations and their strengths are those of timm/data/auto_augment.py (its "increasing" set:
the higher the magnitude, the stronger all operations); Side4Video and VideoMamba train with them. A draw is a
list of (name, argument), made once a clip and good for all its frames and modalities. Its geometric part
becomes one matrix, which ``transforms`` joins with crop and flip; its colour part becomes one table of grey
levels a frame and channel, as far as its operations look at one pixel at a time. So a clip is resampled once
and looked up once, however many operations were drawn.

Two things differ from timm, which changes one frame after the other at the video's full size: the statistics
of AutoContrast, Equalize and Contrast are those of the crop, and pixels that one geometric operation pushes
out of the frame and another one brings back are there again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Draw = list[tuple[str, float | None]]
"""Operations in their order, each with its argument (None: it has none)."""

EXAMPLE = "rand-m7-n4-mstd0.5-inc1"


def _plus_minus(most: float) -> Callable[[float, int], float]:
    return lambda level, sign: sign * (level / 10) * most


def _enhance(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (level / 10) * 0.9)


# What a level of 0 to 10 means, by timm's names without their "Increasing"; sign is 1 or -1.
ARGUMENTS: dict[str, Callable[[float, int], float] | None] = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": _plus_minus(30.0),  # degrees, counter-clockwise
    "Posterize": lambda level, sign: 4 - int((level / 10) * 4),  # bits that are kept
    "Solarize": lambda level, sign: 256 - min(256, int((level / 10) * 256)),  # inverted from this grey level
    "SolarizeAdd": lambda level, sign: min(128, int((level / 10) * 110)),  # added below grey level 128
    "Color": _enhance,  # 0: grey, 1: as it is
    "Contrast": _enhance,  # 0: the mean grey level
    "Brightness": _enhance,  # 0: black
    "Sharpness": _enhance,  # 0: smoothed
    "ShearX": _plus_minus(0.3),  # columns a row
    "ShearY": _plus_minus(0.3),  # rows a column
    "TranslateX": _plus_minus(0.45),  # share of the width
    "TranslateY": _plus_minus(0.45),  # share of the height
}
GEOMETRIC = frozenset({"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"})


@dataclass(frozen=True)
class RandAugment:
    """How to draw; the defaults are timm's."""

    magnitude: int = 10
    operations: int = 2
    probability: float = 0.5
    deviation: float = 0.0

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """From timm's words, for example ``rand-m7-n4-mstd0.5-inc1``.

        m: magnitude. n: operations a clip, each applied with probability p. mstd: standard deviation of the
        magnitude (above 100 timm draws it uniformly; refused here). inc1: the operations that grow with the
        magnitude, the only ones here.

        Raises:
            ValueError: anything else, or a part twice.
        """
        start, *parts = text.split("-")
        matches = [re.fullmatch(r"(mstd|m|n|p|inc)(\d+(?:\.\d+)?)", part) for part in parts]
        values = {match[1]: match[2] for match in matches if match}
        whole = all(values.get(key, "0").isdigit() for key in "mn")
        if start == "rand" and len(values) == len(parts) and values.pop("inc", "") == "1" and whole:
            m, n = int(values.get("m", 10)), int(values.get("n", 2))
            p, mstd = float(values.get("p", 0.5)), float(values.get("mstd", 0))
            if m <= 10 and n >= 1 and p <= 1 and mstd <= 100:
                return cls(m, n, p, mstd)
        raise ValueError(
            f"'{text}' should look like {EXAMPLE}: m 0 to 10, n at least 1, inc1 always; mstd (up to 100) "
            "and p (up to 1) may be left out or added"
        )

    def draw(self) -> Draw:
        """The operations of one clip, from torch's global random state."""
        names = list(ARGUMENTS)
        which = torch.randint(len(names), (self.operations,)).tolist()
        chance_and_sign = torch.rand(2, self.operations).tolist()
        noise = torch.randn(self.operations).tolist()
        drawn: Draw = []
        for number, chance, side, shift in zip(which, *chance_and_sign, noise, strict=True):
            if chance < self.probability:
                level = min(10.0, max(0.0, self.magnitude + self.deviation * shift))
                argument = ARGUMENTS[names[number]]
                drawn.append((names[number], argument and argument(level, 1 if side < 0.5 else -1)))
        return drawn


def geometry(draw: Draw, aspect: float) -> np.ndarray | None:
    """Where the draw's geometric operations take a pixel from: one matrix (3,3), or None if there are none.

    It maps a place (x, y, 1) of the result to one of the frame, both in shares of width and height, so it
    holds at any resolution of the same ``aspect`` (width by height). As in timm, rotation is about the
    centre, and shears leave the upper left corner where it is.
    """
    matrix = None
    for name, amount in draw:
        if name in GEOMETRIC:
            step = _inverse(name, amount, aspect)
            matrix = step if matrix is None else matrix @ step
    return matrix


def _inverse(name: str, amount: float, aspect: float) -> np.ndarray:
    matrix = np.eye(3)
    if name == "Rotate":
        cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
        matrix[:2, :2] = [[cos, -sin / aspect], [sin * aspect, cos]]
        matrix[:2, 2] = 0.5 - matrix[:2, :2] @ (0.5, 0.5)
        return matrix
    row, column = {"ShearX": (0, 1), "ShearY": (1, 0), "TranslateX": (0, 2), "TranslateY": (1, 2)}[name]
    matrix[row, column] = amount * {"ShearX": 1 / aspect, "ShearY": aspect}.get(name, 1.0)
    return matrix


def colour(frames_CTHW: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
    """The draw's colour operations on uint8 RGB frames, each frame by its own statistics.

    Returns:
        frames and a table (C,T,256) int64 that they still have to be looked up in (:func:`look_up`), None
        where there is nothing to look up. The caller may turn the table's values into what it needs first.
    """
    table = None
    for name, amount in draw:
        if name in ("Color", "Sharpness"):  # look at other channels or pixels than the one they change
            if table is not None:
                frames_CTHW, table = look_up(frames_CTHW, table.to(torch.uint8)), None
            kernel = F.adjust_saturation if name == "Color" else F.adjust_sharpness
            frames_TCHW = frames_CTHW.transpose(0, 1).contiguous(memory_format=torch.channels_last)
            frames_CTHW = kernel(frames_TCHW, amount).transpose(0, 1).contiguous()
        elif name not in GEOMETRIC:
            counts = _count(frames_CTHW, table) if name in _BY_STATISTICS else None
            step = _BY_STATISTICS[name](counts, amount) if counts is not None else _POINTWISE[name](amount)
            step = step.clamp(0, 255).long().expand(*frames_CTHW.shape[:2], 256)
            table = step if table is None else step.gather(-1, table)
    return frames_CTHW, table


def look_up(frames_CTHW: Tensor, table_CTK: Tensor) -> Tensor:
    """``table[c, t, value]`` for every value of uint8 frames, in the table's type."""
    result = torch.empty(frames_CTHW.shape, dtype=table_CTK.dtype)
    rows = zip(result.flatten(2).flatten(0, 1), frames_CTHW.flatten(2).flatten(0, 1), strict=True)
    for (into, values), table_K in zip(rows, table_CTK.flatten(0, 1), strict=True):
        torch.index_select(table_K, 0, values.int(), out=into)
    return result


def _count(frames_CTHW: Tensor, table_CTK: Tensor | None) -> Tensor:
    """How often each grey level is there, after the look-up: float (C,T,256)."""
    rows = [torch.bincount(row, minlength=256) for row in frames_CTHW.flatten(2).flatten(0, 1)]
    counts = torch.stack(rows).view(*frames_CTHW.shape[:2], 256).float()
    return counts if table_CTK is None else torch.zeros_like(counts).scatter_add_(-1, table_CTK, counts)


_LEVELS = torch.arange(256.0)

# Tables (256,) of operations that need nothing but the value; cut to 0..255 and floored by the caller.
_POINTWISE: dict[str, Callable[[float | None], Tensor]] = {
    "Invert": lambda _: 255 - _LEVELS,
    "Posterize": lambda bits: _LEVELS.long() & (256 - (1 << (8 - int(bits)))),
    "Solarize": lambda start: torch.where(_LEVELS.lt(start), _LEVELS, 255 - _LEVELS),
    "SolarizeAdd": lambda add: torch.where(_LEVELS < 128, _LEVELS + add, _LEVELS),
    "Brightness": lambda factor: factor * _LEVELS,
}


def _auto_contrast(counts_CTK: Tensor, _: None) -> Tensor:
    """Darkest to 0, brightest to 255; a frame of one grey level stays."""
    there = (counts_CTK > 0).int()
    low = there.argmax(-1, keepdim=True)
    width = 255 - there.flip(-1).argmax(-1, keepdim=True) - low
    return torch.where(width > 0, (_LEVELS - low) * 255 / width.clamp(min=1), _LEVELS)


def _equalize(counts_CTK: Tensor, _: None) -> Tensor:
    """As even a histogram as whole grey levels allow, in PIL's whole numbers."""
    total = counts_CTK.cumsum(-1)
    brightest = (counts_CTK > 0).long().mul(torch.arange(256)).argmax(-1, keepdim=True)
    step = (total[..., -1:] - counts_CTK.gather(-1, brightest)).div(255, rounding_mode="floor")
    below = total - counts_CTK + step.div(2, rounding_mode="floor")
    return torch.where(step > 0, below.div(step.clamp(min=1), rounding_mode="floor"), _LEVELS)


def _contrast(counts_CTK: Tensor, factor: float) -> Tensor:
    """Towards, or away from, the frame's mean luma (ITU-R 601)."""
    mean_CT = (counts_CTK * _LEVELS).sum(-1) / counts_CTK.sum(-1)
    mean_T = torch.tensor([0.299, 0.587, 0.114]) @ mean_CT
    return factor * _LEVELS + (1 - factor) * mean_T[:, None]


# Tables (C,T,256), or (T,256), of operations that need the frames' histograms.
_BY_STATISTICS: dict[str, Callable[[Tensor, float | None], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Contrast": _contrast,
}
