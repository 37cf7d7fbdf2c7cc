"""What keeps a written text from repeating itself: a penalty on its tokens, and forbidden n-grams.

Both read each row's own text so far, the token that begins it included; a beam has its own. They
equal transformers' `RepetitionPenaltyLogitsProcessor` and `NoRepeatNGramLogitsProcessor` on the
tokens of an encoder-decoder, where what the encoder reads is no part of the text.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def penalized(
    scores: Float[Array, "r v"],
    tokens: Int[Array, "r s"],
    position: Int[Array, ""] | int,
    penalty: float,
) -> Float[Array, "r v"]:
    """Scores of tokens that occur in columns 0 to `position`, divided by `penalty` where they are
    positive and multiplied by it where they are negative (Keskar et al. 2019, section 4.1)."""
    written = jnp.arange(tokens.shape[1])[None] <= position
    seen = _marked(tokens, jnp.broadcast_to(written, tokens.shape), scores.shape[1])
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def repeating(
    tokens: Int[Array, "r s"], position: Int[Array, ""] | int, size: int, vocabulary: int
) -> Bool[Array, "r v"]:
    """Tokens that, after column `position`, would complete a group of `size` tokens which the row
    has already (Paulus et al. 2018, section 2.5)."""
    rows, length = tokens.shape
    if size > length:
        return jnp.zeros((rows, vocabulary), bool)
    starts = length - size + 1
    last = jax.lax.dynamic_slice_in_dim(
        tokens, jnp.maximum(position - size + 2, 0), size - 1, axis=1
    )
    found = jnp.broadcast_to(jnp.arange(starts)[None] + size - 1 <= position, (rows, starts))
    for place in range(size - 1):
        found &= tokens[:, place : place + starts] == last[:, place, None]
    return _marked(tokens[:, size - 1 :], found, vocabulary)


def _marked(
    tokens: Int[Array, "r s"], used: Bool[Array, "r s"], vocabulary: int
) -> Bool[Array, "r v"]:
    """Which tokens of the vocabulary are among the used ones of each row."""

    def row(tokens: Array, used: Array) -> Array:
        return jnp.zeros((vocabulary,), bool).at[tokens].max(used)

    return jax.vmap(row)(tokens, used)
