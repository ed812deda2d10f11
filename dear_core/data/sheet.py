"""A picture of a few clips: colour above depth, the label as text. People look before they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 120  # pixels of a tile
LETTERING = 20  # pixels of a line of text
GAP = 4


@dataclass(frozen=True)
class Strip:
    """One clip: ``frames`` holds a row of frames uint8 (T,H,W,C) a modality, in the order they are drawn."""

    title: str
    frames: dict[str, np.ndarray]


def draw(strips: Sequence[Strip]) -> Image.Image:
    """Every strip as its title and a row of tiles a modality; tiles are ``HEIGHT`` pixels high."""
    blocks = [_block(strip) for strip in strips]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _block(strip: Strip) -> Image.Image:
    rows = [[_tile(frame) for frame in frames] for frames in strip.frames.values()]
    width = max(sum(tile.width + GAP for tile in row) for row in rows) + GAP
    block = Image.new("RGB", (width, LETTERING + len(rows) * (HEIGHT + GAP) + GAP), "white")
    font = ImageFont.load_default(size=LETTERING - 4)
    ImageDraw.Draw(block).text((GAP, 0), strip.title, fill="black", font=font)
    for number, row in enumerate(rows):
        left = GAP
        for tile in row:
            block.paste(tile, (left, LETTERING + number * (HEIGHT + GAP)))
            left += tile.width + GAP
    return block


def _tile(frame_HWC: np.ndarray) -> Image.Image:
    height, width, channels = frame_HWC.shape
    image = Image.fromarray(frame_HWC if channels == 3 else frame_HWC[..., 0])
    return image.convert("RGB").resize((round(width * HEIGHT / height), HEIGHT), Image.Resampling.BILINEAR)
