"""Element by element: `h = v + l` or `h = v ∘ l`, in the space both modalities are projected to.

The product is how the first VQA model joins image and question (Antol et al. 2015, sec. 5); Fukui
et al. 2016 ("Multimodal compact bilinear pooling", table 1) compare the two with concatenation.
Neither has parameters of its own.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.fusion.operator_fusion import Placed
from mmflax.models.layers.blocks import choose

# operation: (function, the value that changes nothing)
OPERATIONS = {"sum": (jnp.add, 0.0), "product": (jnp.multiply, 1.0)}


class ElementByElement(nn.Module):
    """`v + l` or `v ∘ l`."""

    operation: str

    def __call__(
        self, image: Float[Array, "*b d"], text: Float[Array, "*b d"]
    ) -> Float[Array, "*b d"]:
        return choose("operation", self.operation, OPERATIONS)[0](image, text)


class Elementwise(Placed):
    """Fusion by "sum" or "product" (`operation`). An absent modality is 0 in a sum, 1 in a product,
    so that the other one remains as it is."""

    operation: str = "product"

    @property
    def absent(self) -> float:
        return choose("operation", self.operation, OPERATIONS)[1]

    def operator(self, name: str) -> nn.Module:
        return ElementByElement(self.operation, name=name)


def build(**fields: Any) -> Elementwise:
    """An `Elementwise`; `fields` are its own."""
    return Elementwise(**fields)
