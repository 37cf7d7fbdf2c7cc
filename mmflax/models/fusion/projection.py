"""Projection to a common space: `h = f(LayerNorm(W_v v + W_l l + b))`, f the `activation`.

The joint representation of Baltrušaitis et al. 2019 ("Multimodal machine learning", sec. 3.1) with
one layer: each modality has its own map into the space where they are added.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.fusion.operator_fusion import Placed
from mmflax.models.layers.blocks import ACTIVATIONS, KERNEL_INIT, LayerNorm, choose


class CommonSpace(nn.Module):
    """`f(LayerNorm(W_v v + W_l l + b))`."""

    width: int
    activation: str = "gelu"
    epsilon: float = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b e"]:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = dict(features=self.width, kernel_init=KERNEL_INIT, **kinds)
        seen = nn.Dense(name="image", use_bias=False, **dense)(image)
        said = nn.Dense(name="text", **dense)(text)
        h = LayerNorm(epsilon=self.epsilon, name="norm", **kinds)(seen + said)
        return choose("activation", self.activation, ACTIVATIONS)(h)


class Projection(Placed):
    """Fusion in a common space."""

    def operator(self, name: str) -> nn.Module:
        return CommonSpace(self.width, self.activation, self.epsilon, name=name, **self.kinds)


def build(**fields: Any) -> Projection:
    """A `Projection`; `fields` are its own."""
    return Projection(**fields)
