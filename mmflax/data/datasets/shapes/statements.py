"""Sentences about scenes and, for every scene at once, whether each is true.

A scene's objects stand in different cells of a 3 x 3 grid, so that a cell's row and column decide
every relation: two objects are left and right of each other exactly if their columns differ.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmflax.data.datasets.shapes.things import CELLS, COLORS, SHAPES, SIZES, Thing, cell, place

Test = tuple[str | None, str | None, str | None]  # size, color, shape; None matches anything

_NAMES = (list(SHAPES), list(COLORS), list(SIZES))
NUMBERS = ("no", "one", "two", "three", "four", "five")
UNDEFINED = -1  # the label of a scene that a sentence does not speak of


class Statement(NamedTuple):
    """A sentence and its label in each scene (or pair of scenes): int8 [n], ``UNDEFINED`` = none.

    ``near`` [n] marks where a sentence that differs in one thing is true: the telling examples.
    """

    text: str
    kind: str
    labels: np.ndarray
    near: np.ndarray


class Objects:
    """The objects of many scenes as arrays [n k], with -1 where a scene has fewer than k."""

    def __init__(self, scenes: Sequence[Sequence[Thing]]):
        widest = max((len(things) for things in scenes), default=0)
        table = np.full((5, len(scenes), widest), -1, np.int8)
        for row, things in enumerate(scenes):
            for column, thing in enumerate(things):
                values = zip((thing.shape, thing.color, thing.size), _NAMES, strict=True)
                codes = [names.index(value) for value, names in values]
                table[:, row, column] = (*codes, *cell(thing))
        self.shape, self.color, self.size, self.row, self.column = table

    def __len__(self) -> int:
        return len(self.shape)

    def fit(self, test: Test) -> np.ndarray:
        """Which objects a description fits: bool [n k]."""
        size, color, shape = test
        fits = self.shape >= 0
        columns = (self.shape, self.color, self.size)
        for value, names, column in zip((shape, color, size), _NAMES, columns, strict=True):
            if value is not None:
                fits = fits & (column == names.index(value))
        return fits

    def count(self, test: Test) -> np.ndarray:
        """How many objects a description fits: int [n]."""
        return self.fit(test).sum(1)

    def related(self, first: Test, name: str, second: Test) -> np.ndarray:
        """Whether some object of ``first`` lies so to some object of ``second``: bool [n]."""
        axis = self.column if name in ("left of", "right of") else self.row
        if name in ("right of", "below"):
            first, second = second, first
        # The outermost pair decides: some cell before some other one.
        nearest = np.where(self.fit(first), axis, CELLS).min(1, initial=CELLS)
        farthest = np.where(self.fit(second), axis, -1).max(1, initial=-1)
        return nearest < farthest


def phrase(test: Test, plural: bool = False) -> str:
    """ "small red circle", "blue objects"."""
    size, color, shape = test
    noun = (shape or "object") + "s" * plural
    return " ".join(word for word in (size, color, noun) if word)


# Captions that hold or not ------------------------------------------------------------------------


def captions(objects: Objects) -> Iterator[Statement]:
    """Parts of captions; label 0 = true of the picture, 1 = false.

    ``near`` marks the false ones that a change of one word would make true, a swapped relation or a
    swapped binding ("a red circle and a blue square" for a blue circle and a red square).
    """
    relations = ("left of", "right of", "above", "below")
    domains = (list(SIZES), list(COLORS), list(SHAPES))
    yield from _altered(
        "attributes",
        domains,
        lambda size, color, shape: objects.count((size, color, shape)) > 0,
        lambda size, color, shape: f"a {size} {color} {shape}",
    )
    cells = range(CELLS)
    yield from _altered(
        "place",
        (list(COLORS), list(SHAPES), list(cells), list(cells)),
        lambda color, shape, row, column: (
            objects.fit((None, color, shape)) & (objects.row == row) & (objects.column == column)
        ).any(1),
        lambda color, shape, row, column: f"a {color} {shape} at the {place(row, column)}",
    )
    yield from _altered(
        "relation",
        (list(COLORS), list(SHAPES), list(relations), list(COLORS), list(SHAPES)),
        lambda color, shape, name, color2, shape2: objects.related(
            (None, color, shape), name, (None, color2, shape2)
        ),
        lambda color, shape, name, color2, shape2: (
            f"a {color} {shape} {name} a {color2} {shape2}"
            if (color, shape) != (color2, shape2)
            else None
        ),
    )
    pairs = itertools.product(COLORS, SHAPES)
    present = {(color, shape): objects.count((None, color, shape)) > 0 for color, shape in pairs}
    for (color, shape), (color2, shape2) in itertools.combinations(present, 2):
        if color != color2 and shape != shape2:
            true = present[color, shape] & present[color2, shape2]
            swapped = present[color2, shape] & present[color, shape2]
            text = f"a {color} {shape} and a {color2} {shape2}"
            yield _truth(text, "binding", true, ~true & swapped)


def _altered(
    kind: str,
    domains: Sequence[Sequence[Any]],
    holds: Callable[..., np.ndarray],
    text: Callable[..., str | None],
) -> Iterator[Statement]:
    """A statement for each choice of values; near = one value changed makes it true."""
    truth = {values: holds(*values) for values in itertools.product(*domains)}
    for values, true in truth.items():
        sentence = text(*values)
        if sentence is None:
            continue
        near = np.zeros_like(true)
        for position, domain in enumerate(domains):
            for other in domain:
                if other != values[position]:
                    near |= truth[(*values[:position], other, *values[position + 1 :])]
        yield _truth(sentence, kind, true, near & ~true)


# True or false of one picture ---------------------------------------------------------------------


def sentences(objects: Objects) -> Iterator[Statement]:
    """Counting, comparing, relating, and "every" / "no", as NLVR asks (Suhr et al. 2017, section
    3); label 0 = true, 1 = false."""
    tests = _tests()
    counts = {test: objects.count(test) for test in tests}
    for test, count in counts.items():
        most = 5 if test == _ANYTHING else 3 if None in test[1:] else 2
        for number in range(1, most + 1):
            be = "is" if number == 1 else "are"
            noun = phrase(test, plural=number > 1)
            true = count == number
            near = np.abs(count - number) == 1
            yield _truth(f"there {be} exactly {NUMBERS[number]} {noun}", "count", true, near)
    for first, second in _rivals():
        gap = counts[first] - counts[second]
        one, two = phrase(first, True), phrase(second, True)
        yield _truth(f"there are more {one} than {two}", "compare", gap > 0, gap == 0)
        yield _truth(f"there are fewer {one} than {two}", "compare", gap < 0, gap == 0)
    loose = [test for test in tests if (test[1] is None) != (test[2] is None)]
    for first, second in itertools.product(loose, loose):
        if first == second:
            continue
        both = (counts[first] > 0) & (counts[second] > 0)
        for name in ("left of", "right of", "above", "below"):
            true = objects.related(first, name, second)
            yield _truth(f"a {phrase(first)} is {name} a {phrase(second)}", "relation", true, both)
    for noun, adjective, inside, word in _properties(objects, ("color", "size")):
        some, total = (inside & word).sum(1), inside.sum(1)
        yield _truth(f"every {noun} is {adjective}", "every", some == total, some > 0, total > 0)
        yield _truth(f"no {noun} is {adjective}", "every", some == 0, some == 1, total > 0)


# True or false of two pictures --------------------------------------------------------------------


def pair_sentences(objects: Objects, left: np.ndarray, right: np.ndarray) -> Iterator[Statement]:
    """About two pictures side by side, as NLVR2 asks (Suhr et al. 2019, section 3); label 0 = true.

    Args:
      objects: of the scenes.
      left: int [m], the left scene of each pair.
      right: int [m], the right one.
    """
    for test in _tests():
        count = objects.count(test)
        one, other = count[left], count[right]
        many, single = phrase(test, True), phrase(test)
        close = np.abs(one - other) <= 1
        for word, gap in (("more", one - other), ("fewer", other - one)):
            text = f"there are {word} {many} in the left picture than in the right picture"
            yield _truth(text, "compare", gap > 0, close)
        text = f"the two pictures show equally many {many}"
        yield _truth(text, "compare", one == other, close, one + other > 0)
        total = one + other
        for number in range(1, 7 if test == _ANYTHING else 5 if None in test[1:] else 3):
            be = "is" if number == 1 else "are"
            word = NUMBERS[number] if number < len(NUMBERS) else "six"
            text = f"in total there {be} {word} {phrase(test, number > 1)}"
            yield _truth(text, "total", total == number, np.abs(total - number) == 1)
        if test == _ANYTHING:
            continue
        shown = (one > 0).astype(np.int8) + (other > 0)
        some = shown == 1
        yield _truth(f"both pictures show a {single}", "both", shown == 2, some)
        yield _truth(f"exactly one picture shows a {single}", "one", some, shown == 2)
        yield _truth(f"neither picture shows a {single}", "both", shown == 0, some)
        yield _truth(f"the left picture shows a {single}", "side", one > 0, some)
        yield _truth(f"the right picture shows a {single}", "side", other > 0, some)


# Entailed, open, or contradicted ------------------------------------------------------------------


def hypotheses(objects: Objects) -> Iterator[Statement]:
    """Label 0 = entailment, 1 = neutral, 2 = contradiction.

    "The circle that kim picked is red" follows when every circle is red, cannot be when none is,
    and is open when some are: the picture does not show which one was picked. One sentence has all
    three labels, so its words give nothing away.
    """
    for noun, adjective, inside, word in _properties(objects, ("color", "shape", "size", "place")):
        some, total = (inside & word).sum(1), inside.sum(1)
        labels = np.where(some == total, 0, np.where(some > 0, 1, 2)).astype(np.int8)
        labels[total == 0] = UNDEFINED
        kind = "shape" if adjective.startswith("a ") else _KINDS.get(adjective, "color")
        if kind == "place":
            # The middle column is neither side.
            labels[(inside & (objects.column == 1)).any(1)] = UNDEFINED
        near = np.zeros(len(objects), bool)
        yield Statement(f"the {noun} that kim picked is {adjective}", kind, labels, near)
        yield Statement(f"ann chose a {noun}, and it is {adjective}", kind, labels, near)


# Feelings about what is there, or missing ---------------------------------------------------------

_LIKES = ("i love {}", "{} make me happy", "i can never get enough of {}")
_DISLIKES = ("i hate {}", "{} make me sad", "i cannot stand {}")


def feelings(objects: Objects) -> Iterator[Statement]:
    """Label 0 = positive, 1 = negative: what is liked is there, or what is disliked is not.

    As in the hateful memes (Kiela et al. 2020, section 3), neither the words nor the picture tell:
    each text comes with pictures of both kinds.
    """
    for test in _tests():
        if test == _ANYTHING:
            continue
        there = objects.count(test) > 0
        near = np.zeros(len(objects), bool)
        for part in range(2):
            if test[1 + part] is not None:
                other = tuple(None if i == 1 + part else v for i, v in enumerate(test))
                if other != _ANYTHING:
                    near |= objects.count(other) > 0  # type: ignore[arg-type]
        for templates, positive in ((_LIKES, there), (_DISLIKES, ~there)):
            for template in templates:
                text = template.format(phrase(test, plural=True))
                kind = "loved" if templates is _LIKES else "hated"
                yield _truth(text, kind, positive, near & ~there)


# Parts --------------------------------------------------------------------------------------------

_ANYTHING: Test = (None, None, None)
_SIDES = {"on the left": 0, "on the right": 2}  # the column of each
_KINDS = {"small": "size", "large": "size"} | dict.fromkeys(_SIDES, "place")


def _tests() -> list[Test]:
    """Anything, each color, each shape, and each pair of them."""
    return list(itertools.product((None,), (None, *COLORS), (None, *SHAPES)))


def _rivals() -> Iterable[tuple[Test, Test]]:
    shapes: list[Test] = [(None, None, shape) for shape in SHAPES]
    colors: list[Test] = [(None, color, None) for color in COLORS]
    # In both orders, or words would tell which is usually the more frequent.
    return [*itertools.permutations(shapes, 2), *itertools.permutations(colors, 2)]


def _truth(
    text: str, kind: str, true: np.ndarray, near: np.ndarray, defined: np.ndarray | None = None
) -> Statement:
    """Label 0 = true, 1 = false, ``UNDEFINED`` where it is not defined."""
    labels = np.where(true, 0, 1).astype(np.int8)
    if defined is not None:
        labels[~defined] = UNDEFINED
    return Statement(text, kind, labels, near)


def _properties(
    objects: Objects, about: Sequence[str]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(noun, what may be said of it, which objects the noun fits, which the property fits)."""
    nouns: list[tuple[str, Test]] = [(shape, (None, None, shape)) for shape in SHAPES]
    nouns += [(f"{color} object", (None, color, None)) for color in COLORS]
    for noun, test in nouns:
        said: list[tuple[str, np.ndarray]] = []
        if "color" in about and test[1] is None:
            said += [(color, objects.fit((None, color, None))) for color in COLORS]
        if "shape" in about and test[2] is None:
            said += [(f"a {shape}", objects.fit((None, None, shape))) for shape in SHAPES]
        if "size" in about:
            said += [(size, objects.fit((size, None, None))) for size in SIZES]
        if "place" in about:
            said += [(words, objects.column == column) for words, column in _SIDES.items()]
        for adjective, fits in said:
            yield noun, adjective, objects.fit(test), fits
