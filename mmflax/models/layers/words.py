"""From token vectors to scores of every word of a vocabulary."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.layers.blocks import (
    ACTIVATIONS,
    KERNEL_INIT,
    TABLE_INIT,
    LayerNorm,
    as_dtype,
    choose,
)


class WordLogits(nn.Module):
    """Scores of every word, float32: by likeness to a word table, or by a kernel; and a bias."""

    vocab_size: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s d"], table: Float[Array, "v d"] | None
    ) -> Float[Array, "b s v"]:
        size = (self.vocab_size, x.shape[-1])
        if table is None:
            table = self.param("kernel", TABLE_INIT, size[::-1], self.param_dtype).T
        bias = self.param("bias", nn.initializers.zeros, size[:1], self.param_dtype)
        logits = jnp.einsum(
            "bsd,vd->bsv", x, table.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return logits + bias.astype(jnp.float32)[None, None]


class WordHead(nn.Module):
    """Scores of every word for every token (masked words; Devlin et al. 2019): [b t d] -> [b t v].

    Dense, activation, norm, then likeness to each row of `table` [v d], or without a table a kernel
    of its own; and a bias. Logits are float32.
    """

    vocab_size: int
    activation: str = "gelu"
    epsilon: float = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], table: Float[Array, "v d"] | None = None
    ) -> Float[Array, "b t v"]:
        dtypes = dict(dtype=as_dtype(self.dtype), param_dtype=as_dtype(self.param_dtype))
        x = nn.Dense(x.shape[-1], kernel_init=KERNEL_INIT, name="dense", **dtypes)(x)
        x = choose("activation", self.activation, ACTIVATIONS)(x)
        x = LayerNorm(epsilon=self.epsilon, name="norm", **dtypes)(x)
        return WordLogits(self.vocab_size, dtypes["param_dtype"], name="output")(x, table)
