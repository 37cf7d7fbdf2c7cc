"""`sort_of_clevr`: relational and non-relational questions (Santoro et al. 2017, arXiv:1706.01427).

The paper's protocol: pictures of 75 x 75 pixels with six objects, one of each color, each a circle
or a square; 10 relational and 10 non-relational questions a picture; 9,800 pictures to train and
200 to test. Different here: questions are English and not binary codes, and validation has 200
pictures of its own, so that test is read once.
"""

import itertools
import math

import numpy as np
from PIL import Image, ImageDraw

from .pictures import Scene, choose

SIZES = {"train": 9800, "validation": 200, "test": 200}
PIXELS, RADIUS = 75, 5
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "orange": (255, 156, 0),
    "gray": (128, 128, 128),
    "yellow": (255, 255, 0),
}
QUESTIONS = {
    "non-relational": {
        "shape": "what is the shape of the {} object?",
        "left": "is the {} object on the left?",
        "top": "is the {} object on the top?",
    },
    "relational": {
        "closest": "what is the shape of the object closest to the {} object?",
        "furthest": "what is the shape of the object furthest from the {} object?",
        "count": "how many objects have the shape of the {} object?",
    },
}
EACH = 10  # questions of each of the two types


def answer(kind, color, objects):
    """The answer about the object of `color`; `objects` is {color: (shape, x, y)} in pixels."""
    shape, x, y = objects[color]
    if kind == "shape":
        return shape
    if kind in ("left", "top"):
        return "yes" if (x if kind == "left" else y) < PIXELS / 2 else "no"
    if kind == "count":  # with the object itself: 1 to 6
        return str(sum(other[0] == shape for other in objects.values()))
    others = [other for name, other in objects.items() if name != color]
    pick = min if kind == "closest" else max
    return pick(others, key=lambda other: math.dist(other[1:], (x, y)))[0]


def scene(rng):
    """A picture with its 20 questions."""
    centers = []
    while len(centers) < len(COLORS):
        center = tuple(int(v) for v in rng.integers(RADIUS, PIXELS - RADIUS, size=2))
        apart = [math.dist(center, other) for other in centers]
        if all(distance > 2 * RADIUS * math.sqrt(2) for distance in apart):
            centers.append(center)
    objects = {
        color: (choose(rng, ("circle", "square")), *center)
        for color, center in zip(COLORS, centers, strict=True)
    }
    image = Image.fromarray(np.full((PIXELS, PIXELS, 3), 255, np.uint8))
    pen = ImageDraw.Draw(image)
    for color, (shape, x, y) in objects.items():
        draw = pen.ellipse if shape == "circle" else pen.rectangle
        draw((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=COLORS[color])
    rows, asked = [], []
    for question_type, kinds in QUESTIONS.items():
        pairs = list(itertools.product(kinds, COLORS))
        for index in rng.permutation(len(pairs))[:EACH]:
            kind, color = pairs[index]
            asked.append((kind, color))
            rows.append(
                dict(
                    question=kinds[kind].format(color),
                    answer=answer(kind, color, objects),
                    question_type=question_type,
                )
            )
    return Scene(image, dict(objects=objects, asked=asked), rows)


def scenes(split, rng):
    """Scenes without end; all splits are drawn in the same way."""
    while True:
        yield scene(rng)
