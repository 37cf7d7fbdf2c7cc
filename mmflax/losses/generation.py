"""Generation: each next word from those before it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmflax.losses.masked import mean_over


def token_losses(
    logits: Float[Array, "b s v"],
    target: Int[Array, "b s"],
    mask: Bool[Array, "b s"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "b s"]:
    """-log p of each target token; 0 where `mask` is false.

    `label_smoothing` is that of Szegedy et al. 2016, sec. 7.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    index = jnp.where(mask, target, jnp.zeros_like(target))
    loss = -jnp.take_along_axis(log_p, index[..., None], axis=-1)[..., 0]
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * log_p.mean(axis=-1)
    return jnp.where(mask, loss, 0.0)


def next_word_loss(
    logits: Float[Array, "b s v"],
    target: Int[Array, "b s"],
    mask: Bool[Array, "b s"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "b"]:
    """The mean of `token_losses` over an example's target tokens; 0 where it has none.

    Captioning's cross-entropy (Vinyals et al. 2015, there a sum per sentence). `logits[:, i]` must
    predict `target[:, i]`: see `shift`.
    """
    return mean_over(token_losses(logits, target, mask, label_smoothing=label_smoothing), mask)


def shift(
    text: Int[Array, "b s"], mask: Bool[Array, "b s"]
) -> tuple[Int[Array, "b r"], Int[Array, "b r"], Bool[Array, "b r"]]:
    """(input, target, target mask), r = s - 1: at each place the next word is the target."""
    return text[:, :-1], text[:, 1:], mask[:, 1:] & mask[:, :-1]


def random_prefix(key: Key[Array, ""], text_mask: Bool[Array, "b t"]) -> Int[Array, "b"]:
    """How many words are given: uniform in [1, length - 1], so at least one is predicted (SimVLM,
    Wang et al. 2022, sec. 3.2); a text of one word or none gets 1."""
    length = text_mask.sum(axis=1, dtype=jnp.int32)
    return jax.random.randint(key, length.shape, 1, jnp.maximum(length, 2))


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
    predicted = jnp.arange(1, tokens.shape[1])[None] >= prefix[:, None]
    return next_word_loss(logits[:, :-1], target, mask & predicted)
