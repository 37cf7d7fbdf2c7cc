"""Heads that several objectives share."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.layers.blocks import ACTIVATIONS, KERNEL_INIT, LayerNorm
from mmflax.tasks.objectives.objective import Reading


class WordHead(nn.Module):
    """Scores of every word at every place [b t v], float32.

    BERT's (Devlin et al. 2019, in its released code): dense, GELU, norm, likeness to the word
    table, bias. The table is the text encoder's own, which learns from this too.
    """

    @nn.compact
    def __call__(
        self, text: Float[Array, "b t d"], table: Float[Array, "v e"]
    ) -> Float[Array, "b t v"]:
        words, width = table.shape
        x = nn.Dense(width, kernel_init=KERNEL_INIT, name="dense")(text)
        x = LayerNorm(epsilon=1e-12, name="norm")(ACTIVATIONS["gelu"](x))
        bias = self.param("bias", nn.initializers.zeros, (words,), jnp.float32)
        logits = jnp.einsum(
            "btd,vd->btv", x, table.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return logits + bias[None, None]


class PairProjection(nn.Module):
    """The summaries of image and text, each through a dense layer of its own to [b e]."""

    dim: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, reading: Reading) -> tuple[Float[Array, "b e"], Float[Array, "b e"]]:
        image, text = reading.summaries()

        def dense(name: str) -> Any:
            return nn.Dense(self.dim, self.use_bias, kernel_init=KERNEL_INIT, name=name)

        x, y = dense("image_projection")(image), dense("text_projection")(text)
        return x.astype(jnp.float32), y.astype(jnp.float32)
