"""Generation: each next word from those before it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmflax.losses.masked import mean_over


def next_word_loss(
    logits: Float[Array, "b s v"],
    target: Int[Array, "b s"],
    target_mask: Bool[Array, "b s"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "b"]:
    """-log p of each target word, mean over an example's words; 0 where it has none.

    Captioning's cross-entropy (Vinyals et al. 2015, here a mean per word instead of a sum per
    sentence). `logits[:, i]` must predict `target[:, i]`: see `shift`. `label_smoothing` is that of
    Szegedy et al. 2016, sec. 7.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    index = jnp.where(target_mask, target, jnp.zeros_like(target))
    right = jnp.take_along_axis(log_p, index[..., None], axis=-1)[..., 0]
    loss = -(1.0 - label_smoothing) * right - label_smoothing * log_p.mean(axis=-1)
    return mean_over(loss, target_mask)


def shift(
    text: Int[Array, "b s"], mask: Bool[Array, "b s"]
) -> tuple[Int[Array, "b r"], Int[Array, "b r"], Bool[Array, "b r"]]:
    """(input, target, target mask), r = s - 1: at each place the word that follows is asked."""
    return text[:, :-1], text[:, 1:], mask[:, 1:] & mask[:, :-1]


def random_prefix(key: Key[Array, ""], text_mask: Bool[Array, "b t"]) -> Int[Array, "b"]:
    """How many words are given: uniform in [1, length - 1], so at least one is asked (SimVLM, Wang
    et al. 2022, sec. 3.2); a text of one word or none gets 1."""
    length = text_mask.sum(axis=1, dtype=jnp.int32)
    return jax.random.randint(key, length.shape, 1, jnp.maximum(length, 2))


def prefix_attention_mask(prefix: Int[Array, "b"], length: int) -> Bool[Array, "b 1 t t"]:
    """Who sees whom (SimVLM, sec. 3.2): the prefix all of itself, later words all before them."""
    position = jnp.arange(length)
    before = position[:, None] >= position[None, :]
    given = position[None, None, :] < prefix[:, None, None]
    return (before[None] | given)[:, None]


def prefix_lm_loss(
    logits: Float[Array, "b t v"],
    tokens: Int[Array, "b t"],
    text_mask: Bool[Array, "b t"],
    prefix: Int[Array, "b"],
) -> Float[Array, "b"]:
    """-log p of the words after the prefix (SimVLM, Wang et al. 2022, sec. 3.2), mean per word.

    `logits[:, i]` predict word i + 1; words before `prefix` are given and cost nothing.
    """
    _, target, mask = shift(tokens, text_mask)
    asked = jnp.arange(1, tokens.shape[1])[None] >= prefix[:, None]
    return next_word_loss(logits[:, :-1], target, mask & asked)
