"""Objects of a scene: attributes, rendering and descriptions.

The rasterizer is a few lines of arithmetic over numpy's stable PCG64 streams, so that a scene is
the same on every machine.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Option = TypeVar("Option")

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 85, 220),
    "yellow": (235, 210, 50),
}
CELLS = 3  # objects stand near the middles of a grid of so many cells a side
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
SIZES = {"small": 0.085, "large": 0.145}  # half-extent as a fraction of the image side


class Thing(NamedTuple):
    """One object; ``x`` and ``y`` are the center in image sides, y growing downwards."""

    shape: str
    color: str
    size: str
    x: float
    y: float


def render(things: Sequence[Thing], rng: np.random.Generator, image_size: int = 64) -> np.ndarray:
    """Paints the objects in order on a shaded background, with noise: uint8 [h w 3]."""
    side = image_size
    grid = (np.arange(side, dtype=np.float32) + 0.5) / side
    slope = rng.uniform(-35, 35, 2).astype(np.float32)
    shade = slope[0] * (grid[:, None] - 0.5) + slope[1] * (grid[None, :] - 0.5)
    base = np.float32(rng.uniform(60, 125)) + rng.uniform(-10, 10, 3).astype(np.float32)
    image: np.ndarray = shade[:, :, None] + base[None, None, :]
    for thing in things:
        half = SIZES[thing.size] * float(rng.uniform(0.92, 1.08))
        lo_x, hi_x = _span(thing.x, half, side)
        lo_y, hi_y = _span(thing.y, half, side)
        dx = grid[None, lo_x:hi_x] - np.float32(thing.x)
        dy = grid[lo_y:hi_y, None] - np.float32(thing.y)
        distance = _DISTANCE[thing.shape](dx, dy, np.float32(half))
        alpha = np.clip(0.5 - distance * side, 0, 1)[:, :, None]  # one pixel of anti-aliasing
        color: np.ndarray = np.asarray(COLORS[thing.color], np.float32)
        color = color * np.float32(rng.uniform(0.85, 1.0)) + rng.uniform(-12, 12, 3)
        patch = image[lo_y:hi_y, lo_x:hi_x]
        image[lo_y:hi_y, lo_x:hi_x] = patch + alpha * (color.astype(np.float32) - patch)
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(7)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _span(center: float, half: float, side: int) -> tuple[int, int]:
    return max(0, int((center - half) * side) - 2), min(side, int((center + half) * side) + 3)


def _circle(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.sqrt(dx * dx + dy * dy) - r


def _square(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(dx), np.abs(dy)) - r


def _triangle(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    slanted = np.abs(dx) * np.float32(0.894) - (dy + r) * np.float32(0.447)
    return np.maximum(slanted, dy - r * np.float32(0.9))


# Signed distance from the outline, negative inside.
_DISTANCE: dict[str, Callable[..., np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
}


def caption(things: Sequence[Thing]) -> str:
    """Every object and its place, from left to right."""
    return listed([describe(thing) for thing in sorted(things, key=lambda t: t.x)])


def describe(thing: Thing) -> str:
    """ "a small red circle at the top left"."""
    return f"a {thing.size} {thing.color} {thing.shape} at the {place(*cell(thing))}"


def cell(thing: Thing) -> tuple[int, int]:
    """Row and column of the grid that an object stands in."""
    return int(thing.y * CELLS), int(thing.x * CELLS)


def place(row: int, column: int) -> str:
    """ "top left", "right", "middle" and so on."""
    return " ".join(word for word in (ROWS[row], COLUMNS[column]) if word) or "middle"


def listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, drawn evenly."""
    return options[int(rng.random() * len(options))]
