"""Concatenation: `h = [v; l]`, and what follows learns how the two relate.

As in the iBOWIMG baseline (Zhou et al. 2015, "Simple baseline for visual question answering"),
where an answer classifier reads image and question features side by side.
"""

from typing import Any

import jax.numpy as jnp

from mmflax.models.fusion.operator_fusion import Operator, OperatorFusion
from mmflax.registry import make


class Concat(OperatorFusion):
    """Fusion by concatenation; late, `pooled` is [b 2*width]."""

    def operator(self, name: str) -> Operator:
        return lambda image, text: jnp.concatenate([image, text], axis=-1)


def build(**fields: Any) -> Concat:
    """A `Concat`; `fields` are its own."""
    return make(Concat, fields)
