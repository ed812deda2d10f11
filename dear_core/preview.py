"""A video beside its depth with the prediction below it, for looking at."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dear_core.data.decode import Reader, open_frames
from dear_core.errors import InputError

HEIGHT = 240  # pixels of the pictures
LINE = 22  # pixels of a line of text
CHUNK = 32  # frames decoded at a time


def write(path: Path, video: Path, depth: Path | None, lines: list[str]) -> None:
    """Write ``path`` (H.264): every frame of ``video``, its depth if there is one, and lines of text below.

    Raises:
        InputError: ``path`` cannot be written.
    """
    readers = [open_frames(video)] + ([open_frames(depth)] if depth is not None else [])
    part = path.with_name(f".part-{path.name}")
    try:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=readers[0].rate, options={"crf": "20"})
            stream.pix_fmt = "yuv420p"
            for number, picture in enumerate(_pictures(readers, lines)):
                if not number:
                    stream.height, stream.width = picture.shape[:2]
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, 1 / Fraction(readers[0].rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        part.replace(path)
    except OSError as error:
        raise InputError(f"--preview {path}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)


def _pictures(readers: list[Reader], lines: list[str]):
    """Frames (H,W,3) uint8 with even sides, one a frame of the video."""
    length = min(len(reader) for reader in readers)
    text = None
    for start in range(0, length, CHUNK):
        indices = np.arange(start, min(start + CHUNK, length))
        for frames in zip(*(reader.read(indices) for reader in readers), strict=True):
            row = np.concatenate([_scaled(frame) for frame in frames], axis=1)
            text = _text(lines, row.shape[1]) if text is None else text
            yield np.concatenate([row, text])


def _scaled(frame_HWC: np.ndarray) -> np.ndarray:
    height, width = frame_HWC.shape[:2]
    size = (2 * round(width * HEIGHT / height / 2), HEIGHT)
    return np.asarray(Image.fromarray(frame_HWC).resize(size, Image.Resampling.BILINEAR))


def _text(lines: list[str], width: int) -> np.ndarray:
    picture = Image.new("RGB", (width, LINE * (len(lines) + 1)), "black")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for number, line in enumerate(lines):
        draw.text((6, LINE * number + 10), line, fill="white", font=font)
    return np.asarray(picture)
