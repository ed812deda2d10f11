"""Random tabletop scenes and their clips: colour frames and estimated inverse depth.

Why: the demo data set needs clips in which depth, and for some classes depth alone, tells the
action. `draw_scene` draws everything from SeedSequence([seed, number]); `render_clip` renders it,
so the same three numbers give the same pixels in whatever process. The camera stands at the
origin and only turns (hand-held jitter): turning keeps paired labels identical in colour.
Nothing is written to disk here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dear_core.data import scene_kernels as kernels
from dear_core.data.scene_actions import TEMPLATES, Room, Track, draw_tracks, log_uniform, still
from dear_core.data.scene_textures import PATTERNS, object_texture, surface_texture

FPS = 12
HEIGHT = 240
WIDTHS = (320, 426)
DEPTH_HEIGHT = 120
DEPTH_WIDTHS = {320: 160, 426: 214}  # even, as 4:2:0 video asks
TAPS = 15


@dataclass(frozen=True)
class Body:
    """An object: form, pattern, semi-axes over apparent radius, first yaw, spin over the clip."""

    box: bool
    pattern: str
    semi_3: np.ndarray
    yaw: float
    spin: float
    tilt: float
    track: Track

    @property
    def noun(self) -> str:
        """What the object is called in a label, such as "a striped ball"."""
        round_form = "ball" if self.semi_3.min() > 0.88 * self.semi_3.max() else "egg"
        form = "box" if self.box else round_form
        return f"a {self.pattern} {form}"


@dataclass(frozen=True)
class Scene:
    """One clip before rendering. The first bodies are the label's objects, then the clutter."""

    frames: int
    width: int
    room: Room
    bodies: tuple[Body, ...]
    placeholders: tuple[str, ...]
    angles_T3: np.ndarray
    light_3: np.ndarray
    ambient: float
    gain_T: np.ndarray
    noise: float
    streams: tuple[np.random.SeedSequence, ...]


def _draw_body(rng: np.random.Generator, track: Track, turning: bool) -> Body:
    box = bool(rng.random() < 0.4)
    pattern = str(rng.choice(PATTERNS))
    semi_3 = rng.uniform(0.55, 0.75, 3) if box else rng.uniform(0.74, 1.0, 3)
    if not box and rng.random() < 0.5:
        semi_3 = np.full(3, 0.97)
    spin = rng.uniform(0.2, 1.2) * rng.choice((-1.0, 1.0)) if turning else 0.0
    tilt = rng.uniform(-0.25, 0.25) if turning else 0.0
    return Body(box, pattern, semi_3, rng.uniform(0, 2 * np.pi), spin, tilt, track)


def _draw_room(rng: np.random.Generator, aspect: float) -> Room:
    return Room(
        aspect=aspect,
        focal=rng.uniform(1.15, 1.35),
        pitch=np.radians(rng.uniform(12.0, 19.0)),
        drop=rng.uniform(2.2, 2.65),
        wall=rng.uniform(7.0, 9.0),
        wall_yaw=np.radians(rng.uniform(-16.0, 16.0)),
    )


def _draw_clutter(rng: np.random.Generator, frames: int, room: Room) -> list[Body]:
    """Two to four still objects at the back of the table, behind every place an actor reaches."""
    count = int(rng.integers(2, 5))
    slots = (rng.permutation(5)[:count] + rng.uniform(0.2, 0.8, count)) / 5 - 0.5
    bodies = []
    for slot in slots:
        depth, size = rng.uniform(5.3, 0.85 * room.wall), rng.uniform(0.32, 0.62)
        body = _draw_body(rng, still(frames, 0.0, 0.0, 0.0, depth), turning=False)
        foot = room.drop - size * body.semi_3[1]  # rests on the table
        v = room.focal * (foot / depth - np.sin(room.pitch)) / np.cos(room.pitch)
        track = still(frames, slot * room.aspect, v, size * room.focal / depth, depth)
        bodies.append(Body(body.box, body.pattern, body.semi_3, body.yaw, 0.0, 0.0, track))
    return bodies


def _smooth_walk(rng: np.random.Generator, frames: int, size: float, channels: int) -> np.ndarray:
    """Smooth random curves (frames, channels): three slow sines each, about `size` in height."""
    time_T = np.arange(frames) / FPS
    total = np.zeros((frames, channels))
    for _ in range(3):
        rate, phase = rng.uniform(0.15, 1.3, channels), rng.uniform(0, 2 * np.pi, channels)
        swing = size * rng.uniform(0.2, 0.6, channels)
        total += swing * np.sin(2 * np.pi * rate * time_T[:, None] + phase)
    return total


