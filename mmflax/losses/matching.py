"""Image-text matching (ALBEF, Li et al. 2021, sec. 3.2): the pair's binary cross-entropy, with
negatives drawn by similarity."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmflax.losses.classification import softmax_cross_entropy
from mmflax.losses.pairs import different


def matching_loss(logits: Float[Array, "b 2"], matched: Bool[Array, "b"]) -> Float[Array, "b"]:
    """Cross-entropy of "no" (column 0) and "yes" (ALBEF eq. 4)."""
    return softmax_cross_entropy(logits, matched.astype(jnp.int32))


def hard_negatives(
    key: Key[Array, ""],
    similarity: Float[Array, "g b b"],
    keys: Int[Array, "g b ..."],
    mask: Bool[Array, "g b"] | None = None,
) -> tuple[Int[Array, "g b"], Bool[Array, "g b"]]:
    """One wrong partner per row, drawn from softmax(similarity) within each of the `g` groups.

    `similarity[g, i, j]` is the logit of row i with candidate j (ALBEF's p_i2t before the softmax);
    zeros draw uniformly. Left out are the row itself, rows that share one of its keys, and rows
    whose `mask` is false. The same key gives the same draw.

    Returns:
      (candidate's index in the group, whether the row has a candidate at all).
    """
    used = jnp.ones(keys.shape, bool) if mask is None else mask
    possible = used[:, :, None] & used[:, None, :] & jax.vmap(different)(keys, keys)
    possible &= ~jnp.eye(keys.shape[1], dtype=bool)[None]
    logits = jnp.where(possible, similarity.astype(jnp.float32), -jnp.inf)
    exists = possible.any(axis=-1)
    # A row of -inf alone has no distribution; what is drawn for it is not used.
    logits = jnp.where(exists[..., None], logits, 0.0)
    return jax.random.categorical(key, jax.lax.stop_gradient(logits)).astype(jnp.int32), exists
