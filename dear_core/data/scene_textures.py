"""Procedural textures of the synthetic scenes: small tileable colour images.

Why: objects and surfaces that differ in colour and pattern give the networks something to follow
without any downloaded picture. Everything is drawn from the generator passed in; nothing is kept.
"""

from __future__ import annotations

import colorsys

import numpy as np

SIDE = 128
PATTERNS = ("checked", "striped", "spotted", "marbled")


def draw_colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """A random RGB colour, float (3,) in 0..255, with HSV saturation and value in the ranges."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return 255.0 * np.array(rgb)


def _value_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth tileable noise (SIDE, SIDE) in 0..1 with `cells` random values along each axis."""
    grid = rng.random((cells, cells))
    place = np.arange(SIDE) * cells / SIDE
    low = place.astype(int)
    part = place - low
    part = part * part * (3.0 - 2.0 * part)
    high = (low + 1) % cells
    rows = grid[low] * (1.0 - part)[:, None] + grid[high] * part[:, None]
    return rows[:, low] * (1.0 - part) + rows[:, high] * part


def _cloud(rng: np.random.Generator, cells: int) -> np.ndarray:
    return (_value_noise(rng, cells) * 4 + _value_noise(rng, 2 * cells) * 2) / 6.0


def _mask(rng: np.random.Generator, pattern: str) -> np.ndarray:
    """Where the second colour shows, (SIDE, SIDE) in 0..1."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    if pattern == "checked":
        count = int(rng.integers(2, 4))
        wave = np.sin(2 * np.pi * count * x) * np.sin(2 * np.pi * count * y)
        return np.clip(0.5 + 6.0 * wave, 0.0, 1.0)
    if pattern == "striped":
        across, along = rng.integers(0, 3), rng.integers(2, 5)
        wave = np.sin(2 * np.pi * (along * y + across * x))
        return np.clip(0.5 + 5.0 * wave, 0.0, 1.0)
    if pattern == "spotted":
        count = int(rng.integers(2, 5))
        dx, dy = (count * x) % 1.0 - 0.5, (count * y) % 1.0 - 0.5
        return np.clip(0.5 + 12.0 * (0.3 - np.hypot(dx, dy)), 0.0, 1.0)
    return np.clip(0.5 + 3.0 * (_cloud(rng, int(rng.integers(3, 7))) - 0.5), 0.0, 1.0)


def object_texture(rng: np.random.Generator, pattern: str, vivid: bool) -> np.ndarray:
    """A two-colour texture for an object, float32 (SIDE, SIDE, 3) in 0..255.

    The objects of an action are vivid, as what is held to the camera is; clutter is dull. This is the
    same in every class.
    """
    if vivid:
        first = draw_colour(rng, (0.6, 0.95), (0.8, 1.0))
        second = draw_colour(rng, (0.0, 0.6), (0.85, 1.0))
    else:
        first = draw_colour(rng, (0.05, 0.4), (0.2, 0.45))
        second = draw_colour(rng, (0.05, 0.4), (0.25, 0.55))
    mask = _mask(rng, pattern)[..., None]
    texture = first * (1.0 - mask) + second * mask
    return (texture * (0.92 + 0.16 * _value_noise(rng, 16))[..., None]).astype(np.float32)


def surface_texture(rng: np.random.Generator, plain: bool) -> np.ndarray:
    """A muted texture for the table or the wall, float32 (SIDE, SIDE, 3) in 0..255."""
    colour = draw_colour(rng, (0.08, 0.35), (0.2, 0.45))
    kind = "cloud" if plain else str(rng.choice(("grain", "tiles", "stripes", "cloud")))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    noise = _cloud(rng, 5)
    contrast = rng.uniform(0.06, 0.16)
    if kind == "grain":
        wave = np.sin(2 * np.pi * (6 * x + 1.2 * noise)) + 0.6 * np.sin(2 * np.pi * 17 * x)
    elif kind == "tiles":
        wave = np.sign(np.sin(4 * np.pi * x) * np.sin(4 * np.pi * y)) * 1.2
    elif kind == "stripes":
        wave = np.clip(4 * np.sin(2 * np.pi * 3 * x), -1, 1)
    else:
        wave = 4.0 * (noise - 0.5)
    shade = 1.0 + contrast * wave + 0.2 * (noise - 0.5)
    return np.clip(colour * shade[..., None], 0, 255).astype(np.float32)
