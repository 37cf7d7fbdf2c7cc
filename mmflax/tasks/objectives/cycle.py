"""Cycle consistency: an image's vector taken to the text's space and back is what it was.

CycleGAN's loss (Zhu et al. 2017, eq. 2) on the vectors of encoders instead of on pictures, both
ways. Since pairs are known here, where the paper has none, the translation is also compared with
the partner's vector. What a vector is compared with takes no gradient: else all could become one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.losses.cycle import cycle_consistency
from mmflax.models.layers.blocks import ACTIVATIONS, KERNEL_INIT, lookup
from mmflax.numerics import unit
from mmflax.tasks.objectives.heads import PairProjection
from mmflax.tasks.objectives.objective import CleanPass, Objective
from mmflax.tasks.task import Batch, Outputs


class Translation(nn.Module):
    """From one modality's vectors to the other's: dense, GELU, dense."""

    dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(2 * self.dim, kernel_init=KERNEL_INIT, name="hidden")(x)
        return nn.Dense(self.dim, kernel_init=KERNEL_INIT, name="vector")(ACTIVATIONS["gelu"](x))


class Cycle(nn.Module):
    """`image`, `text` [b e], each `to_…` the other modality, each `back`; `used` [b]."""

    dim: int

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        # Of size 1 per feature, so that smaller vectors gain nothing.
        x, y = (unit(v) * self.dim**0.5 for v in PairProjection(self.dim, name="pair")(clean))
        to_text, to_image = (
            Translation(self.dim, name="to_text"),
            Translation(self.dim, name="to_image"),
        )
        as_text, as_image = to_text(x), to_image(y)
        return {
            "image": x,
            "text": y,
            "as_text": as_text,
            "as_image": as_image,
            "image_back": to_image(as_text),
            "text_back": to_text(as_image),
            "used": clean.paired,
        }


def build(*, dim: int = 256, kind: str = "l2", translation: float = 1.0) -> Objective:
    """`kind` is "l1" (as in the paper), "l2" or "cosine"; `translation` weighs the comparison with
    the partner."""
    lookup("task.objectives.cycle.kind", kind, dict.fromkeys(("l1", "l2", "cosine")))

    def loss(outputs: Outputs, batch: Batch) -> Array:
        image, text = jax.lax.stop_gradient((outputs["image"], outputs["text"]))

        def distance(x: Array, name: str) -> Array:
            return cycle_consistency(x, outputs[name], kind=kind)

        total = distance(image, "image_back") + distance(text, "text_back")
        partner = distance(text, "as_text") + distance(image, "as_image")
        return jnp.where(outputs["used"], total + translation * partner, 0.0)

    return Objective(Cycle(dim), loss)
