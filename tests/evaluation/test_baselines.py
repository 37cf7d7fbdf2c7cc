"""Baselines that need no model: the prior of answers and of texts, and chance."""

import types

import pytest

from mmflax.evaluation.baselines import baselines, recall_by_chance
from mmflax.evaluation.question_prior import question_prior

TEXTS = types.SimpleNamespace(reads_text=True, judged=dict)


def rows(*pairs, key="answer", **more):
    return [{"question": q, key: a, "image": b"", **more} for q, a in pairs]


TRAIN = rows(("a?", "x"), ("a?", "x"), ("a?", "y"), ("b?", "z"), ("b?", None))
SPLIT = rows(("a?", "x"), ("a?", "y"), ("b?", "z"), ("b?", None))


def test_the_prior_of_answers_by_type():
    found = baselines({"majority/accuracy": 0.5}, TRAIN, SPLIT, TEXTS, 4)
    assert found == {"question_prior/accuracy": 0.5}
    typed = [{**row, "question_type": row["question"]} for row in SPLIT]
    found = baselines({"majority/accuracy": 0.5}, TRAIN, typed, TEXTS, 4)
    assert found["question_prior/accuracy/b?"] == 0.5


def test_an_example_without_an_answer_is_never_right():
    train, split = rows(("a?", None), ("a?", None), ("a?", "x")), rows(("a?", None), ("a?", "x"))
    assert question_prior(train, split) == {"accuracy": 0.5}


def test_the_prior_of_written_texts():
    train = rows(("a?", "x"), ("a?", "x y"), ("a?", "x y"), key="target")
    split = rows(("a?", "x y"), ("a?", "x"), key="target")
    names = {"exact": 0.0, "token_accuracy": 0.0}
    assert baselines(names, train, split, TEXTS, 4) == {"question_prior/exact": 0.5}
    images = types.SimpleNamespace(reads_text=False, judged=dict)
    assert baselines(names, train, split, images, 4) == {}  # a caption answers no text


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [
        ("abcd", 4, 1 / 4),
        ("abcd", 2, 1 / 2),
        ("aabc", 4, (2 * 2 + 1 + 1) / 16),
        ("abcde", 4, (4 * 1 / 4 + 1) / 5),  # the last batch is one example
        ("", 4, 0.0),
    ],
)
def test_recall_by_chance(images, size, expected):
    split = [{"question": "q", "image": b"", "image_id": name} for name in images]
    assert recall_by_chance(split, size) == pytest.approx(expected)
    blind = [*split, {"question": None, "image": b""}, {"question": "q", "image": None}]
    if len(images) % size == 0 and images:
        assert recall_by_chance(blind, size) == pytest.approx(expected)
    found = baselines({"in_batch_recall/t2i": 0.1}, [], split, TEXTS, size)
    assert found["chance/in_batch_recall/t2i"] == pytest.approx(expected)
