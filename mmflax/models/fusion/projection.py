"""Projection to a common space: `h = f(LayerNorm(W_v v + W_l l + b))`, f the `activation`.

The joint representation of Baltrušaitis et al. 2019 ("Multimodal machine learning", sec. 3.1) with
one layer: each modality has its own map into the space where they are added.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.models.fusion.operator_fusion import Operator, OperatorFusion
from mmflax.models.layers.blocks import ACTIVATIONS, LayerNorm, dense, lookup
from mmflax.models.layers.config import Typed
from mmflax.registry import make


class CommonSpace(Typed):
    """`f(LayerNorm(W_v v + W_l l + b))`."""

    width: int
    activation: str = "gelu"
    epsilon: float = 1e-12

    @nn.compact
    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b e"]:
        dtypes = self.dtypes
        image = dense(self.width, dtypes, use_bias=False, name="image")(image)
        text = dense(self.width, dtypes, name="text")(text)
        h = LayerNorm(epsilon=self.epsilon, name="norm", **dtypes)(image + text)
        return lookup("activation", self.activation, ACTIVATIONS)(h)


class Projection(OperatorFusion):
    """Fusion in a common space."""

    def operator(self, name: str) -> Operator:
        layer = self.layer
        return CommonSpace(self.width, layer.activation, layer.epsilon, name=name, **layer.dtypes)


def build(**fields: Any) -> Projection:
    """A `Projection`; `fields` are its own."""
    return make(Projection, fields)
