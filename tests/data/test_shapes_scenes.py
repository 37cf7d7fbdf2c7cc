"""Every question is answered again by reading its words; guessing from words alone stays poor."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmflax.data.datasets.shapes import questions, scenes
from mmflax.data.datasets.shapes import things as shapes_things
from mmflax.evaluation.question_prior import question_prior

SIZES = {"small": "small", "tiny": "small", "little": "small", "large": "large", "big": "large"}
SHAPES = {
    "circle": "circle", "circles": "circle", "square": "square", "squares": "square",
    "triangle": "triangle", "triangles": "triangle",
}  # fmt: skip


@pytest.fixture(scope="module")
def examples():
    return list(scenes.generate("train", 1200))


def described(words: str, things):
    """The things that a phrase such as "big red circle" fits."""
    fits = list(things)
    for word in words.split():
        if word in SIZES:
            fits = [t for t in fits if t.size == SIZES[word]]
        elif word in shapes_things.COLORS:
            fits = [t for t in fits if t.color == word]
        elif word in SHAPES:
            fits = [t for t in fits if t.shape == SHAPES[word]]
        else:
            assert word.rstrip("s") in ("object", "thing", "shape", "a", "the"), word
    return fits


def only(words: str, things):
    (thing,) = described(words, things)
    return thing


def yes(value: bool) -> str:
    return "yes" if value else "no"


def solve(question: str, kind: str, things) -> str:
    q = question.rstrip("?")
    if kind == "exists":
        phrase = re.fullmatch(r"(?:is there|do you see|does the picture show) a (.+)", q)[1]
        return yes(bool(described(phrase, things)))
    if kind == "count":
        phrase = re.fullmatch(r"(?:how many|count the) (.+?)(?: are there| do you see)?", q)[1]
        return str(len(described(phrase, things)))
    if kind in ("color", "shape"):
        pattern = (
            r"(?:what (?:color|shape) is|what is the (?:color|form) of) the (.+)"
            r"|the (.+) has which (?:color|shape)"
        )
        found = re.fullmatch(pattern, q)
        return getattr(only(found[1] or found[2], things), kind)
    if kind == "relation":
        if place := re.fullmatch(r"is the (.+) on the (\w+) or on the (\w+)", q):
            thing = only(place[1], things)
            if {place[2], place[3]} == {"left", "right"}:
                return "left" if thing.x < 0.5 else "right"
            assert {place[2], place[3]} == {"top", "bottom"}
            return "top" if thing.y < 0.5 else "bottom"
        choice = r"is the (.+) (left or right of|right or left of|above or below|below or above)"
        if chosen := re.fullmatch(choice + " the (.+)", q):
            a, b = only(chosen[1], things), only(chosen[3], things)
            if "left" in chosen[2]:
                return "left" if a.x < b.x else "right"
            return "above" if a.y < b.y else "below"
        a, name, b = re.fullmatch(
            r"is the (.+?) (?:to the )?(left of|right of|above|below) the (.+)", q
        ).groups()
        a, b = only(a, things), only(b, things)
        before = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y,
                  "below": a.y > b.y}  # fmt: skip
        return yes(before[name])
    if more := re.fullmatch(r"are there (more|fewer) (.+) than (.+)", q):
        a, b = len(described(more[2], things)), len(described(more[3], things))
        return yes(a > b if more[1] == "more" else a < b)
    a, word, b = re.fullmatch(r"is the (.+) (larger|bigger|smaller) than the (.+)", q).groups()
    a, b = only(a, things), only(b, things)
    order = ["small", "large"] if word != "smaller" else ["large", "small"]
    return yes(order.index(a.size) > order.index(b.size))


def test_every_answer_is_right(examples):
    for example in examples:
        for question, answer, kind in example.questions:
            assert solve(question, kind, example.things) == answer, (question, example.things)


def test_every_type_is_asked_and_no_answer_dominates(examples):
    answers = defaultdict(Counter)
    for example in examples:
        for _, answer, kind in example.questions:
            answers[kind][answer] += 1
    assert set(answers) == set(questions.QUESTION_TYPES)
    for kind, counts in answers.items():
        share = counts.most_common(1)[0][1] / counts.total()
        assert share < {2: 0.56, 3: 0.4, 4: 0.32, 6: 0.4, 8: 0.3}[len(counts)], (kind, counts)


def test_counting_words_alone_stays_under_sixty_percent(examples):
    def source(items):
        return [
            {"question": q, "answer": a, "question_type": k}
            for e in items
            for q, a, k in e.questions
        ]

    prior = question_prior(source(examples), source(scenes.generate("test", 300)))
    assert prior["accuracy"] < 0.5
    assert max(prior.values()) < 0.7


def test_a_scene_is_a_pure_function_of_its_name():
    first, again = scenes.scene("train", 5, 0, 64), scenes.scene("train", 5, 0, 64)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.questions == again.questions
    for other in (scenes.scene("test", 5, 0, 64), scenes.scene("train", 5, 1, 64)):
        assert (other.image != first.image).any()


def test_objects_number_one_to_five_and_some_overlap(examples):
    assert {len(e.things) for e in examples} == {1, 2, 3, 4, 5}

    def overlap(a, b):
        reach = shapes_things.SIZES[a.size] + shapes_things.SIZES[b.size]
        return max(abs(a.x - b.x), abs(a.y - b.y)) < reach

    some = [e for e in examples if any(overlap(a, b) for a in e.things for b in e.things if a != b)]
    assert 0.01 < len(some) / len(examples)


def test_captions_name_every_object_and_its_place(examples):
    for example in examples[:200]:
        for thing in example.things:
            assert f"{thing.size} {thing.color} {thing.shape} at the" in example.caption
