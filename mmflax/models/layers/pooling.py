"""One vector for a sequence of tokens: the first, the mean, or attention by a learned probe."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.blocks import MLP, TABLE_INIT, LayerNorm, MultiHeadAttention
from mmflax.models.layers.config import LayerConfig
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
    There is no dropout; heads, MLP, norm and dtypes are the config's.
    """

    config: LayerConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None, *, train: bool
    ) -> Float[Array, "b d"]:
        config = dataclasses.replace(
            self.config,
            attention_dropout_rate=0.0,
            qkv_bias=True,
            attention_impl="auto",
            qk_init="independent",
        )
        width = tokens.shape[-1]
        probe = self.param("probe", TABLE_INIT, (1, 1, width), config.param_dtype)
        probe = jnp.broadcast_to(probe.astype(tokens.dtype), (tokens.shape[0], 1, width))
        attend = MultiHeadAttention(config, name="attention")
        x = attend(probe, tokens, mask=attention_mask(mask), train=train)
        y = MLP(config, name="mlp")(LayerNorm(name="mlp_norm", **config.norm)(x))
        return (x + y)[:, 0]
