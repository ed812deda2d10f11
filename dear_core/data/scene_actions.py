"""The ten actions of the synthetic data set: where each object appears and how deep it really is.

Why: an honest test of depth needs classes that the colour frames cannot tell apart. A pinhole
camera gives the same image for an object at p with size r and for one at k*p with size k*r. So an
action draws the *appearance* first (image place and apparent radius per frame, the same random
draw for both labels of a pair) and the true distance afterwards, from the label. Paired labels
therefore have identical colour frames, to the bit, and differ in depth alone.

Lengths in the image are in frame heights, measured from the image centre, x right and y down;
distances are in arbitrary scene units along the optical axis. Nothing is rendered here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TEMPLATES = (
    "Deflating [something] in place",
    "Dropping [something] onto [something]",
    "Inflating [something] in place",
    "Lifting [something] up completely without letting it drop down",
    "Moving [something] away from the camera",
    "Moving [something] towards the camera",
    "Passing [something] behind [something]",
    "Passing [something] in front of [something]",
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
)
(DEFLATE, DROP, INFLATE, LIFT, AWAY, TOWARDS, BEHIND, FRONT, PUSH_RIGHT, PUSH_LEFT) = range(10)
DEPTH_ONLY_PAIRS = ((TOWARDS, INFLATE), (AWAY, DEFLATE), (FRONT, BEHIND))


@dataclass(frozen=True)
class Room:
    """The camera and the two planes of a scene: a table below, a wall behind.

    `focal` is in frame heights, `aspect` is width / height, `pitch` is the camera's downward tilt
    in radians, `drop` the camera's height over the table, `wall` the wall's distance.
    """

    aspect: float
    focal: float
    pitch: float
    drop: float
    wall: float
    wall_yaw: float

    def table_depth(self, below: float) -> float:
        """Distance along the optical axis of the table seen `below` frame heights under centre."""
        slope = below / self.focal * np.cos(self.pitch) + np.sin(self.pitch)
        return float(self.drop / slope)


@dataclass(frozen=True)
class Track:
    """One object over T frames: image place, apparent radius (frame heights) and true distance."""

    u_T: np.ndarray
    v_T: np.ndarray
    radius_T: np.ndarray
    depth_T: np.ndarray


def still(frames: int, u: float, v: float, radius: float, depth: float) -> Track:
    """A Track that stands still for `frames` frames."""
    one_T = np.ones(frames)
    return Track(u * one_T, v * one_T, radius * one_T, depth * one_T)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between `low` and `high`, uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _span(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Linear progress 0..1 of a motion that starts and ends at random times within the clip."""
    start, end = rng.uniform(0.04, 0.25), rng.uniform(0.70, 0.94)
    time_T = np.arange(frames) / (frames - 1)
    return np.clip((time_T - start) / (end - start), 0.0, 1.0)


def _ease(progress_T: np.ndarray) -> np.ndarray:
    return progress_T * progress_T * (3.0 - 2.0 * progress_T)


def _crossing(
    rng: np.random.Generator, frames: int, room: Room, middle: float, rightwards: bool
) -> np.ndarray:
    """Horizontal places of an object that crosses 42 to 60 % of the width about `middle`."""
    travel = rng.uniform(0.42, 0.60) * room.aspect
    centre = middle + rng.uniform(-0.05, 0.05) * room.aspect
    step_T = _ease(_span(rng, frames)) - 0.5
    return centre + travel * (step_T if rightwards else -step_T)


def _push(rng: np.random.Generator, frames: int, room: Room, label: int) -> tuple[Track, None]:
    radius, v = rng.uniform(0.095, 0.155), rng.uniform(0.18, 0.29)
    wander_T = 0.01 * np.sin(np.linspace(0, rng.uniform(2, 6), frames) + rng.uniform(0, 6))
    u_T = _crossing(rng, frames, room, 0.0, label == PUSH_RIGHT)
    one_T = np.ones(frames)
    depth = 0.97 * room.table_depth(v + radius)
    return Track(u_T, v + wander_T, radius * one_T, depth * one_T), None


def _lift(rng: np.random.Generator, frames: int, room: Room, label: int) -> tuple[Track, None]:
    radius, v = rng.uniform(0.095, 0.155), rng.uniform(0.18, 0.28)
    u, drift = rng.uniform(-0.25, 0.25) * room.aspect, rng.uniform(-0.06, 0.06)
    rise = rng.uniform(0.34, 0.50)
    step_T, one_T = _ease(_span(rng, frames)), np.ones(frames)
    depth = 0.97 * room.table_depth(v + radius)
    return Track(u + drift * step_T, v - rise * step_T, radius * one_T, depth * one_T), None


