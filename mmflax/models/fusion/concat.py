"""Concatenation: `h = [v; l]`, and what follows learns how the two relate.

As in the iBOWIMG baseline (Zhou et al. 2015, "Simple baseline for visual question answering"),
where an answer classifier reads image and question features side by side.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.fusion.operator_fusion import Placed


class Concatenation(nn.Module):
    """`[v; l]`, twice as wide as either."""

    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b e"]:
        return jnp.concatenate([image, text], axis=-1)


class Concat(Placed):
    """Fusion by concatenation; late, `pooled` is [b 2*width]."""

    def operator(self, name: str) -> nn.Module:
        return Concatenation(name=name)


def build(**fields: Any) -> Concat:
    """A `Concat`; `fields` are its own."""
    return Concat(**fields)
