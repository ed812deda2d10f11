"""A folder of depth videos: one per source video, same name, same frame count and order.

Why: depth is estimated once and then read by frame index as fast as colour. ROOT/store.json says what made
the depth; ROOT/<id>.webm (or .mkv, by codec) holds a source's depth as grey levels in full range, see
``encoding``. The depth is relative *inverse* depth (large = near) with one scale for the whole video, so that
motion in depth survives. The scale is kept as tags of the same file, so one rename publishes both.

It does not estimate depth, does not resize, and does not decode: readers take ``path(id)``. Level g of 255
stands for low + (high - low) * g / 255, with (low, high) of ``scale(id)``.

A process that writes must import this module before decord, see ``encoding``.
"""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av

from dear_core.depth import encoding
from dear_core.depth.levels import NORMALISATIONS, Frames, to_levels, video_scale
from dear_core.errors import InputError

FORMAT = 2
FASTEST = 1000  # frames a second: the containers count time in milliseconds
TAG_LOW, TAG_HIGH = "DEPTH_MIN", "DEPTH_MAX"
_NAME = "store.json"

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True)
class StoreInfo:
    """What made a store. ``height`` is the videos' shorter side in pixels, ``weights`` a hash of the model's.

    ``normalisation`` is a key of ``levels.NORMALISATIONS``, ``codec`` one of ``encoding.CODECS``.
    """

    model: str
    height: int
    normalisation: str = "video-minmax"
    codec: str = "vp9-crf10"
    weights: str | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"depth store: model is {self.model!r}; name the estimator")
        if type(self.height) is not int or self.height < 2 or self.height % 2:
            raise InputError(f"depth store: height is {self.height!r}; give an even number of pixels above 0")
        for name, choices in (("normalisation", NORMALISATIONS), ("codec", encoding.CODECS)):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"depth store: {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        if self.weights is not None and not isinstance(self.weights, str):
            raise InputError(f"depth store: weights is {self.weights!r}; give their hash, or nothing")
        if self.format != FORMAT:
            raise InputError(
                f"depth store: format is {self.format!r}, and this version knows only {FORMAT}; make the "
                "store again"
            )

    def differences(self, expected: Mapping[str, object]) -> str | None:
        """ "was made with model A, height 240; the config names model B, height 120"; None where all agree.

        ``expected`` names fields; those that are None may be anything.
        """
        named = {name: value for name, value in expected.items() if value is not None}
        return self._differences(named, "the config names")

    def _differences(self, expected: Mapping[str, object], other: str = "this is") -> str | None:
        own = {name: getattr(self, name) for name, value in expected.items() if getattr(self, name) != value}
        if not own:
            return None
        wanted = {name: expected[name] for name in own}
        return f"was made with {_listed(own)}; {other} {_listed(wanted)}"


