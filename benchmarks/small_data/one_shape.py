"""`one_shape`: questions about the only shape of a picture, with 13 answers.

A shape has a color, a kind, a size and a place, on a plain or noisy background. Most questions
are answered by yes or no, so that the commonest answer of each question alone is right for about
two thirds of them.
"""

from PIL import Image

from .pictures import COLORS, SHAPES, Scene, background, choose, draw_shape, shaded

SIZES = {"train": 5000, "validation": 500, "test": 500}
PIXELS = 64
RADII = {"small": (6.0, 9.5), "large": (12.5, 17.0)}
PHRASES = {
    "color": (
        "what color is the {noun}?",
        "which color does the {noun} have?",
        "the {noun} has what color?",
    ),
    "shape": ("what shape is in the picture?", "which shape is shown?", "what shape is it?"),
    "size": ("is the {noun} small or large?", "what size is the {noun}?", "how big is the {noun}?"),
    "is_color": (
        "is the {noun} {color}?",
        "is there a {color} {noun}?",
        "does the {noun} look {color}?",
    ),
    "is_shape": ("is it a {shape}?", "is there a {shape}?", "does the picture show a {shape}?"),
    "is_both": ("is it a {color} {shape}?", "is there a {color} {shape}?"),
    "half": ("is the {noun} on the {side}?", "is the {noun} in the {side} half?"),
    "corner": (
        "is the {noun} at the {row} {column}?",
        "does the {row} {column} corner have the {noun}?",
    ),
}
NOUNS = ("shape", "object", "thing")


def answer(kind, record, *, color, shape, side, row, column):
    """The answer to a question of `kind` about the shape that `record` describes."""
    x, y = record["center"]
    sides = {"left" if x < PIXELS / 2 else "right", "top" if y < PIXELS / 2 else "bottom"}
    if kind in ("color", "shape", "size"):
        return record[kind]
    true = {
        "is_color": color == record["color"],
        "is_shape": shape == record["shape"],
        "is_both": (color, shape) == (record["color"], record["shape"]),
        "half": side in sides,
        "corner": {row, column} == sides,
    }[kind]
    return "yes" if true else "no"


def questions(rng, record):
    """The rows about a picture, 9 or 10, and the words that their questions name."""
    kinds = ["color", "shape", "size", *["is_color"] * 3, "is_shape", "is_both", "corner"]
    if rng.random() < 0.6:
        kinds.append(choose(rng, ("half", "half", "is_both")))
    rows, named, seen = [], [], set()
    for kind in kinds:
        while True:
            words = dict(
                color=choose(rng, list(COLORS)),
                shape=choose(rng, list(SHAPES)),
                side=choose(rng, ("left", "right", "top", "bottom")),
                row=choose(rng, ("top", "bottom")),
                column=choose(rng, ("left", "right")),
            )
            text = choose(rng, PHRASES[kind]).format(noun=choose(rng, NOUNS), **words)
            if text not in seen:
                break
        seen.add(text)
        rows.append(dict(question=text, answer=answer(kind, record, **words), question_type=kind))
        named.append(words)
    return rows, named


def scene(rng):
    """A picture with one shape."""
    size = choose(rng, list(RADII))
    radius = float(rng.uniform(*RADII[size]))
    low = radius + 1
    while True:
        center = [float(v) for v in rng.uniform(low, PIXELS - low, size=2)]
        if min(abs(v - PIXELS / 2) for v in center) > 2:  # neither half is a matter of taste
            break
    record = dict(
        color=choose(rng, list(COLORS)),
        shape=choose(rng, list(SHAPES)),
        size=size,
        radius=radius,
        center=center,
    )
    image = Image.fromarray(background(rng, PIXELS))
    draw_shape(image, record["shape"], center, radius, shaded(rng, COLORS[record["color"]]))
    rows, named = questions(rng, record)
    return Scene(image, record | {"named": named}, rows)


def scenes(split, rng):
    """Scenes without end; all splits are drawn in the same way."""
    while True:
        yield scene(rng)