def draw_scene(seed: int, number: int, label: int) -> Scene:
    """The scene of clip `number`; paired labels share every draw but the actors' true distances.

    `label` is an index into TEMPLATES (ValueError otherwise); seed and number are >= 0.
    """
    if seed < 0 or number < 0:
        raise ValueError(f"seed {seed} and clip number {number} must both be 0 or more.")
    streams = np.random.SeedSequence([seed, number]).spawn(6)
    rng = np.random.default_rng(streams[0])
    frames = int(np.clip(round(FPS * (2.0 + 3.0 * rng.beta(1.0, 3.4))), 2 * FPS, 5 * FPS))
    width = WIDTHS[int(rng.random() < 0.25)]
    room = _draw_room(rng, width / HEIGHT)
    clutter = _draw_clutter(rng, frames, room)
    side = rng.uniform(-0.8, 0.8)
    light_3 = np.array([side, rng.uniform(-1.0, -0.5), rng.uniform(-1.0, -0.4)])
    action = np.random.default_rng(streams[1])
    mover, partner = draw_tracks(action, frames, room, label)
    actors = [_draw_body(action, mover, turning=True)]
    if partner is not None:
        actors.append(_draw_body(action, partner, turning=False))
    return Scene(
        frames=frames,
        width=width,
        room=room,
        bodies=(*actors, *clutter),
        placeholders=tuple(body.noun for body in actors),
        angles_T3=_smooth_walk(rng, frames, np.radians(rng.uniform(0.2, 1.0)), 3),
        light_3=light_3 / np.linalg.norm(light_3),
        ambient=rng.uniform(0.35, 0.55),
        gain_T=rng.uniform(0.85, 1.1) * (1.0 + _smooth_walk(rng, frames, 0.03, 1)[:, 0]),
        noise=rng.uniform(0.8, 2.5),
        streams=tuple(streams),
    )


def _turn(axis: int, angle: float) -> np.ndarray:
    """Rotation by `angle` radians about axis 0, 1 or 2."""
    c, s = np.cos(angle), np.sin(angle)
    matrix_33 = np.eye(3)
    a, b = [k for k in range(3) if k != axis]
    matrix_33[a, a], matrix_33[a, b], matrix_33[b, a], matrix_33[b, b] = c, -s, s, c
    return matrix_33


def _room_frame(room: Room) -> np.ndarray:
    """Columns: right, down (gravity) and level forward, in the unturned camera's axes."""
    c, s = np.cos(room.pitch), np.sin(room.pitch)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _planes(scene: Scene) -> np.ndarray:
    """Rows for the kernel: the table, then the wall."""
    frame_33 = _room_frame(scene.room) @ _turn(1, scene.room.wall_yaw)
    right, down, forward = frame_33.T
    table = (down, scene.room.drop, 0.22 * right, 0.22 * forward)
    wall = (forward, scene.room.wall, 0.16 * right, 0.16 * down)
    rows = []
    for normal, offset, axis_u, axis_v in (table, wall):
        lambert = max(0.0, float(-normal @ scene.light_3))
        shade = scene.ambient + (1.1 - scene.ambient) * lambert
        rows.append(np.concatenate([normal, [offset], axis_u, axis_v, [shade]]))
    return np.array(rows)


def _body_rows(scene: Scene, t: int, frame_33: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(scene.bodies), kernels.BODY_COLUMNS))
    for n, body in enumerate(scene.bodies):
        turn = body.yaw + body.spin * t / scene.frames
        axes_33 = frame_33 @ _turn(1, turn) @ _turn(0, body.tilt)
        track, focal = body.track, scene.room.focal
        rows[n, kernels.BOX] = body.box
        rows[n, 1:4] = track.u_T[t] / focal, track.v_T[t] / focal, 1.0
        rows[n, 4:7] = focal / (track.radius_T[t] * body.semi_3)
        rows[n, 7:16] = axes_33.ravel()
        rows[n, kernels.DEPTH] = track.depth_T[t]
        rows[n, kernels.TEXTURE] = 2 + n
        rows[n, kernels.REPEAT] = 1.0
    return rows


