"""Gated multimodal unit (Arevalo et al. 2017, "Gated multimodal units for information fusion").

Section 3.1, with a gate for every feature that says how much each modality has to tell:

    h_v = tanh(W_v v)     h_l = tanh(W_l l)     z = sigmoid(W_z [v; l])     h = z h_v + (1 - z) h_l

No map has a bias, as printed, so an absent modality (all zeros) adds nothing and asks for nothing.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.fusion.operator_fusion import Placed
from mmflax.models.layers.blocks import KERNEL_INIT


class GatedUnit(nn.Module):
    """The unit above."""

    width: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b e"]:
        def dense(name: str, x: Array) -> Array:
            return nn.Dense(
                self.width,
                use_bias=False,
                kernel_init=KERNEL_INIT,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )(x)

        seen, said = jnp.tanh(dense("image", image)), jnp.tanh(dense("text", text))
        gate = jax.nn.sigmoid(dense("gate", jnp.concatenate([image, text], axis=-1)))
        return gate * seen + (1.0 - gate) * said


class Gated(Placed):
    """Fusion by a gated multimodal unit."""

    def operator(self, name: str) -> nn.Module:
        return GatedUnit(self.width, name=name, **self.kinds)


def build(**fields: Any) -> Gated:
    """A `Gated`; `fields` are its own."""
    return Gated(**fields)