class DepthStore:
    """An open depth store; make one with ``DepthStore.create`` or ``DepthStore.open``."""

    def __init__(self, root: Path, info: StoreInfo) -> None:
        self.root = root
        self.info = info
        self._codec = encoding.CODECS[info.codec]

    @classmethod
    def create(cls, root: str | Path, info: StoreInfo) -> DepthStore:
        """Create the store, or open the one that is there.

        Raises:
            InputError: the store was made with something else, the folder holds other files (they could be
                the source videos), or it cannot be written.
        """
        root = Path(root)
        try:
            if (root / _NAME).exists():
                store = cls.open(root)
                if found := store.info._differences(asdict(info)):
                    raise InputError(
                        f"depth store {root} {found}; choose another folder with --out, or remove it"
                    )
                return store
            root.mkdir(parents=True, exist_ok=True)
            if any(not path.name.startswith(".") and path.name != _NAME for path in root.iterdir()):
                raise InputError(
                    f"{root} is no depth store and not empty; choose another folder with --out, or empty it"
                )
            part = root / f".{uuid.uuid4().hex}.json"
            try:
                part.write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
                part.replace(root / _NAME)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"depth store {root} cannot be made ({error.strerror})") from None
        return cls(root, info)

    @classmethod
    def open(cls, root: str | Path) -> DepthStore:
        """Open an existing store; a missing or invalid store.json is an ``InputError``."""
        path = Path(root) / _NAME
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{root} is no depth store: it has no {_NAME}") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from None
        except ValueError as error:  # not JSON, or not UTF-8
            raise InputError(f"{path} is not the description of a depth store: {error}") from None
        if not isinstance(fields, dict) or "format" not in fields:
            raise InputError(f"{path} is not the description of a depth store: it gives no format")
        if fields["format"] != FORMAT:
            raise InputError(
                f"depth store {root} has format {fields['format']!r}, and this version knows only {FORMAT}; "
                "remove it and make it again"
            )
        try:
            return cls(Path(root), StoreInfo(**fields))
        except (TypeError, InputError) as error:
            raise InputError(f"{path} is not the description of a depth store: {error}") from None

    def path(self, source_id: str) -> Path:
        """Where the depth of a source is or will be.

        Raises:
            InputError: ``source_id`` is no relative path with plain parts ("P01/P01_01", "a b/c").
        """
        hidden = any(not part or part.startswith(".") for part in source_id.split("/"))
        if hidden or "\\" in source_id or "\0" in source_id:
            raise InputError(
                f"{source_id!r} cannot name a depth video; give a relative path without empty or hidden "
                "parts, '..' or backslashes"
            )
        return self.root / f"{source_id}{self._codec.suffix}"

    def ids(self) -> set[str]:
        """The ids of all videos in the store."""
        found = set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = Path(folder).relative_to(self.root).as_posix()
            prefix = "" if below == "." else f"{below}/"
            found |= {
                prefix + name.removesuffix(self._codec.suffix)
                for name in files
                if name.endswith(self._codec.suffix) and not name.startswith(".")
            }
        return found

    def write(self, source_id: str, inverse_depth_THW: Frames, fps: int | Fraction) -> None:
        """Normalise over the whole video, encode, and publish by one rename.

        Frames are taken one at a time, twice; floats of any size, even sides, the shorter one
        ``info.height``. A video of one value becomes level 0.

        Raises:
            InputError: a shape, rate or id that does not fit, or a value that is not finite; it names the
                source, and nothing is published.
        """
        path = self.path(source_id)
        rate = Fraction(fps)
        self._require_fit(source_id, inverse_depth_THW.shape, rate)
        low, high = video_scale(inverse_depth_THW, self.info.normalisation)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.parent / f".{uuid.uuid4().hex}{self._codec.suffix}"
        tags = {TAG_LOW: repr(low), TAG_HIGH: repr(high)}
        try:
            levels = to_levels(inverse_depth_THW, low, high, source_id)
            encoding.encode(part, levels, self._codec, rate, tags)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def scale(self, source_id: str) -> tuple[float, float]:
        """The inverse depths that levels 0 and 255 stand for.

        Raises:
            InputError: the file is missing or unreadable, or lacks the two tags.
        """
        path = self.path(source_id)
        try:
            tags = encoding.read_tags(path)
            return float(tags[TAG_LOW]), float(tags[TAG_HIGH])
        except (OSError, av.FFmpegError, KeyError, ValueError):
            raise InputError(
                f"{path} is not a depth video with {TAG_LOW} and {TAG_HIGH} tags; remove it and make it again"
            ) from None

    def verify(
        self, sources: Mapping[str, int | None], progress: Progress | None = None, threads: int | None = None
    ) -> list[str]:
        """What is wrong with the store for ``sources``, a sentence each; empty: nothing.

        ``sources`` maps ids to frames, None where they could not be counted.

        Counts frames by packets and compares sizes; a cut file is found wherever it was cut. Pixels are not
        decoded: a file whose inside was overwritten passes.
        """
        found, total = [], len(sources)
        with ThreadPoolExecutor(threads or min(16, 2 * (os.cpu_count() or 1))) as pool:
            for done, fault in enumerate(_in_order(pool, self._fault, sources.items()), start=1):
                if fault is not None:
                    found.append(fault)
                if progress:
                    progress(done, total, "checking depth")
        extra = sorted(self.ids() - set(sources))
        return found + [f"{self.path(name)}: no source has this name; remove it" for name in extra]

    def _fault(self, source: tuple[str, int | None]) -> str | None:
        source_id, frames = source
        path, again = self.path(source_id), "remove it and estimate it again"
        try:
            facts = encoding.read_facts(path)
        except FileNotFoundError:
            return f"{path}: missing; estimate the depth of {source_id}"
        except encoding.TruncatedError as error:
            return f"{error}: cut off or damaged; {again}"
        except (OSError, av.FFmpegError, IndexError):
            return f"{path}: not readable as a video; {again}"
        if frames is not None and facts.frames != frames:
            return f"{path}: {facts.frames} frames of depth, but its source has {frames}; {again}"
        if min(facts.width, facts.height) != self.info.height:
            return (
                f"{path}: {facts.width}x{facts.height}, its shorter side is not {self.info.height}; {again}"
            )
        if not {TAG_LOW, TAG_HIGH} <= facts.tags.keys():
            return f"{path}: no scale, its tags {TAG_LOW} and {TAG_HIGH} are missing; {again}"
        if not facts.full_range:
            return f"{path}: grey levels in limited range, not written by this store; {again}"
        return None

    def _require_fit(self, source_id: str, shape: tuple[int, ...], rate: Fraction) -> None:
        if len(shape) != 3 or 0 in shape or not 0 < rate <= FASTEST:
            raise InputError(
                f"depth of {source_id} has shape {tuple(shape)} at {rate} frames a second; give "
                f"(frames, height, width), none of them 0, and a rate above 0 and up to {FASTEST}"
            )
        height, width = shape[1:]
        if min(height, width) != self.info.height or height % 2 or width % 2:
            raise InputError(
                f"depth of {source_id} is {width}x{height}; {self.root} holds videos with even sides whose "
                f"shorter one is {self.info.height} (see even_size)"
            )


def even_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is `shorter`, the longer rounded to even."""
    longer = 2 * round(shorter * max(height, width) / min(height, width) / 2)
    return (shorter, longer) if height <= width else (longer, shorter)


def _listed(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {'unknown' if value is None else value}" for name, value in fields.items())


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[tuple[str, int]], str | None], items: Iterable[tuple[str, int]]
) -> Iterator[str | None]:
    """``pool.map`` that holds few items at a time; sources can be hundreds of thousands."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, 1024)):
        yield from pool.map(work, batch)
