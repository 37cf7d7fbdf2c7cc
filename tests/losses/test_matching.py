"""Matching loss, and which negatives are drawn."""

import jax
import jax.numpy as jnp
import numpy as np

from mmflax.losses.matching import hard_negatives, matching_loss


def test_matching_loss_is_binary_cross_entropy():
    """ALBEF eq. 4: -log of the two-way softmax at the right answer."""
    logits = np.array([[0.3, 1.2], [2.0, -1.0], [0.5, 0.5]], np.float32)
    matched = np.array([True, True, False])
    found = matching_loss(jnp.asarray(logits), jnp.asarray(matched))
    yes = np.exp(logits[:, 1]) / np.exp(logits).sum(-1)
    np.testing.assert_allclose(found, -np.log(np.where(matched, yes, 1 - yes)), rtol=1e-5)


def test_negatives_follow_the_softmax_of_similarity():
    """ALBEF sec. 3.2; row 0 may take rows 1 and 4: 2 shows its own image, 3 is out of use."""
    similarity = np.zeros((1, 5, 5), np.float32)
    similarity[0, 0] = [9.0, 1.0, 9.0, 9.0, 0.0]
    keys = jnp.asarray([[7, 1, 7, 3, 4]], jnp.int32)
    mask = jnp.asarray([[True, True, True, False, True]])
    draw = jax.jit(
        jax.vmap(lambda key: hard_negatives(key, jnp.asarray(similarity), keys, mask)[0])
    )
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))[:, 0]
    share = np.bincount(drawn[:, 0], minlength=5) / 4000
    p = np.exp(1) / (np.exp(1) + 1)
    np.testing.assert_allclose(share, [0, p, 0, 0, 1 - p], atol=0.03)
    np.testing.assert_array_equal(drawn, draw(jax.random.split(jax.random.key(0), 4000))[:, 0])
    assert (drawn[1:] != drawn[:1]).any()


def test_a_row_without_a_candidate_says_so_and_groups_stay_apart():
    keys = jnp.asarray([[0, 0, 0], [0, 1, 2]], jnp.int32)
    index, exists = hard_negatives(jax.random.key(0), jnp.zeros((2, 3, 3)), keys)
    np.testing.assert_array_equal(exists, [[False] * 3, [True] * 3])
    assert (index[1] != jnp.arange(3)).all() and ((index >= 0) & (index < 3)).all()
