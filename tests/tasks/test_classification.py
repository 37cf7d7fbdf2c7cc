"""Classification of a pair: loss, metrics, and what a split is judged by."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.tasks import classification
from tests.tasks import pairs

ANSWERS = ("benign", "hateful")


def build(answers=ANSWERS, **fields):
    return classification.build(
        backbone=pairs.backbone(), num_answers=len(answers), answers=answers, **fields
    )


def test_learns_one_batch():
    batch = pairs.batch() | {"label": jnp.asarray([0, 1, 1, 0], jnp.int32)}
    losses = pairs.losses(build(), batch)
    assert losses[-1] < 0.2 * losses[0]


def test_accuracy_by_type_and_unknown_labels():
    task = build(("a", "b", "c"), question_types=("x", "y"))
    logits = jnp.asarray([[9.0, 0, 0], [9, 0, 0], [9, 0, 0], [0, 9, 0]])
    metrics = task.metrics({"logits": logits}, pairs.batch())
    assert set(metrics) == {"accuracy", "accuracy/x", "accuracy/y"}
    np.testing.assert_array_equal(metrics["accuracy"][0], [1, 0, 0, 1])
    np.testing.assert_array_equal(metrics["accuracy/y"][1], [0, 1, 1, 1])
    assert task.loss({"logits": logits}, pairs.batch())[2] == 0


ACTUAL = ["benign", "hateful", "benign", "hateful", "benign"]
# Hateful is ahead by -1, 1, 2, 3, -2: five of the six pairs are in order.
LOGITS = [[1, 0], [0, 1], [0, 2], [0, 3], [2, 0]]


def test_two_classes_are_judged_by_the_second():
    records = pairs.records(ACTUAL, LOGITS, ANSWERS)
    found = build().score(records)
    # F1: benign 2*2/(3+2), hateful 2*2/(2+3).
    assert found == pytest.approx(
        {
            "macro_f1": 4 / 5,
            "auroc": 5 / 6,
            "average_precision": (1 + 2 / 3) / 2,
        }
    )
    other = build(positive="benign").score(records)
    assert other["auroc"] == pytest.approx(found["auroc"])
    assert other["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_several_classes_are_judged_one_against_the_rest():
    answers = ("a", "b", "c")
    rng = np.random.default_rng(0)
    actual = ["a", "b", "c", "a", "b", "c", "a"]
    logits = rng.normal(size=(7, 3))
    found = build(answers).score(pairs.records(actual, logits, answers))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    each = []
    for index, name in enumerate(answers):
        inside = [s for s, a in zip(shares[:, index], actual, strict=True) if a == name]
        outside = [s for s, a in zip(shares[:, index], actual, strict=True) if a != name]
        each.append(np.mean([[x > y for y in outside] for x in inside]))
    assert found["auroc"] == pytest.approx(np.mean(each)) and "average_precision" not in found
    one = build(answers, positive="c").score(pairs.records(actual, logits, answers))
    assert one["auroc"] == pytest.approx(each[2])


def test_what_is_not_defined_is_not_given():
    score = build().score
    assert set(score(pairs.records(ACTUAL[:1], LOGITS[:1], ANSWERS))) == {"macro_f1"}
    without = [{k: v for k, v in r.items() if k != "logits"}
               for r in pairs.records(ACTUAL, LOGITS, ANSWERS)]  # fmt: skip
    assert set(score(without)) == {"macro_f1"}
    assert score(pairs.records([None], [[0, 1]], ANSWERS)) == {}


def test_an_unknown_positive_class_lists_the_answers():
    with pytest.raises(MmflaxError, match="'hate', which is not among the answers: benign, hat"):
        build(positive="hate")