def _taps(source: int, target: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (target, TAPS) and first source index (target,) of a blur that also shrinks."""
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.round(centre).astype(np.int64) - TAPS // 2
    away = first[:, None] + np.arange(TAPS) - centre[:, None]
    weights = np.exp(-0.5 * (away / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), first


def _hats(source: int, target: int) -> np.ndarray:
    """Matrix (target, source) of linear interpolation from `source` even samples."""
    place = np.linspace(0.0, source - 1.0, target)
    return np.clip(1.0 - np.abs(place[:, None] - np.arange(source)), 0.0, 1.0)


def _estimate(inverse_THW: np.ndarray, stream: np.random.SeedSequence) -> np.ndarray:
    """What an estimator would return: smooth slow errors, and an unknown scale and shift."""
    rng = np.random.default_rng(stream)
    frames, height, width = inverse_THW.shape
    span = float(inverse_THW.max() - inverse_THW.min())
    grid_KRC = rng.standard_normal((4, 6, 8))
    noise_TRC = np.tensordot(_hats(4, frames), grid_KRC, axes=1)
    noise_TRW = np.einsum("trc,wc->trw", noise_TRC, _hats(8, width))
    rows_HR = _hats(6, height)
    size, scale = span * rng.uniform(0.004, 0.012), log_uniform(rng, 200.0, 2000.0)
    shift = span * rng.uniform(0.0, 0.5)
    out_THW = np.empty_like(inverse_THW)
    for t in range(frames):
        noise_HW = np.einsum("hr,rw->hw", rows_HR, noise_TRW[t])
        out_THW[t] = scale * (inverse_THW[t] + size * noise_HW + shift)
    return out_THW


def render_scene(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Colour uint8 (T, 240, W, 3) and estimated inverse depth float32 (T, 120, W / 2 or so)."""
    paint, sensor, blur = (np.random.default_rng(s) for s in scene.streams[2:5])
    surfaces = [surface_texture(paint, plain=False), surface_texture(paint, plain=True)]
    actors = len(scene.placeholders)
    objects = [
        object_texture(paint, body.pattern, vivid=n < actors)
        for n, body in reversed(list(enumerate(scene.bodies)))
    ]
    textures_NSSC = np.stack([*surfaces, *reversed(objects)])
    planes_PK, frame_33 = _planes(scene), _room_frame(scene.room)
    noise_AB = (scene.noise * sensor.standard_normal((HEIGHT + 64, scene.width + 64))).astype("f4")
    small_width, sigma = DEPTH_WIDTHS[scene.width], blur.uniform(1.4, 2.4)
    rows, columns = _taps(HEIGHT, DEPTH_HEIGHT, sigma), _taps(scene.width, small_width, sigma)
    rgb_THWC = np.empty((scene.frames, HEIGHT, scene.width, 3), np.uint8)
    inverse_THW = np.empty((scene.frames, DEPTH_HEIGHT, small_width), np.float32)
    colour_HWC = np.empty((HEIGHT, scene.width, 3), np.float32)
    z_HW = np.empty((HEIGHT, scene.width), np.float32)
    for t in range(scene.frames):
        pitch, yaw, roll = scene.angles_T3[t]
        camera_33 = _turn(0, pitch) @ _turn(1, yaw) @ _turn(2, roll)
        kernels.render_frame(
            colour_HWC,
            z_HW,
            camera_33,
            scene.room.focal * HEIGHT,
            planes_PK,
            _body_rows(scene, t, frame_33),
            textures_NSSC,
            scene.light_3,
            scene.ambient,
        )
        row, column = sensor.integers(0, 64, 2)
        kernels.expose(colour_HWC, noise_AB, row, column, scene.gain_T[t], rgb_THWC[t])
        kernels.resample(z_HW, *rows, *columns, inverse_THW[t])
    return rgb_THWC, _estimate(inverse_THW, scene.streams[5])


def render_clip(seed: int, number: int, label: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Clip `number` as action TEMPLATES[label], before any encoding.

    Returns colour uint8 (T, 240, W, 3), estimated inverse depth float32 (T, 120, W') (large =
    near, unknown scale and shift) and the frames per second. The same three arguments give the
    same arrays in every process. Errors as `draw_scene`.
    """
    return (*render_scene(draw_scene(seed, number, label)), FPS)


def label_text(template: str, placeholders: tuple[str, ...]) -> str:
    """`template` with each "[something]" replaced by the next of `placeholders`."""
    if template.count("[something]") != len(placeholders) or template not in TEMPLATES:
        raise ValueError(f"{len(placeholders)} placeholders do not fit the template {template!r}.")
    for noun in placeholders:
        template = template.replace("[something]", noun, 1)
    return template
