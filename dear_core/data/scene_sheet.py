"""A picture of a few clips of a data set with depth: colour above depth, the label as text.

Why: a README and a person want to see at a glance what the clips and their depth look like. Works
for any folder in the form that `synthetic` writes; Pillow is needed for the lettering only.

    python -m dear_core.data.scene_sheet --root data/demo --ids 100011 100007 --path clips.png
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import tyro

from dear_core.errors import InputError, readable_errors

STEPS = 5
TILE = (160, 120)  # width, height
LETTERING = 18  # pixels of a line of text
GAP = 4


def _frames(path: Path) -> list[np.ndarray]:
    """STEPS frames (120, 160, 3), evenly spaced; a missing or broken file is an InputError."""
    try:
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"{path} cannot be read as a video: {error}.") from error
    picked = np.linspace(0.06, 0.94, STEPS) * (len(frames) - 1)
    width, height = TILE
    return [frames[round(k)].to_ndarray(format="rgb24", width=width, height=height) for k in picked]


def contact_sheet(root: str | Path, ids: Sequence[str], path: str | Path) -> None:
    """Write a PNG with a few time steps of each clip of `ids`: label, colour row, depth row.

    `root` is a data set folder; an id that is in neither split, or whose video or depth cannot be
    read, is an InputError (a ValueError).
    """
    from PIL import Image, ImageDraw

    root = Path(root)
    entries = []
    for split in ("train", "validation"):
        entries += json.loads((root / f"{split}.json").read_text(encoding="utf-8"))
    labels = {entry["id"]: entry["label"] for entry in entries}
    width, height = TILE
    block = LETTERING + 2 * (height + GAP) + GAP
    size = (STEPS * (width + GAP) + GAP, len(ids) * block + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for n, clip_id in enumerate(ids):
        if clip_id not in labels:
            raise InputError(f"{root} has no clip {clip_id!r}; give ids of its annotations.")
        top = GAP + n * block
        draw.text((GAP, top + 2), f"{labels[clip_id]}  ({clip_id})", fill="black")
        for row, folder in enumerate(("videos", "depth")):
            place = top + LETTERING + row * (height + GAP)
            for k, frame in enumerate(_frames(root / folder / f"{clip_id}.webm")):
                sheet.paste(Image.fromarray(frame), (GAP + k * (width + GAP), place))
    sheet.save(path)


if __name__ == "__main__":
    with readable_errors():
        tyro.cli(contact_sheet)
