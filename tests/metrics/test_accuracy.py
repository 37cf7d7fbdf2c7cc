"""Accuracy: what counts as right, and groups that partition it."""

import jax.numpy as jnp
import numpy as np

from mmflax.metrics.accuracy import accuracy, by_group

LOGITS = jnp.asarray([[1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])


def test_a_negative_label_is_wrong_but_counts():
    right, count = accuracy(LOGITS, jnp.asarray([1, 1, -1]))
    np.testing.assert_array_equal(right, [1, 0, 0])
    np.testing.assert_array_equal(count, [1, 1, 1])


def test_groups_add_up_and_unknown_groups_are_in_none():
    metric = accuracy(LOGITS, jnp.asarray([1, 0, 0]))
    groups = by_group(metric, jnp.asarray([0, 1, -1]), ("a", "b"))
    np.testing.assert_array_equal(groups["a"][0], [1, 0, 0])
    np.testing.assert_array_equal(groups["b"][1], [0, 1, 0])
