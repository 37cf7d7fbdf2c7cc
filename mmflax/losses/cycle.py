"""Cycle consistency: what is taken to the other modality and back should be what it was."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.numerics import unit


def cycle_consistency(
    x: Float[Array, "b d"], returned: Float[Array, "b d"], *, kind: str = "l2"
) -> Float[Array, "b"]:
    """Distance of x and F(G(x)): CycleGAN's cycle loss (Zhu et al. 2017, eq. 2), one direction.

    The paper compares images by "l1"; for features there are also "l2" (squared) and "cosine"
    (1 - cosine). "l1" and "l2" are means over the features, so that width does not matter.
    """
    x, returned = x.astype(jnp.float32), returned.astype(jnp.float32)
    if kind == "cosine":
        return 1.0 - (unit(x) * unit(returned)).sum(axis=-1)
    error = x - returned
    return (jnp.abs(error) if kind == "l1" else jnp.square(error)).mean(axis=-1)
