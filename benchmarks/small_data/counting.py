"""`counting`: none to nine shapes that overlap, to be counted all together, by color and by kind.

Of each shape at least half stays visible.
"""

import numpy as np
from PIL import Image

from .pictures import COLORS, SHAPES, Scene, background, choose, draw_shape, shaded

SIZES = {"train": 8000, "validation": 500, "test": 1000}
PIXELS = 64
MOST = 9
VISIBLE = 0.5
QUESTIONS = {
    "all": ("how many shapes are there?", "how many things are in the picture?"),
    "color": ("how many {} shapes are there?", "how many things are {}?"),
    "shape": ("how many {}s are there?", "count the {}s."),
    "more": ("are there more {}s than {}s?",),
}


def answer(kind, words, things):
    """The answer; `things` are the picture's (shape, color) pairs, `words` what is asked about."""
    shapes, colors = [shape for shape, _ in things], [color for _, color in things]
    if kind == "more":
        return "yes" if shapes.count(words[0]) > shapes.count(words[1]) else "no"
    if kind == "all":
        return str(len(things))
    return str((shapes if kind == "shape" else colors).count(words[0]))


def place(rng, number):
    """Places `number` shapes: (shape, x, y, radius) in pixels, the foremost last."""
    placed, areas, visible = [], [], []
    while len(placed) < number:
        shape, radius = choose(rng, list(SHAPES)), float(rng.uniform(6, 10))
        x, y = (float(v) for v in rng.uniform(radius, PIXELS - radius, size=2))
        area = covered(shape, (x, y), radius)
        left = [old & ~area for old in visible]
        if all(new.sum() >= VISIBLE * whole for new, whole in zip(left, areas, strict=True)):
            placed.append((shape, x, y, radius))
            areas.append(area.sum())
            visible = [*left, area]
    return placed


def covered(shape, center, radius):
    """The pixels that a shape covers by more than half, bool [PIXELS PIXELS]."""
    mask = Image.new("RGB", (PIXELS, PIXELS))
    draw_shape(mask, shape, center, radius, (255, 255, 255))
    return np.asarray(mask)[..., 0] > 127


def scene(rng):
    """A picture; its shapes are of one to four colors, so that the counts by color vary."""
    palette = [choose(rng, list(COLORS)) for _ in range(int(rng.integers(1, 5)))]
    placed = place(rng, int(rng.integers(0, MOST + 1)))
    things = [(shape, choose(rng, palette)) for shape, *_ in placed]
    image = Image.fromarray(background(rng, PIXELS, level=(190, 256)))
    for (shape, x, y, radius), (_, color) in zip(placed, things, strict=True):
        draw_shape(image, shape, (x, y), radius, shaded(rng, COLORS[color], spread=24))
    known = choose(rng, palette)
    pair = [list(SHAPES)[i] for i in rng.permutation(len(SHAPES))[:2]]
    asked = [
        ("all", ()),
        ("color", (known,)),
        ("color", (choose(rng, [color for color in COLORS if color != known]),)),
        ("shape", (choose(rng, list(SHAPES)),)),
        ("more", tuple(pair)),
    ]
    rows = []
    for kind, words in asked:
        question = choose(rng, QUESTIONS[kind]).format(*words)
        rows.append(dict(question=question, answer=answer(kind, words, things), question_type=kind))
    return Scene(image, dict(things=things, placed=placed, asked=asked), rows)


def scenes(split, rng):
    """Scenes without end; all splits are drawn in the same way."""
    while True:
        yield scene(rng)
