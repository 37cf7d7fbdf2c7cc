"""Boolean masks of the whole library: true means "use this position"."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention_mask(mask: Bool[Array, "b s"] | None) -> Bool[Array, "b 1 1 s"] | None:
    """A mask of keys shaped for `MultiHeadAttention`; None (everything is used) stays None."""
    return None if mask is None else mask[:, None, None, :]


def causal_mask(length: int) -> Bool[Array, "1 1 t t"]:
    """Each query position sees itself and what lies before it."""
    position = jnp.arange(length)
    return (position[:, None] >= position[None, :])[None, None]


def both_masks(
    first: Bool[Array, "#b 1 #t s"] | None, second: Bool[Array, "#b 1 #t s"]
) -> Bool[Array, "#b 1 #t s"]:
    """Positions that both allow; a first mask of None allows all."""
    return second if first is None else first & second


def text_attention_mask(
    mask: Bool[Array, "b t"] | None, length: int, *, causal: bool
) -> Bool[Array, "#b 1 #t t"] | None:
    """`attention_mask`; if causal, each position also sees nothing after itself."""
    keys = attention_mask(mask)
    return both_masks(keys, causal_mask(length)) if causal else keys


def joint_mask(
    first: Bool[Array, "b s"] | None, second: Bool[Array, "b r"] | None, lengths: tuple[int, int]
) -> Bool[Array, "b q"] | None:
    """The mask of two sequences joined, of these lengths; None where neither has one."""
    given = first if first is not None else second
    if given is None:
        return None
    masks = (first, second)
    filled = [
        jnp.ones((given.shape[0], length), bool) if mask is None else mask
        for mask, length in zip(masks, lengths, strict=True)
    ]
    return jnp.concatenate(filled, axis=1)


def zero_masked(x: Float[Array, "b s d"], mask: Bool[Array, "b s"] | None) -> Float[Array, "b s d"]:
    """`x` with every position under a false mask set to 0, so neither value nor gradient passes."""
    return x if mask is None else jnp.where(mask[:, :, None], x, jnp.zeros_like(x))


def masked_mean(x: Float[Array, "b s d"], mask: Bool[Array, "b s"] | None) -> Float[Array, "b d"]:
    """Mean over the used positions; 0 where none is used."""
    if mask is None:
        return x.mean(axis=1)
    count = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1).astype(x.dtype)
    return zero_masked(x, mask).sum(axis=1) / count[:, None]
