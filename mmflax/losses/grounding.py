"""Grounding of words in images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def word_region_loss(
    word_logits: Float[Array, "b n v"],
    caption: Int[Array, "b c"],
    caption_mask: Bool[Array, "b c"],
    num_special: int = 5,
    present: Bool[Array, "b"] | None = None,
) -> Float[Array, "b"]:
    """Binary cross-entropy of which words the image's caption holds, summed over the vocabulary.

    Multiple-instance learning of words from regions (Fang et al. 2015): an image shows a word if
    one of its tokens does. Where the paper combines regions by noisy-OR we take the largest logit.
    The first `num_special` words ([PAD], [CLS], …) are left out; 0 without a caption, and where
    `present` says that there is no image.
    """
    each = word_logits.astype(jnp.float32)
    # Not `max`: its gradient finds the largest by comparing with it, and where a compiler computes
    # the two with different rounding finds none, and divides 0 by 0.
    largest = jnp.argmax(jax.lax.stop_gradient(each), axis=1, keepdims=True)
    places = jnp.arange(each.shape[1])[None, :, None]
    logits = jnp.where(places == largest, each, 0.0).sum(axis=1)
    rows = jnp.arange(caption.shape[0])[:, None]
    targets = jnp.zeros(logits.shape, bool).at[rows, caption].max(caption_mask)
    losses = jax.nn.softplus(logits) - jnp.where(targets, logits, 0.0)
    counts = caption_mask.any(axis=1)
    if present is not None:
        counts = counts & present
    return jnp.where(counts, losses[:, num_special:].sum(axis=-1), 0.0)
