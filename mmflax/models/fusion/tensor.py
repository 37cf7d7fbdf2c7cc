"""Tensor fusion (Zadeh et al. 2017, "Tensor fusion network"): every product of features.

    h = W vec([1; v] ⊗ [1; l]) + b

The 1s keep the features of each modality themselves beside the products of the two. The paper's v
and l come from small networks of 32 and 128 units; here they are linear projections to `side - 1`
features, so that the tensor has side x side entries whatever the width. W is the first layer of
what the paper puts behind the tensor.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.models.fusion.operator_fusion import Operator, OperatorFusion
from mmflax.models.layers.blocks import dense
from mmflax.models.layers.config import Typed
from mmflax.registry import make


class OuterProduct(Typed):
    """`W vec([1; P_v v] ⊗ [1; P_l l]) + b`."""

    width: int
    side: int

    @nn.compact
    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b e"]:
        if self.side < 2:
            raise MmflaxError(
                f"side is {self.side}; the tensor needs one for the constant and one for a feature "
                "of each modality, so expected 2 or more."
            )

        def extended(x: Array, name: str) -> Array:
            x = dense(self.side - 1, self.dtypes, name=name)(x)
            return jnp.concatenate([jnp.ones_like(x[..., :1]), x], axis=-1)

        image, text = extended(image, "image"), extended(text, "text")
        outer = image[..., :, None] * text[..., None, :]
        outer = outer.reshape(*outer.shape[:-2], self.side**2)
        return dense(self.width, self.dtypes, name="output")(outer)


class Tensor(OperatorFusion):
    """Fusion by an outer product of `side` x `side` entries, the constants included."""

    side: int = 32

    def operator(self, name: str) -> Operator:
        return OuterProduct(self.width, self.side, name=name, **self.dtypes)


def build(**fields: Any) -> Tensor:
    """A `Tensor`; `fields` are its own."""
    return make(Tensor, fields)