def _drop(rng: np.random.Generator, frames: int, room: Room, label: int) -> tuple[Track, Track]:
    base, radius = rng.uniform(0.10, 0.14), rng.uniform(0.085, 0.13)
    u, v = rng.uniform(-0.25, 0.25) * room.aspect, rng.uniform(0.24, 0.31)
    depth = 0.97 * room.table_depth(v + base)
    rest, fall = v - 0.85 * (base + radius), rng.uniform(0.32, 0.42)
    start, length = rng.uniform(0.2, 0.6), rng.uniform(0.16, 0.3)
    time_T = np.clip((np.arange(frames) / (frames - 1) - start) / length, 0.0, None)
    bounce_T = np.clip((time_T - 1.0) / 0.7, 0.0, 1.0)
    height_T = np.where(time_T < 1.0, 1.0 - time_T**2, 0.36 * bounce_T * (1.0 - bounce_T))
    u_T = np.full(frames, u + rng.uniform(-0.02, 0.02))
    one_T = np.ones(frames)
    mover = Track(u_T, rest - fall * height_T, radius * one_T, depth * one_T)
    return mover, still(frames, u, v, base, depth)


def _grow(rng: np.random.Generator, frames: int, room: Room, label: int) -> tuple[Track, None]:
    """Towards / inflating; away / deflating is the same with the two ends exchanged."""
    small, factor = rng.uniform(0.085, 0.13), rng.uniform(1.5, 2.2)
    u, v = rng.uniform(-0.2, 0.2) * room.aspect, rng.uniform(-0.12, 0.07)
    step_T = _ease(_span(rng, frames))
    step_T = 1.0 - step_T if label in (AWAY, DEFLATE) else step_T
    ratio_T = factor**step_T  # a steady relative growth, as of something that comes nearer
    far, between = rng.uniform(2.4, 3.0), rng.uniform(0.0, 1.0)
    depth_T = far / ratio_T
    if label in (INFLATE, DEFLATE):  # one distance anywhere on the path of the other label
        depth_T = np.full(frames, far / factor**between)
    one_T = np.ones(frames)
    return Track(u * one_T, v * one_T, small * ratio_T, depth_T), None


def _pass(rng: np.random.Generator, frames: int, room: Room, label: int) -> tuple[Track, Track]:
    base, radius = rng.uniform(0.085, 0.12), rng.uniform(0.085, 0.12)
    gap = 1.22 * (base + radius) + rng.uniform(0.02, 0.05)  # never overlaps, corners included
    u, middle = rng.uniform(-0.12, 0.12) * room.aspect, rng.uniform(-0.02, 0.06)
    above = 0.5 if rng.random() < 0.6 else -0.5
    u_T = _crossing(rng, frames, room, 0.5 * u, bool(rng.random() < 0.5))
    # The mean varies more than the ratio, so that a distance by itself does not tell the label.
    mean, ratio = log_uniform(rng, 0.95, 2.35), rng.uniform(1.5, 1.85)
    nearer, farther = mean / np.sqrt(ratio), mean * np.sqrt(ratio)
    depth, other = (nearer, farther) if label == FRONT else (farther, nearer)
    one_T = np.ones(frames)
    mover = Track(u_T, (middle - above * gap) * one_T, radius * one_T, depth * one_T)
    return mover, still(frames, u, middle + above * gap, base, other)


_DRAW: dict[int, Callable[..., tuple[Track, Track | None]]] = {
    DEFLATE: _grow,
    DROP: _drop,
    INFLATE: _grow,
    LIFT: _lift,
    AWAY: _grow,
    TOWARDS: _grow,
    BEHIND: _pass,
    FRONT: _pass,
    PUSH_RIGHT: _push,
    PUSH_LEFT: _push,
}


def draw_tracks(rng: np.random.Generator, frames: int, room: Room, label: int) -> tuple[Track, Track | None]:
    """The moving object's Track and, in the classes with two objects, the static partner's.

    `label` is an index into TEMPLATES; an unknown one is a ValueError.
    """
    if label not in _DRAW:
        raise ValueError(
            f"label {label!r} is no action of the synthetic data; give 0 to {len(TEMPLATES) - 1}."
        )
    return _DRAW[label](rng, frames, room, label)
