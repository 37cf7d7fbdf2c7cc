"""Classification and grounding losses against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from mmflax.losses import (
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    word_region_loss,
)

LOGITS = jnp.asarray([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [1.0, 5.0, 2.0]])


def test_softmax_cross_entropy_is_minus_log_probability():
    found = softmax_cross_entropy(LOGITS, jnp.asarray([0, 2, 1]))
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, -np.log(p[[0, 1, 2], [0, 2, 1]]), rtol=1e-5)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_target():
    found = softmax_cross_entropy(LOGITS, jnp.asarray([0, 2, 1]), label_smoothing=0.3)
    target = 0.7 * np.eye(3)[[0, 2, 1]] + 0.1
    np.testing.assert_allclose(found, -(target * jax.nn.log_softmax(LOGITS)).sum(-1), rtol=1e-5)


def test_a_negative_label_has_no_loss_and_no_gradient():
    label = jnp.asarray([-1, 2, -1])
    for smoothing in (0.0, 0.1):
        loss = softmax_cross_entropy(LOGITS, label, label_smoothing=smoothing)
        np.testing.assert_array_equal(loss == 0, [True, False, True])
        grads = jax.grad(
            lambda logits, smoothing=smoothing: softmax_cross_entropy(
                logits, label, label_smoothing=smoothing
            ).sum()
        )(LOGITS)
        np.testing.assert_array_equal((grads == 0).all(-1), [True, False, True])


def test_large_logits_stay_finite():
    extreme = jnp.asarray([[1e4, -1e4]])
    assert softmax_cross_entropy(extreme, jnp.asarray([1]))[0] == 2e4
    np.testing.assert_allclose(sigmoid_cross_entropy(extreme, jnp.asarray([[0.0, 1.0]])), 2e4)


def test_sigmoid_cross_entropy_with_soft_targets():
    target = jnp.asarray([[1.0, 0.3, 0.0]] * 3)
    p = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, target), expected, rtol=1e-5)


def test_half_precision_logits_are_summed_in_float32():
    loss = softmax_cross_entropy(LOGITS.astype(jnp.bfloat16), jnp.asarray([0, 2, 1]))
    assert loss.dtype == jnp.float32


def test_word_region_loss_is_cross_entropy_of_the_best_token():
    """Against plain numpy: the largest logit over tokens, summed over the words."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 8)).astype(np.float32)
    caption = np.array([[5, 6, 6, 0], [7, 2, 0, 0]], np.int32)
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    found = word_region_loss(jnp.asarray(logits), jnp.asarray(caption), jnp.asarray(mask))
    p = 1 / (1 + np.exp(-logits.max(axis=1)[0, 5:]))
    expected = -np.log(p[0]) - np.log(p[1]) - np.log(1 - p[2])
    np.testing.assert_allclose(found, [expected, 0.0], rtol=1e-5)


def test_without_a_picture_there_are_no_words_to_learn():
    logits, caption = jnp.ones((2, 3, 8)), jnp.full((2, 2), 6, jnp.int32)

    def total(logits):
        present = jnp.asarray([True, False])
        return word_region_loss(logits, caption, jnp.ones((2, 2), bool), present=present)

    grads = jax.grad(lambda logits: total(logits).sum())(logits)
    assert total(logits)[0] > 0 and total(logits)[1] == 0
    assert (grads[0] != 0).any() and (grads[1] == 0).all()
