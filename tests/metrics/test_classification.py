"""F1, AUROC and average precision against scikit-learn, and AUROC against counting pairs."""

import math

import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.metrics import classification
from tests.metrics import golden

CASES = golden.load("classification")["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['actual'])} examples")
def test_equals_scikit_learn(case):
    predicted, actual = case["predicted"], case["actual"]
    each = classification.per_class_f1(predicted, actual)
    assert {str(k): v for k, v in each.items()} == pytest.approx(case["f1"])
    assert classification.macro_f1(predicted, actual) == pytest.approx(case["macro_f1"])
    if "auroc" not in case:
        return
    scores, actual = np.array(case["scores"]), np.array(actual)
    found = [classification.auroc(scores[:, c], actual == c) for c in range(scores.shape[1])]
    assert found == pytest.approx(case["auroc"], abs=1e-12)
    mean = classification.auroc_one_vs_rest(scores, actual, range(scores.shape[1]))
    assert mean == pytest.approx(np.mean(case["auroc"]))
    precision = classification.average_precision(scores[:, 1], actual == 1)
    assert precision == pytest.approx(case["average_precision"], abs=1e-12)


def test_auroc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 4, 40), rng.random(40) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert classification.auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert classification.auroc(np.zeros(40), positive) == 0.5


def test_one_class_alone_has_no_curve():
    assert math.isnan(classification.auroc(np.arange(3.0), np.ones(3, bool)))
    assert math.isnan(classification.average_precision(np.arange(3.0), np.zeros(3, bool)))
    # Class 2 does not occur: the mean is that of the others.
    scores = np.array([[2.0, 1, 0], [1.0, 2, 0]])
    assert classification.auroc_one_vs_rest(scores, [0, 1], range(3)) == 1.0


def test_named_classes_that_do_not_occur_count_as_zero():
    assert classification.macro_f1(["a"], ["a"], ["a", "b"]) == 0.5


def test_wrong_input_is_one_sentence():
    with pytest.raises(MmflaxError, match="not finite"):
        classification.auroc(np.array([0.0, np.nan]), np.array([True, False]))
    with pytest.raises(MmflaxError, match="1 predictions for 2 answers"):
        classification.macro_f1(["a"], ["a", "b"])
