"""Losses, one value per example: the caller owns mask and mean."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def softmax_cross_entropy(
    logits: Float[Array, "b a"], label: Int[Array, "b"], *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
    """-log p(label); 0 for a negative label (no class is right, so there is nothing to learn).

    `label_smoothing` spreads that share of the target over all classes (Szegedy et al. 2016,
    sec. 7).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    known = label >= 0
    index = jnp.where(known, label, jnp.zeros_like(label))
    right = jnp.take_along_axis(log_p, index[:, None], axis=-1)[:, 0]
    loss = -(1.0 - label_smoothing) * right - label_smoothing * log_p.mean(axis=-1)
    return jnp.where(known, loss, 0.0)


def word_region_loss(
    word_logits: Float[Array, "b n v"],
    caption: Int[Array, "b c"],
    caption_mask: Bool[Array, "b c"],
    num_special: int = 5,
) -> Float[Array, "b"]:
    """Which words does the picture's caption hold? Binary cross-entropy summed over the vocabulary.

    Multiple-instance learning of words from regions (Fang et al. 2015, sec. 3): a picture shows a
    word if one of its tokens does. Where the paper combines regions by noisy-OR we take the largest
    logit. The first `num_special` words ([PAD], [CLS], …) are left out; 0 without a caption.
    """
    logits = word_logits.astype(jnp.float32).max(axis=1)
    rows = jnp.arange(caption.shape[0])[:, None]
    said = jnp.zeros(logits.shape, bool).at[rows, caption].max(caption_mask)
    losses = jax.nn.softplus(logits) - jnp.where(said, logits, 0.0)
    return jnp.where(caption_mask.any(axis=1), losses[:, num_special:].sum(axis=-1), 0.0)


def sigmoid_cross_entropy(
    logits: Float[Array, "b a"], target: Float[Array, "b a"]
) -> Float[Array, "b"]:
    """Binary cross-entropy with targets in [0, 1], summed over the answers (VQAv2)."""
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    loss = jax.nn.softplus(logits) - target * logits
    return loss.sum(axis=-1)
