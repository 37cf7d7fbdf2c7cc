"""What the generators share: a scene of a set, and its shapes drawn with smooth edges."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (45, 105, 214),
    "yellow": (238, 200, 40),
    "purple": (140, 70, 190),
    "orange": (238, 125, 30),
}
# Corners of each shape in a square from -1 to 1; a circle has none.
SHAPES = {
    "circle": (),
    "square": ((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)),
    "triangle": ((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)),
}
SCALE = 4  # shapes are drawn at this multiple of the size, then reduced


class Scene(NamedTuple):
    """One picture with what is in it, and the rows of `metadata.jsonl` that are about it.

    Attributes:
      image: the picture, a PIL image.
      record: what the generator placed, from which the answers can be worked out again.
      rows: columns of each row, without `file_name`.
    """

    image: Any
    record: dict[str, Any]
    rows: list[dict[str, str]]


def choose(rng, items):
    """One of `items`, all equally probable."""
    return items[int(rng.integers(len(items)))]


def background(rng, size, *, noise=24.0, level=(150, 256)):
    """A plain or a noisy background [size size 3], uint8."""
    picture = np.ones((size, size, 3)) * rng.integers(*level, size=3)
    if rng.random() < 0.5:
        picture = picture + rng.normal(0.0, rng.uniform(4.0, noise), size=picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def shaded(rng, color, spread=14):
    """The RGB triple `color` with each channel changed by up to `spread`."""
    return tuple(
        int(c) for c in np.clip(np.add(color, rng.integers(-spread, spread + 1, 3)), 0, 255)
    )


def draw_shape(picture, shape, center, radius, color):
    """Draws one of `SHAPES` into an RGB image, around `center` (x, y), all in pixels."""
    size = int(2 * radius) + 5
    left, top = int(center[0]) - size // 2, int(center[1]) - size // 2
    mask = Image.new("L", (size * SCALE, size * SCALE))
    pen = ImageDraw.Draw(mask)
    x, y, r = (v * SCALE for v in (center[0] - left, center[1] - top, radius))
    if corners := SHAPES[shape]:
        pen.polygon([(x + r * a, y + r * b) for a, b in corners], fill=255)
    else:
        r *= 0.92
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    picture.paste(
        Image.new("RGB", (size, size), color),
        (left, top),
        mask.resize((size, size), Image.Resampling.BOX),
    )
