"""A folder of depth videos: one per source video, same stem, same frame count and order.

Why: depth is estimated once and then read by frame index as fast as colour. ROOT/store.json says
what made the depth; ROOT/<id>.webm holds a clip as VP9 with the depth in luma and neutral chroma,
so every decoder returns three equal channels. The depth is relative *inverse* depth (large =
near), scaled by one minimum and maximum over the whole video, so that motion in depth survives;
both are kept as tags of the same file, so one atomic rename publishes the clip with its scale.

It does not estimate depth, does not resize, and does not decode: readers take `path(id)`.
Reading back gives 255 * (depth - min) / (max - min), on rendered scenes with a PSNR above 45 dB.

A process that writes must import this module (or av) before decord: decord publishes its own,
older libvpx, with which PyAV's encoder does not open.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SUFFIX = ".webm"
TAG_LOW, TAG_HIGH = "DEPTH_MIN", "DEPTH_MAX"
ENCODER = {
    "deadline": "realtime",
    "cpu-used": "8",
    "row-mt": "0",
    "lag-in-frames": "0",
    "crf": "10",
}
KEY_FRAME_EVERY = 24  # frames; short, so that reading by index decodes little
LUMA_BLACK, LUMA_SPAN = 16, 219  # limited-range luma, as decoders assume


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds: the estimator's name and the videos' shorter side in pixels (even)."""

    model: str
    height: int
    normalisation: str = "video-minmax"
    format: int = 1
    codec: str = "vp9"
    bits: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"depth store: model is {self.model!r}; name the estimator.")
        if not isinstance(self.height, int) or self.height < 2 or self.height % 2:
            raise ValueError(
                f"depth store: height is {self.height!r}; give an even number of pixels above 0."
            )
        fixed = (self.normalisation, self.format, self.codec, self.bits)
        if fixed != ("video-minmax", 1, "vp9", 8):
            raise ValueError(
                f"depth store: normalisation, format, codec and bits are {fixed}; "
                "this version knows only ('video-minmax', 1, 'vp9', 8)."
            )


def even_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is `shorter`, the longer rounded to even."""
    longer = 2 * round(shorter * max(height, width) / min(height, width) / 2)
    return (shorter, longer) if height <= width else (longer, shorter)


class DepthStore:
    """An open depth store; make one with `DepthStore.create` or `DepthStore.open`."""

    def __init__(self, root: Path, info: StoreInfo) -> None:
        self.root = root
        self.info = info

    @classmethod
    def create(cls, root: str | Path, info: StoreInfo) -> DepthStore:
        """Create the store, or open the one that is there; another info is a ValueError."""
        root = Path(root)
        if (root / "store.json").exists():
            store = cls.open(root)
            if store.info != info:
                raise ValueError(f"depth store {root} holds {store.info}, not {info}; choose another folder.")
            return store
        root.mkdir(parents=True, exist_ok=True)
        part = root / f".store-{uuid.uuid4().hex}.json"
        try:
            part.write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
            part.replace(root / "store.json")
        finally:
            part.unlink(missing_ok=True)
        return cls(root, info)

    @classmethod
    def open(cls, root: str | Path) -> DepthStore:
        """Open an existing store; a missing or invalid store.json is a ValueError."""
        path = Path(root) / "store.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            info = StoreInfo(**fields)
        except FileNotFoundError:
            raise ValueError(f"{root} is no depth store: it has no store.json.") from None
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not the description of a depth store: {error}.") from error
        return cls(Path(root), info)

    def path(self, video_id: str) -> Path:
        """Where the depth of `video_id` is or will be; an id that is no file stem is refused."""
        if not video_id or video_id.startswith(".") or {"/", "\\", "\0"} & set(video_id):
            raise ValueError(
                f"{video_id!r} cannot name a depth video; give a file name without folder or dot."
            )
        return self.root / f"{video_id}{SUFFIX}"

    def write(self, video_id: str, inverse_depth_THW: np.ndarray, fps: int) -> None:
        """Normalise over the whole video, encode, and publish by one rename.

        `inverse_depth_THW` is float, finite, (frames, height, width) with an even width and
        height whose shorter one is `info.height`; `fps` is in frames per second. Anything else
        is a ValueError that names the video. A constant map is stored as zeros.
        """
        path = self.path(video_id)
        depth_THW = np.asarray(inverse_depth_THW)
        if depth_THW.ndim != 3 or 0 in depth_THW.shape or fps < 1:
            raise ValueError(
                f"depth of {video_id} has shape {depth_THW.shape} at {fps} fps; "
                "give (frames, height, width), none of them 0, and at least 1 fps."
            )
        height, width = depth_THW.shape[1:]
        if min(height, width) != self.info.height or height % 2 or width % 2:
            raise ValueError(
                f"depth of {video_id} is {width}x{height}; {self.root} holds videos with even "
                f"sides whose shorter one is {self.info.height} (see even_size)."
            )
        low, high = float(depth_THW.min()), float(depth_THW.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"depth of {video_id} holds values that are not finite numbers.")
        part = self.root / f".{video_id}-{uuid.uuid4().hex}{SUFFIX}"
        try:
            _encode(part, depth_THW, low, high, fps)
            os.replace(part, path)  # noqa: PTH105 - a rename, whatever stood there
        finally:
            part.unlink(missing_ok=True)

    def scale(self, video_id: str) -> tuple[float, float]:
        """(minimum, maximum) inverse depth of the video, which 0 and 255 stand for.

        A missing or unreadable file, or one without the two tags, is a ValueError.
        """
        path = self.path(video_id)
        try:
            with av.open(str(path)) as container:
                tags = {key.upper(): value for key, value in container.metadata.items()}
            return float(tags[TAG_LOW]), float(tags[TAG_HIGH])
        except (OSError, av.FFmpegError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is not a depth video with {TAG_LOW} and {TAG_HIGH} tags: {error}."
            ) from error

    def ids(self) -> set[str]:
        """The ids of all videos in the store."""
        return {p.stem for p in self.root.glob(f"*{SUFFIX}") if not p.name.startswith(".")}


def _encode(path: Path, depth_THW: np.ndarray, low: float, high: float, fps: int) -> None:
    """Write luma-only VP9; float64 arithmetic only per frame, to keep memory small."""
    _, height, width = depth_THW.shape
    gain = LUMA_SPAN / (high - low) if high > low else 0.0
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    options = {"fflags": "+bitexact"}
    with av.open(str(path), "w", format="webm", options=options) as container:
        container.metadata.update({TAG_LOW: repr(low), TAG_HIGH: repr(high)})
        stream = container.add_stream("libvpx-vp9", rate=fps, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        stream.codec_context.bit_rate = 0  # so that crf alone decides
        for t, depth_HW in enumerate(depth_THW):
            planes[:height] = np.rint((depth_HW.astype(np.float64) - low) * gain + LUMA_BLACK)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = t, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
