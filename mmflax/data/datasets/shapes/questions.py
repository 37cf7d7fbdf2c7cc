"""Questions about a scene that cannot be answered without the image.

About one of each type of CLEVR (Johnson et al. 2017, section 3: exist, count, query, compare), and
spatial relations. Every answer is drawn *before* the question that has it, so within a question
type the answers are close to uniform and a model that reads the text alone stays near chance.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from mmflax.data.datasets.shapes.things import COLORS, SHAPES, SIZES, Thing, pick

QUESTION_TYPES = ("exists", "count", "color", "shape", "relation", "compare")

_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big")}
_ANYTHING = ("object", "thing", "shape")
_RELATIONS = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
_OPPOSITES = (("left of", "right of"), ("above", "below"))
_MARGIN = 0.12  # centers closer than this along an axis are neither left nor right of each other

Asked = tuple[str, str] | None
Test = tuple[str | None, str | None, str | None]  # size, color, shape; None matches anything


def ask(things: Sequence[Thing], rng: Generator) -> list[tuple[str, str, str]]:
    """(question, answer, question type) of each type that the scene allows."""
    questions = []
    for kind in QUESTION_TYPES:
        asked = _ASK[kind](things, rng)
        if asked is not None:
            questions.append((_vary(asked[0], rng), asked[1], kind))
    return questions


def _matches(things: Sequence[Thing], test: Test) -> list[Thing]:
    size, color, shape = test
    return [
        t
        for t in things
        if size in (None, t.size) and color in (None, t.color) and shape in (None, t.shape)
    ]


def _phrase(test: Test, plural: bool = False) -> str:
    size, color, shape = test
    noun = f"{shape}s" if shape and plural else shape or ("OBJECTS" if plural else "OBJECT")
    return " ".join(word for word in (size and size.upper(), color, noun) if word)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _random_test(rng: Generator) -> Test:
    """A description with a color, a shape or both, and now and then a size."""
    size = pick(rng, list(SIZES)) if rng.random() < 0.2 else None
    color, shape = pick(rng, list(COLORS)), pick(rng, SHAPES)
    draw = rng.random()
    return (size, color if draw < 0.75 else None, shape if draw > 0.25 else None)


def _exists(things: Sequence[Thing], rng: Generator) -> Asked:
    wanted = rng.random() < 0.5
    for _ in range(60):
        test = _random_test(rng)
        # A third of the descriptions mix what is there, so "no" cannot be read off one attribute.
        if rng.random() < 0.5:
            a, b = pick(rng, things), pick(rng, things)
            test = (test[0], test[1] and a.color, test[2] and b.shape)
        if bool(_matches(things, test)) == wanted:
            template = pick(rng, ("is there a {}", "do you see a {}", "does the picture show a {}"))
            return template.format(_phrase(test)) + "?", _yes(wanted)
    return None


def _count(things: Sequence[Thing], rng: Generator) -> Asked:
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
            template = pick(
                rng, ("how many {} are there", "how many {} do you see", "count the {}")
            )
            text = template.format(_phrase(test, plural=True))
            return text + ("" if text.startswith("count") else "?"), str(wanted)
    return None


def _unique(
    things: Sequence[Thing], rng: Generator, hide: str | None = None
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


def _attribute(name: str, *templates: str) -> Callable[[Sequence[Thing], Generator], Asked]:
    """Asks for an attribute that the description leaves out."""

    def asked(things: Sequence[Thing], rng: Generator) -> Asked:
        unique = _unique(things, rng, hide=name)
        if unique is None:
            return None
        thing, test = unique
        return pick(rng, templates).format(_phrase(test)) + "?", getattr(thing, name)

    return asked


def _relation(things: Sequence[Thing], rng: Generator) -> Asked:
    """The place of an object in the image or relative to another: a choice, or yes or no."""
    draw = rng.random()
    if len(things) == 1 or draw < 0.25:
        return _position(things, rng)
    wanted = rng.random() < 0.5
    name, other = pick(rng, _OPPOSITES)
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


def _position(things: Sequence[Thing], rng: Generator) -> Asked:
    """Which half of the picture an object is in."""
    unique = _unique(things, rng)
    if unique is None:
        return None
    thing, test = unique
    halves = [("left", "right", thing.x - 0.5), ("top", "bottom", thing.y - 0.5)]
    clear = [half for half in halves if abs(half[2]) > _MARGIN]
    if not clear:
        return None
    low, high, offset = pick(rng, clear)
    a, b = (low, high) if rng.random() < 0.5 else (high, low)
    return f"is the {_phrase(test)} on the {a} or on the {b}?", high if offset > 0 else low


def _compare(things: Sequence[Thing], rng: Generator) -> Asked:
    """More of one kind than of another, or one object larger than another."""
    wanted = rng.random() < 0.5
    by_size = rng.random() < 0.4
    for _ in range(60):
        if by_size:
            first, second = _unique(things, rng), _unique(things, rng)
            if first is None or second is None or first[0].size == second[0].size:
                continue
            word = pick(rng, ("larger", "bigger", "smaller"))
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
            word = pick(rng, ("more", "fewer"))
            difference = (counts[0] - counts[1]) * (1 if word == "more" else -1)
            if sum(counts) == 0 or (difference > 0) != wanted:
                continue
            a, b = (_phrase(test, plural=True) for test in tests)
            return f"are there {word} {a} than {b}?", _yes(wanted)
    return None


_ASK: dict[str, Callable[[Sequence[Thing], Generator], Asked]] = {
    "exists": _exists,
    "count": _count,
    "color": _attribute(
        "color", "what color is the {}", "the {} has which color", "what is the color of the {}"
    ),
    "shape": _attribute(
        "shape", "what shape is the {}", "the {} has which shape", "what is the form of the {}"
    ),
    "relation": _relation,
    "compare": _compare,
}


def _vary(text: str, rng: Generator) -> str:
    """Fills the upper-case slots with one of their words."""
    for slot, words in (("SMALL", _WORDS["small"]), ("LARGE", _WORDS["large"])):
        text = text.replace(slot, pick(rng, words))
    noun = pick(rng, _ANYTHING)
    return text.replace("OBJECTS", noun + "s").replace("OBJECT", noun)
