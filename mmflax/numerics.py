"""Numerical functions that models, losses and tasks share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Each vector divided by its length, computed in float32; a zero vector stays zero.

    Lengths below 1e-6 count as 1e-6, so that the gradient is finite everywhere.
    """
    exact = x.astype(jnp.float32)
    square = jnp.square(exact).sum(axis=-1, keepdims=True)
    return (exact * jax.lax.rsqrt(jnp.maximum(square, 1e-12))).astype(x.dtype)
