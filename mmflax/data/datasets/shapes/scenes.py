"""Scenes of coloured shapes with questions that only the picture answers.

A scene is 1 to 5 objects (shape, colour, size, place) that may overlap in part, on a shaded, noisy
background. Each scene carries about one question of each type of CLEVR (Johnson et al. 2017,
section 3: exist, count, query, compare) plus spatial relations. Every answer is drawn *before* the
question that has it, so within a question type the answers are close to uniform and a model that
reads the text alone stays near chance.

Everything is a pure function of ``(split, index, seed)``: numpy's PCG64 streams are stable, and the
rasteriser is a few lines of arithmetic, so a scene is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
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
SIZES = {"small": 0.085, "large": 0.145}  # half-extent as a fraction of the image side
QUESTION_TYPES = ("exists", "count", "color", "shape", "relation", "compare")

_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big")}
_ANYTHING = ("object", "thing", "shape")
_PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
_RELATIONS = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
_CELLS = 3  # objects stand near the middles of a grid of so many cells a side
_JITTER = 0.04  # ... up to this far from it, in image sides
_OPPOSITES = (("left of", "right of"), ("above", "below"))
_MARGIN = 0.12  # centres closer than this along an axis are neither left nor right of each other


class Thing(NamedTuple):
    """One object; ``x`` and ``y`` are the centre in image sides, y growing downwards."""

    shape: str
    color: str
    size: str
    x: float
    y: float


class SceneExample(NamedTuple):
    """``image`` is uint8 [h w 3]; ``questions`` are (question, answer, question type)."""

    id: str
    image: np.ndarray
    caption: str
    questions: list[tuple[str, str, str]]
    things: tuple[Thing, ...]


def generate(
    split: str, num_scenes: int, seed: int = 0, image_size: int = 64
) -> Iterator[SceneExample]:
    """Yields ``num_scenes`` scenes of a split, always the same ones.

    No scene of one split stands in another: the (colour, shape) multiset, the places and the noise
    are drawn from a continuous stream whose key holds the split's name.
    """
    for index in range(num_scenes):
        yield scene(split, index, seed, image_size)


def scene(split: str, index: int, seed: int, image_size: int) -> SceneExample:
    """The scene of that index: equal arguments give equal bytes."""
    key = hashlib.sha256(f"shapes/{seed}/{split}/{index}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    things = _place(rng)
    image = render(things, rng, image_size)
    questions = []
    for kind in QUESTION_TYPES:
        asked = _ASK[kind](things, rng)
        if asked is not None:
            questions.append((_vary(asked[0], rng), asked[1], kind))
    return SceneExample(f"{split}-{index:06d}", image, caption(things), questions, things)


# Scenes -------------------------------------------------------------------------------------------


def _place(rng: np.random.Generator) -> tuple[Thing, ...]:
    """1 to 5 objects near the middles of different cells; neighbours may overlap in part."""
    wanted = 1 + int(np.searchsorted([0.20, 0.45, 0.70, 0.86], rng.random()))
    cells = rng.permutation(_CELLS * _CELLS)[:wanted]
    things: list[Thing] = []
    for cell in cells:
        row, column = divmod(int(cell), _CELLS)
        x, y = (np.array([column, row]) + 0.5) / _CELLS + rng.uniform(-_JITTER, _JITTER, 2)
        # Repeating a colour or a shape already there makes counts and distractors non-trivial.
        shape = _pick(rng, SHAPES)
        color = _pick(rng, list(COLORS))
        if things and rng.random() < 0.35:
            other = _pick(rng, things)
            if rng.random() < 0.5:
                shape = other.shape
            else:
                color = other.color
        things.append(Thing(shape, color, _pick(rng, list(SIZES)), float(x), float(y)))
    return tuple(things)


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


def _span(centre: float, half: float, side: int) -> tuple[int, int]:
    return max(0, int((centre - half) * side) - 2), min(side, int((centre + half) * side) + 3)


def _circle(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.sqrt(dx * dx + dy * dy) - r


def _square(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(dx), np.abs(dy)) - r


def _triangle(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    slanted = np.abs(dx) * np.float32(0.894) - (dy + r) * np.float32(0.447)
    return np.maximum(slanted, dy - r * np.float32(0.9))


def _cross(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    ax, ay = np.abs(dx), np.abs(dy)
    thin = r * np.float32(0.36)
    return np.minimum(np.maximum(ax - r, ay - thin), np.maximum(ax - thin, ay - r))


_DISTANCE: dict[str, Callable[..., np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}

# Questions ----------------------------------------------------------------------------------------

Asked = tuple[str, str] | None
Test = tuple[str | None, str | None, str | None]  # size, colour, shape; None matches anything


def _matches(things: Sequence[Thing], test: Test) -> list[Thing]:
    size, color, shape = test
    return [
        t
        for t in things
        if size in (None, t.size) and color in (None, t.color) and shape in (None, t.shape)
    ]


def _phrase(test: Test, plural: bool = False) -> str:
    size, color, shape = test
    noun = (_PLURALS[shape] if plural else shape) if shape else ("OBJECTS" if plural else "OBJECT")
    return " ".join(word for word in (size and size.upper(), color, noun) if word)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _random_test(rng: np.random.Generator) -> Test:
    """A description with a colour, a shape or both, and now and then a size."""
    size = _pick(rng, list(SIZES)) if rng.random() < 0.2 else None
    color, shape = _pick(rng, list(COLORS)), _pick(rng, SHAPES)
    draw = rng.random()
    return (size, color if draw < 0.75 else None, shape if draw > 0.25 else None)


def _exists(things: Sequence[Thing], rng: np.random.Generator) -> Asked:
    wanted = rng.random() < 0.5
    for _ in range(60):
        test = _random_test(rng)
        # A third of the descriptions mix what is there, so "no" cannot be read off one attribute.
        if rng.random() < 0.5:
            a, b = _pick(rng, things), _pick(rng, things)
            test = (test[0], test[1] and a.color, test[2] and b.shape)
        if bool(_matches(things, test)) == wanted:
            template = _pick(
                rng, ("is there a {}", "do you see a {}", "does the picture show a {}")
            )
            return template.format(_phrase(test)) + "?", _yes(wanted)
    return None


def _count(things: Sequence[Thing], rng: np.random.Generator) -> Asked:
    wanted = int(np.searchsorted([0.2, 0.42, 0.66, 0.85, 0.95], rng.random()))
    for _ in range(60):
        test = _random_test(rng)
        if rng.random() < 0.15:
            test = (None, None, None)
        elif rng.random() < 0.7:  # one attribute alone reaches the higher counts
            test = (
                (None, test[1], None) if test[1] and rng.random() < 0.5 else (None, None, test[2])
            )
        if test == (None, None, None) and rng.random() < 0.6:
            continue
        if len(_matches(things, test)) == wanted:
            template = _pick(
                rng, ("how many {} are there", "how many {} do you see", "count the {}")
            )
            text = template.format(_phrase(test, plural=True))
            return text + ("" if text.startswith("count") else "?"), str(wanted)
    return None


def _unique(
    things: Sequence[Thing], rng: np.random.Generator, hide: str | None = None
) -> tuple[Thing, Test] | None:
    """An object and a description that fits it alone, saying nothing of the attribute ``hide``."""
    order = rng.permutation(len(things))
    for index in order:
        thing = things[int(index)]
        color = thing.color if hide != "color" else None
        shape = thing.shape if hide != "shape" else None
        tests: list[Test] = [(None, color, shape), (thing.size, color, shape)]
        if hide is None:
            tests = [(None, color, shape)] + [(None, color, None), (None, None, shape)] + tests
            tests = [tests[0]] if rng.random() < 0.7 else tests[1:]
        for test in tests:
            if len(_matches(things, test)) == 1:
                return thing, test
    return None


def _color(things: Sequence[Thing], rng: np.random.Generator) -> Asked:
    found = _unique(things, rng, hide="color")
    if found is None:
        return None
    template = _pick(
        rng, ("what color is the {}", "the {} has which color", "what is the color of the {}")
    )
    return template.format(_phrase(found[1])) + "?", found[0].color


def _shape(things: Sequence[Thing], rng: np.random.Generator) -> Asked:
    found = _unique(things, rng, hide="shape")
    if found is None:
        return None
    template = _pick(
        rng, ("what shape is the {}", "the {} has which shape", "what is the form of the {}")
    )
    return template.format(_phrase(found[1])) + "?", found[0].shape


def _relation(things: Sequence[Thing], rng: np.random.Generator) -> Asked:
    """Where an object is in the picture, or how it lies to another one: a choice, or yes or no."""
    draw = rng.random()
    if len(things) == 1 or draw < 0.25:
        return _position(things, rng)
    wanted = rng.random() < 0.5
    name, other = _pick(rng, _OPPOSITES)
    if rng.random() < 0.5:
        name, other = other, name
    axis, sign = _RELATIONS[name]
    for _ in range(40):
        first, second = _unique(things, rng), _unique(things, rng)
        if first is None or second is None or first[0] == second[0]:
            continue
        gap = (second[0].y - first[0].y) if axis else (second[0].x - first[0].x)
        if abs(gap) < _MARGIN or ((-sign * gap) > 0) != wanted:
            continue
        a, b = _phrase(first[1]), _phrase(second[1])
        if draw < 0.75:
            answer = name if wanted else other
            joined = f"{name.removesuffix(' of')} or {other}"
            return f"is the {a} {joined} the {b}?", answer.removesuffix(" of")
        side = f"to the {name}" if name.endswith(" of") and rng.random() < 0.5 else name
        return f"is the {a} {side} the {b}?", _yes(wanted)
    return None


def _position(things: Sequence[Thing], rng: np.random.Generator) -> Asked:
    """Which half of the picture an object is in."""
    found = _unique(things, rng)
    if found is None:
        return None
    thing, test = found
    halves = [("left", "right", thing.x - 0.5), ("top", "bottom", thing.y - 0.5)]
    clear = [half for half in halves if abs(half[2]) > _MARGIN]
    if not clear:
        return None
    low, high, offset = _pick(rng, clear)
    a, b = (low, high) if rng.random() < 0.5 else (high, low)
    return f"is the {_phrase(test)} on the {a} or on the {b}?", high if offset > 0 else low


def _compare(things: Sequence[Thing], rng: np.random.Generator) -> Asked:
    """More of one kind than of another, or one object larger than another."""
    wanted = rng.random() < 0.5
    by_size = rng.random() < 0.4
    for _ in range(60):
        if by_size:
            first, second = _unique(things, rng), _unique(things, rng)
            if first is None or second is None or first[0].size == second[0].size:
                continue
            word = _pick(rng, ("larger", "bigger", "smaller"))
            size = "small" if word == "smaller" else "large"
            if (first[0].size == size) == wanted:
                a, b = _phrase(first[1]), _phrase(second[1])
                if first[1][0] or second[1][0]:
                    continue  # a size in the description would give the answer away
                return f"is the {a} {word} than the {b}?", _yes(wanted)
        else:
            if rng.random() < 0.5:
                names = rng.choice(SHAPES, 2, replace=False)
                tests: list[Test] = [(None, None, str(n)) for n in names]
            else:
                names = rng.choice(list(COLORS), 2, replace=False)
                tests = [(None, str(n), None) for n in names]
            counts = [len(_matches(things, test)) for test in tests]
            word = _pick(rng, ("more", "fewer"))
            difference = (counts[0] - counts[1]) * (1 if word == "more" else -1)
            if sum(counts) == 0 or (difference > 0) != wanted:
                continue
            a, b = (_phrase(test, plural=True) for test in tests)
            return f"are there {word} {a} than {b}?", _yes(wanted)
    return None


_ASK: dict[str, Callable[[Sequence[Thing], np.random.Generator], Asked]] = {
    "exists": _exists,
    "count": _count,
    "color": _color,
    "shape": _shape,
    "relation": _relation,
    "compare": _compare,
}


def _vary(text: str, rng: np.random.Generator) -> str:
    """Fills the upper-case slots with one of their words."""
    for slot, words in (("SMALL", _WORDS["small"]), ("LARGE", _WORDS["large"])):
        text = text.replace(slot, _pick(rng, words))
    noun = _pick(rng, _ANYTHING)
    return text.replace("OBJECTS", noun + "s").replace("OBJECT", noun)


def caption(things: Sequence[Thing]) -> str:
    """What is there and where, from left to right."""
    parts = [describe(thing) for thing in sorted(things, key=lambda t: t.x)]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def describe(thing: Thing) -> str:
    """ "a small red circle at the top left"."""
    return f"a {thing.size} {thing.color} {thing.shape} {_place_words(thing)}"


def _place_words(thing: Thing) -> str:
    """Which third of the picture, down and across; the middle one goes unsaid."""
    rows, columns = ("top", "", "bottom"), ("left", "", "right")
    words = [rows[min(int(thing.y * 3), 2)], columns[min(int(thing.x * 3), 2)]]
    return "at the " + (" ".join(word for word in words if word) or "middle")


def _pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.random() * len(options))]
