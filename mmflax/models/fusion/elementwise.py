"""Element by element: `h = v + l` or `h = v ∘ l`, in the space both modalities are projected to.

The product is how the first VQA model joins image and question (Antol et al. 2015, sec. 5); Fukui
et al. 2016 ("Multimodal compact bilinear pooling", table 1) compare the two with concatenation.
Neither has parameters of its own.
"""

from typing import Any

import jax.numpy as jnp

from mmflax.models.fusion.operator_fusion import Operator, OperatorFusion
from mmflax.models.layers.blocks import lookup
from mmflax.registry import make

# operation: (function, its neutral element)
OPERATIONS = {"sum": (jnp.add, 0.0), "product": (jnp.multiply, 1.0)}


class Elementwise(OperatorFusion):
    """Fusion by "sum" or "product" (`operation`). An absent modality is 0 in a sum, 1 in a product,
    so that the other one remains as it is."""

    operation: str = "product"

    @property
    def absent(self) -> float:
        return lookup("operation", self.operation, OPERATIONS)[1]

    def operator(self, name: str) -> Operator:
        return lookup("operation", self.operation, OPERATIONS)[0]


def build(**fields: Any) -> Elementwise:
    """An `Elementwise`; `fields` are its own."""
    return make(Elementwise, fields)
