"""The scenes of ``shapes`` as examples of every task.

==================  ===============================================================================
vqa                 questions with one answer (``shapes.questions``)
generative_vqa      the same, answered in text
captioning          names every object, column by column from the left
matching            does this part of a caption hold?
retrieval           which caption belongs to which picture
entailment          does the sentence follow, contradict, or stay open? (SNLI-VE)
nlvr, nlvr2         is the sentence true of the picture, or of the two pictures?
classification      is the author pleased with what is, or is not, in the picture?
translation         English that names objects by color, into German that must name their shape
==================  ===============================================================================

Examples are derived from the objects alone: pixels and questions are the same under every task. An
example that stands alone is drawn with a generator keyed by (seed, split, scene, task). Where a
sentence must not give its label away, the examples of a whole split are chosen together
(``shapes.groups``), keyed by (seed, split, task), and so depend on the number of scenes too.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmflax.data.datasets.shapes import statements
from mmflax.data.datasets.shapes.groups import Group, balanced
from mmflax.data.datasets.shapes.things import (
    COLORS,
    SHAPES,
    Thing,
    caption,
    cell,
    describe,
    listed,
    pick,
    place,
)
from mmflax.errors import MmflaxError

Scenes = Sequence[Sequence[Thing]]

# Tasks whose examples are the scenes' questions.
QUESTIONS = ("vqa", "generative_vqa")
_PARTNERS = 6  # right-hand pictures that a left-hand one may be paired with


class Example(NamedTuple):
    """``fields`` of a raw example over the picture of ``scene``, and for pairs of ``second``."""

    scene: int
    fields: dict[str, Any]
    second: int | None = None


def examples(task: str, split: str, seed: int, scenes: Scenes) -> list[Example]:
    """Every example of a split in the order of its scenes, for tasks other than ``QUESTIONS``.

    Raises:
      MmflaxError: there are too few scenes for the labels to balance.
    """
    made = _TASKS[task](scenes, split, seed)
    if not made:
        raise MmflaxError(
            f"The {len(scenes)} scenes of the split {split!r} give no example of {task} with "
            "balanced labels; give more, such as --config.data.num_scenes=1000."
        )
    return sorted(made, key=lambda example: example.scene)


def names() -> tuple[str, ...]:
    """Every task."""
    return (*QUESTIONS, *_TASKS)


def annotators(
    answer: str, kind: str, count: int, seed: int, split: str, scene: int, which: int
) -> list[str]:
    """The answers of ``count`` people, of whom fewer than half err in a plausible way.

    Counting and comparing are misjudged more often than naming; a wrong answer is of the right
    kind: one more or one less, another color, the other side.
    """
    rng = _generator(seed, split, scene, f"annotators/{which}")
    rate = 0.15 if kind in ("count", "compare", "relation") else 0.06
    slips = _slips(answer)
    given = [
        slips[int(rng.random() * len(slips))] if rng.random() < rate else answer
        for _ in range(count)
    ]
    while Counter(given)[answer] <= count // 2:
        given[next(i for i, other in enumerate(given) if other != answer)] = answer
    return given


def _slips(answer: str) -> list[str]:
    for group in (tuple(COLORS), SHAPES, ("yes", "no"), ("left", "right"), ("top", "bottom")):
        if answer in group:
            return [other for other in group if other != answer]
    if answer in ("above", "below"):
        return ["below" if answer == "above" else "above"]
    number = int(answer)
    return [str(near) for near in (number - 1, number + 1) if near >= 0]


# Examples that stand alone ------------------------------------------------------------------------


def _each_scene(
    task: str, fields: Callable[[Sequence[Thing], np.random.Generator], dict[str, Any]]
) -> Callable[[Scenes, str, int], list[Example]]:
    """One example a scene."""

    def made(scenes: Scenes, split: str, seed: int) -> list[Example]:
        return [
            Example(index, fields(things, _generator(seed, split, index, task)))
            for index, things in enumerate(scenes)
        ]

    return made


def _captioning(things: Sequence[Thing], rng: np.random.Generator) -> dict[str, Any]:
    """Color and shape of every object; sizes and places would make captions hard to learn."""
    by_column = _listed(sorted(things, key=lambda t: cell(t)[::-1]))
    by_row = _listed(sorted(things, key=cell))
    opening = pick(rng, ("there is {}", "the picture shows {}", "i see {}"))
    references = [by_column, opening.format(by_column), f"from left to right {by_column}"]
    if by_row != by_column:
        references.append(f"from top to bottom {by_row}")
    return {
        "question": None,
        "target": by_column,
        "references": references,
        "question_type": "one" if len(things) == 1 else "several",
    }


def _listed(things: Sequence[Thing]) -> str:
    return listed([f"a {thing.color} {thing.shape}" for thing in things])


def _retrieval(scenes: Scenes, split: str, seed: int) -> list[Example]:
    """Full captions. A scene that only the order of the words tells from an earlier one is left
    out: no reader could tell which of the two a caption belongs to."""
    made = []
    seen: set[tuple[str, ...]] = set()
    for index, things in enumerate(scenes):
        content = tuple(sorted(describe(thing) for thing in things))
        if content not in seen:
            seen.add(content)
            fields = {
                "question": caption(things),
                "image_id": f"{split}-{index:06d}",
                "question_type": "one" if len(things) == 1 else "several",
            }
            made.append(Example(index, fields))
    return made


_NOUNS = {"circle": ("der", "Kreis"), "square": ("das", "Quadrat"), "triangle": ("das", "Dreieck")}
_COLORS = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb"}
_SIZES = {"small": "klein", "large": "groß"}
_ROWS, _COLUMNS = ("oben", "", "unten"), ("links", "", "rechts")
_RELATIONS = {
    "left of": "links von dem",
    "right of": "rechts von dem",
    "above": "über dem",
    "below": "unter dem",
}


def _translation(things: Sequence[Thing], rng: np.random.Generator) -> dict[str, Any]:
    """English speaks of things, German of circles, squares and triangles, with their genders."""
    order = [things[int(i)] for i in np.argsort(rng.random(len(things)), kind="stable")]
    draw = rng.random()
    one = order[0]
    english, german = _definite(one, things, "nominative")
    others = [t for t in order[1:] if t.color != one.color]
    if others and draw < 0.6:
        (row, column), (row2, column2) = cell(one), cell(others[0])
        ways = [("left of", "right of")] * (column != column2) + [("above", "below")] * (
            row != row2
        )
        way = pick(rng, ways)
        before = column < column2 if way[0] == "left of" else row < row2
        name = way[0] if before else way[1]
        english2, german2 = _definite(others[0], things, "dative")
        source = f"the {english} is {name} the {english2}"
        target = f"{_NOUNS[one.shape][0]} {german} ist {_RELATIONS[name]} {german2}"
        kind = "relation"
    else:
        source = f"the {english} is {one.size}"
        target = f"{_NOUNS[one.shape][0]} {german} ist {_SIZES[one.size]}"
        kind = "size"
    return {"question": source, "target": target, "references": [target], "question_type": kind}


def _definite(thing: Thing, things: Sequence[Thing], case: str) -> tuple[str, str]:
    """The words for one object in both languages, after the article; a place where the color is
    not its own. Adjectives end in -e after der and das, in -en after dem."""
    ending = "e" if case == "nominative" else "en"
    english = f"{thing.color} thing"
    german = f"{_COLORS[thing.color]}{ending} {_NOUNS[thing.shape][1]}"
    if sum(other.color == thing.color for other in things) > 1:
        row, column = cell(thing)
        english += f" at the {place(row, column)}"
        there = " ".join(word for word in (_ROWS[row], _COLUMNS[column]) if word)
        german += f" {there or 'in der Mitte'}"
    return english, german


# Examples chosen together -------------------------------------------------------------------------


def _balanced(
    table: Callable[[statements.Objects], Iterable[statements.Statement]],
    answers: Sequence[str],
    task: str,
    *,
    per_label: int = 1,
    grouped: bool = False,
) -> Callable[[Scenes, str, int], list[Example]]:
    """Examples of statements that have two labels in the scenes."""

    def made(scenes: Scenes, split: str, seed: int) -> list[Example]:
        groups = balanced(
            table(statements.Objects(scenes)),
            np.arange(len(scenes)),
            _bits(f"{seed}/{split}/{task}"),
            num_labels=2,
            per_label=per_label,
            quota=2,
        )
        return [*_labeled(groups, answers, split if grouped else None)]

    return made


def _entailment(scenes: Scenes, split: str, seed: int) -> list[Example]:
    table = list(statements.hypotheses(statements.Objects(scenes)))
    # A picture of which nothing is open would show by itself that the label is not "neutral"; but a
    # handful of scenes cannot do without them.
    open_ = np.any([statement.labels == 1 for statement in table], axis=0)
    chosen = [
        statement._replace(labels=np.where(open_, statement.labels, statements.UNDEFINED))
        for statement in table
    ]
    for candidates in (chosen, table):
        bits = _bits(f"{seed}/{split}/entailment")
        groups = balanced(candidates, np.arange(len(scenes)), bits, num_labels=3)
        if groups:
            break
    return [*_labeled(groups, ("entailment", "neutral", "contradiction"))]


def _nlvr2(scenes: Scenes, split: str, seed: int) -> list[Example]:
    number = len(scenes)
    bits = _bits(f"{seed}/{split}/nlvr2")
    # The same few distances for all: scenes are drawn independently, so this is as good as drawing.
    shifts = 1 + np.argsort(bits.random_raw(max(1, number - 1)), kind="stable")[:_PARTNERS]
    left = np.repeat(np.arange(number), len(shifts))
    right = (left + np.tile(shifts, number)) % number
    left, right = left[left != right], right[left != right]
    table = statements.pair_sentences(statements.Objects(scenes), left, right)
    groups = balanced(table, left, bits, num_labels=2, per_label=2, quota=1)
    return [
        example._replace(scene=int(left[example.scene]), second=int(right[example.scene]))
        for example in _labeled(groups, ("true", "false"), split)
    ]


def _labeled(
    groups: Sequence[Group], answers: Sequence[str], split: str | None = None
) -> Iterator[Example]:
    """One example a unit; with ``split``, the groups are named, to be judged together."""
    for number, (statement, members) in enumerate(groups):
        for unit, label in members:
            fields = {"question": statement.text, "answer": answers[label]}
            fields["question_type"] = statement.kind
            if split is not None:
                fields["group"] = f"{split}-{number:06d}"
            yield Example(unit, fields)


# Random numbers -----------------------------------------------------------------------------------


def _bits(name: str) -> np.random.PCG64:
    key = hashlib.sha256(f"shapes/tasks/{name}".encode()).digest()
    return np.random.PCG64(int.from_bytes(key[:16], "little"))


def _generator(seed: int, split: str, scene: int, task: str) -> np.random.Generator:
    return np.random.Generator(_bits(f"{seed}/{split}/{scene}/{task}"))


_TASKS: dict[str, Callable[[Scenes, str, int], list[Example]]] = {
    "captioning": _each_scene("captioning", _captioning),
    "matching": _balanced(statements.captions, ("yes", "no"), "matching"),
    "retrieval": _retrieval,
    "entailment": _entailment,
    "nlvr": _balanced(statements.sentences, ("true", "false"), "nlvr", per_label=2, grouped=True),
    "nlvr2": _nlvr2,
    "classification": _balanced(statements.feelings, ("positive", "negative"), "classification"),
    "translation": _each_scene("translation", _translation),
}
