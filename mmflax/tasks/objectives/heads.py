"""Heads that several objectives share."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.layers.blocks import KERNEL_INIT
from mmflax.tasks.objectives.objective import CleanPass


class PairProjection(nn.Module):
    """The summaries of image and text, each through a dense layer of its own to [b e]."""

    dim: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, clean: CleanPass) -> tuple[Float[Array, "b e"], Float[Array, "b e"]]:
        image, text = clean.summaries()

        def dense(name: str) -> Any:
            return nn.Dense(self.dim, self.use_bias, kernel_init=KERNEL_INIT, name=name)

        x, y = dense("image_projection")(image), dense("text_projection")(text)
        return x.astype(jnp.float32), y.astype(jnp.float32)
