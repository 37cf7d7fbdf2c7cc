"""Adversarial alignment: a discriminator guesses the modality, the features learn to hide it."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def reverse_gradient(x: Float[Array, "..."], scale: float = 1.0) -> Float[Array, "..."]:
    """x going forward, -scale times the gradient going back (Ganin et al. 2016, eq. 16-17)."""
    return x


def _forward(x: Array, scale: float) -> tuple[Array, None]:
    return x, None


def _backward(scale: float, _: None, grad: Array) -> tuple[Array]:
    return (grad * jnp.asarray(-scale, grad.dtype),)


reverse_gradient.defvjp(_forward, _backward)


def modality_loss(
    image_logit: Float[Array, "b"],
    text_logit: Float[Array, "b"],
    mask: Bool[Array, "b"] | None = None,
) -> Float[Array, "b"]:
    """Binary cross-entropy of "is it an image?" for an image's and a text's features, their mean.

    The domain classifier's loss (Ganin et al. 2016, below eq. 7), the domains being the modalities.
    """
    image, text = image_logit.astype(jnp.float32), text_logit.astype(jnp.float32)
    loss = (jax.nn.softplus(-image) + jax.nn.softplus(text)) / 2
    return loss if mask is None else jnp.where(mask, loss, 0.0)
