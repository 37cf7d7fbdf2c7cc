"""Classification: cross-entropy of one class, and of answers that are right by degrees."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def sigmoid_cross_entropy(
    logits: Float[Array, "b a"], target: Float[Array, "b a"]
) -> Float[Array, "b"]:
    """Binary cross-entropy with targets in [0, 1], summed over the answers (VQAv2)."""
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    loss = jax.nn.softplus(logits) - target * logits
    return loss.sum(axis=-1)
