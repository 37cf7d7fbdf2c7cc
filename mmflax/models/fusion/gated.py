"""Gated multimodal unit (Arevalo et al. 2017, "Gated multimodal units for information fusion").

Section 3.1, with a gate for every feature:

    h_v = tanh(W_v v)     h_l = tanh(W_l l)     z = sigmoid(W_z [v; l])     h = z h_v + (1 - z) h_l

No layer has a bias, as printed, so an absent modality (all zeros) contributes zero.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.fusion.operator_fusion import Operator, OperatorFusion
from mmflax.models.layers.blocks import dense
from mmflax.models.layers.config import Typed
from mmflax.registry import make


class GatedUnit(Typed):
    """The unit above."""

    width: int

    @nn.compact
    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b e"]:
        def project(name: str, x: Array) -> Array:
            return dense(self.width, self.dtypes, use_bias=False, name=name)(x)

        h_image, h_text = jnp.tanh(project("image", image)), jnp.tanh(project("text", text))
        gate = jax.nn.sigmoid(project("gate", jnp.concatenate([image, text], axis=-1)))
        return gate * h_image + (1.0 - gate) * h_text


class Gated(OperatorFusion):
    """Fusion by a gated multimodal unit."""

    def operator(self, name: str) -> Operator:
        return GatedUnit(self.width, name=name, **self.dtypes)


def build(**fields: Any) -> Gated:
    """A `Gated`; `fields` are its own."""
    return make(Gated, fields)
