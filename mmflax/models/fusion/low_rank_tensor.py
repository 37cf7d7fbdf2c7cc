"""Low-rank tensor fusion (Liu et al. 2018, "Efficient low-rank multimodal fusion").

The map from the tensor [1; v] ⊗ [1; l] to h, with a weight tensor of rank r that is never built:

    h = Σ_i λ_i (A_i [1; v]) ∘ (B_i [1; l]) + b,   i = 1 … r

The sum over ranks stands outside the product, as in the released code and as a tensor of rank r
needs it; λ is that code's too. The column of A_i that meets the 1 is a bias here. It starts at 1,
where the code draws it, so that h begins with each modality by itself beside their product.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.fusion.operator_fusion import Operator, OperatorFusion
from mmflax.models.layers.blocks import dense
from mmflax.models.layers.config import Typed
from mmflax.registry import make


class LowRankProduct(Typed):
    """`Σ_i λ_i (A_i [1; v]) ∘ (B_i [1; l]) + b`."""

    width: int
    rank: int

    @nn.compact
    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b e"]:
        def factors(x: Array, name: str) -> Array:
            width, ones = self.rank * self.width, nn.initializers.ones
            x = dense(width, self.dtypes, bias_init=ones, name=name)(x)
            return x.reshape(*x.shape[:-1], self.rank, self.width)

        products = factors(image, "image") * factors(text, "text")
        start = nn.initializers.constant(1.0 / self.rank)
        scale = self.param("rank_scale", start, (self.rank,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
        h = jnp.einsum("...re,r->...e", products, scale.astype(products.dtype))
        return h + bias.astype(h.dtype).reshape((1,) * (h.ndim - 1) + (self.width,))


class LowRankTensor(OperatorFusion):
    """Fusion by a weight tensor of rank `rank`."""

    rank: int = 4

    def operator(self, name: str) -> Operator:
        return LowRankProduct(self.width, self.rank, name=name, **self.dtypes)


def build(**fields: Any) -> LowRankTensor:
    """A `LowRankTensor`; `fields` are its own."""
    return make(LowRankTensor, fields)
