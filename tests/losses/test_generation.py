"""Next-word and PrefixLM losses against numpy, and the prefix's mask."""

import jax
import jax.numpy as jnp
import numpy as np

from mmflax.losses import generation

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 7)).astype(np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
WORDS = RNG.integers(0, 7, (3, 5)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)


def test_next_word_loss_is_a_mean_over_words():
    found = generation.next_word_loss(*(jnp.asarray(x) for x in (LOGITS, WORDS, MASK)))
    log = [[np.log(P[i, j, WORDS[i, j]]) for j in range(5)] for i in range(3)]
    np.testing.assert_allclose(found, [-np.mean(log[0][:4]), -np.mean(log[1][:2]), 0], 1e-5)
    smooth = generation.next_word_loss(
        *(jnp.asarray(x) for x in (LOGITS, WORDS, MASK)), label_smoothing=0.3
    )
    target = 0.7 * np.eye(7)[WORDS] + 0.3 / 7  # Szegedy et al. 2016, sec. 7
    loss = -(target * np.log(P)).sum(-1)
    np.testing.assert_allclose(smooth, [loss[0, :4].mean(), loss[1, :2].mean(), 0], 1e-5)


def test_shift_asks_for_what_follows():
    given, asked, mask = generation.shift(jnp.asarray(WORDS), jnp.asarray(MASK))
    np.testing.assert_array_equal(given, WORDS[:, :-1])
    np.testing.assert_array_equal(asked, WORDS[:, 1:])
    np.testing.assert_array_equal(mask.sum(1), [3, 1, 0])


def test_prefix_lm_is_the_loss_of_the_suffix():
    """SimVLM (PrefixLM): -sum_{i >= prefix} log P(x_i | x_<i), a mean over terms."""
    prefix = jnp.asarray([2, 1, 1], jnp.int32)
    found = generation.prefix_lm_loss(
        jnp.asarray(LOGITS), jnp.asarray(WORDS), jnp.asarray(MASK), prefix
    )
    log = [[np.log(P[i, j - 1, WORDS[i, j]]) for j in range(1, 5)] for i in range(3)]
    np.testing.assert_allclose(found, [-(log[0][1] + log[0][2]) / 2, -log[1][0], 0], rtol=1e-5)


def test_prefixes_leave_a_word_to_ask_and_give_one():
    text = jnp.arange(6)[None] < jnp.asarray([6] * 300 + [1, 0])[:, None]
    prefix = np.asarray(generation.random_prefix(jax.random.key(0), text))
    assert set(prefix[:300]) == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(prefix[300:], 1)
