"""One vector for a sequence of tokens: the first, the mean, or attention by a learned probe."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.blocks import MLP, TABLE_INIT, LayerNorm, MultiHeadAttention
from mmflax.models.layers.masks import attention_mask, masked_mean


def pool_tokens(
    tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None, *, pool: str
) -> Float[Array, "b d"]:
    """The pooling that needs no parameters: "cls" (first token) or "gap" (mean of used tokens)."""
    if pool == "cls":
        return tokens[:, 0]
    if pool == "gap":
        return masked_mean(tokens, mask)
    raise MmflaxError(f"pool is {pool!r}; expected cls or gap (map is the module MAPHead).")


class MAPHead(nn.Module):
    """Multi-head attention pooling (Zhai et al. 2022, "Scaling Vision Transformers", sec. 3.2).

    A learned probe attends to the tokens, then `x + MLP(norm(x))`; the probe has no residual.
    """

    num_heads: int
    mlp_dim: int
    activation: str = "gelu"
    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None, *, train: bool
    ) -> Float[Array, "b d"]:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = tokens.shape[-1]
        probe = self.param("probe", TABLE_INIT, (1, 1, width), self.param_dtype)
        probe = jnp.broadcast_to(probe.astype(tokens.dtype), (tokens.shape[0], 1, width))
        attend = MultiHeadAttention(self.num_heads, name="attention", **kinds)
        x = attend(probe, tokens, mask=attention_mask(mask), train=train)
        y = LayerNorm(epsilon=self.epsilon, name="mlp_norm", **kinds)(x)
        y = MLP(self.mlp_dim, activation=self.activation, name="mlp", **kinds)(y)
        return (x + y)[:, 0]
