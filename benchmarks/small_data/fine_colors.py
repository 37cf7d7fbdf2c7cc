"""`fine_colors`: two shapes side by side whose colors differ a little; which is lighter, or bluer.

Lightness is the mean of red, green and blue; how red a color is, its red above the mean of the two
others, and so on. Pairs are asked about only where they differ by `MARGIN` of 255 levels at least,
and at most by about 30.
"""

import numpy as np
from PIL import Image

from .pictures import SHAPES, Scene, background, choose, draw_shape

SIZES = {"train": 8000, "validation": 500, "test": 1000}
PIXELS = 64
MARGIN = 8.0
STEP = 24  # largest difference of a channel
WEIGHTS = {
    "light": (1 / 3, 1 / 3, 1 / 3),
    "red": (1.0, -0.5, -0.5),
    "green": (-0.5, 1.0, -0.5),
    "blue": (-0.5, -0.5, 1.0),
}
MORE = {"light": "lighter", "red": "more red", "green": "more green", "blue": "more blue"}
LESS = {"light": "darker", "red": "less red", "green": "less green", "blue": "less blue"}


def amount(quality, color):
    """How light, red, green or blue an RGB triple is, in levels of 255."""
    return float(np.dot(WEIGHTS[quality], color))


def difference(quality, colors):
    """How much more of the quality the left one has."""
    return amount(quality, colors["left"]) - amount(quality, colors["right"])


def answer(kind, quality, more, side, colors):
    """The answer about `colors`, {"left": RGB, "right": RGB}.

    `more` says whether the question asks for more of the quality or for less.
    """
    if kind == "same":
        return "yes" if tuple(colors["left"]) == tuple(colors["right"]) else "no"
    pick = max if more else min
    winner = pick(colors, key=lambda name: amount(quality, colors[name]))
    if kind == "which":
        return winner
    return "yes" if winner == side else "no"


def scene(rng):
    """A picture of two shapes; a fifth of the pairs have one color."""
    first, equal, far = rng.integers(50, 206, size=3), rng.random() < 0.2, []
    colors = dict.fromkeys(("left", "right"), tuple(int(v) for v in first))
    while not (equal or far):
        other = first + rng.integers(-STEP, STEP + 1, size=3)
        colors["right"] = tuple(int(v) for v in other)
        far = [quality for quality in WEIGHTS if abs(difference(quality, colors)) >= MARGIN]
    image = Image.fromarray(background(rng, PIXELS, noise=8.0, level=(20, 236)))
    for name, middle in (("left", PIXELS / 4), ("right", 3 * PIXELS / 4)):
        radius = rng.uniform(9, 13)
        center = (middle + rng.uniform(-2, 2), rng.uniform(radius + 1, PIXELS - radius - 1))
        draw_shape(image, choose(rng, list(SHAPES)), center, radius, colors[name])
    rows, asked = [], []
    for kind, quality in [("same", "light"), *[(k, q) for q in far for k in ("which", "is_it")]]:
        more, side = bool(rng.random() < 0.5), choose(rng, list(colors))
        word = (MORE if more else LESS)[quality]
        question = {
            "same": "do both have the same color?",
            "which": f"which one is {word}, left or right?",
            "is_it": f"is the {side} one {word}?",
        }[kind]
        result = answer(kind, quality, more, side, colors)
        asked.append((kind, quality, more, side))
        question_type = "same" if kind == "same" else quality
        rows.append(dict(question=question, answer=result, question_type=question_type))
    return Scene(image, dict(colors=colors, asked=asked), rows)


def scenes(split, rng):
    """Scenes without end; all splits are drawn in the same way."""
    while True:
        yield scene(rng)
