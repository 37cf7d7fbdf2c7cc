"""Image-text matching and entailment: accuracy also by answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.tasks import matching
from tests.tasks import pairs

ANSWERS = ("entailment", "neutral", "contradiction")


def build(answers=ANSWERS, **fields):
    return matching.build(
        backbone=pairs.backbone(), num_answers=len(answers), answers=answers,
        head=dict(form="lxmert"), **fields,
    )  # fmt: skip


def test_learns_one_batch():
    batch = pairs.batch() | {"label": jnp.asarray([0, 1, 2, 0], jnp.int32)}
    losses = pairs.losses(build(), batch)
    assert losses[-1] < 0.2 * losses[0]


def test_accuracy_of_each_answer_counts_its_own_examples():
    logits = jnp.asarray([[9.0, 0, 0], [9, 0, 0], [9, 0, 0], [0, 9, 0]])
    metrics = build(question_types=("x", "y")).metrics({"logits": logits}, pairs.batch())
    expected = {  # labels 0, 2, -1, 1
        "accuracy": ([1, 0, 0, 1], [1, 1, 1, 1]),
        "accuracy/x": ([1, 0, 0, 0], [1, 0, 0, 0]),
        "accuracy/y": ([0, 0, 0, 1], [0, 1, 1, 1]),
        "accuracy/answer/entailment": ([1, 0, 0, 0], [1, 0, 0, 0]),
        "accuracy/answer/neutral": ([0, 0, 0, 1], [0, 0, 0, 1]),
        "accuracy/answer/contradiction": ([0, 0, 0, 0], [0, 1, 0, 0]),
    }
    assert set(metrics) == set(expected)
    for name, pair in expected.items():
        np.testing.assert_array_equal(metrics[name], pair)


def test_a_split_of_matches_has_a_curve():
    records = pairs.records(
        ["no", "yes", "no", "yes"], [[1, 0], [0, 1], [0, 2], [0, 3]], ("no", "yes")
    )
    found = build(("no", "yes")).score(records)
    assert found["auroc"] == pytest.approx(0.75) and set(found) >= {"macro_f1"}
