"""Additive attention (Bahdanau et al. 2015, sec. 3.1 and appendix A.1.2), both ways.

A token q weighs the other modality's tokens k_s by a small network, and reads their mean:

    e_s = v^T tanh(W q + U k_s)     α = softmax(e)     c = Σ_s α_s k_s

In every layer text queries the image and the image queries text, each with weights of its own and
reading what the other was before the layer; self-attention and an MLP follow. In the paper c enters
a recurrent cell, here the residual stream, through one more map.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.models.fusion.base import Fused, Fusion, Mask
from mmflax.models.layers.attention import attention_mask, masked_softmax
from mmflax.models.layers.blocks import (
    NORM_STYLES,
    Block,
    DropPath,
    LayerNorm,
    constrain_batch,
    dense,
    layer_scale,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, Typed
from mmflax.registry import make


class AdditiveAttention(Typed):
    """`x` [b t d] reads `context` [b s e]; a query with no token to read gives exactly zero.

    `attention_dim`, the size of the small network, is the width of `x` if None. Weights are sown as
    `attention` [b 1 t s] in a mutable "intermediates" collection.
    """

    attention_dim: int | None = None
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s e"],
        *,
        mask: Bool[Array, "#b 1 #t s"] | None = None,
        train: bool,
    ) -> Float[Array, "b t d"]:
        def project(width: int, name: str) -> nn.Dense:
            return dense(width, self.dtypes, use_bias=False, name=name)

        size = self.attention_dim or x.shape[-1]
        query = project(size, "query_projection")(x)
        key = project(size, "key_projection")(context)
        score = project(1, "score")(jnp.tanh(query[:, :, None] + key[:, None]))
        weights = masked_softmax(score.astype(jnp.float32)[:, None, :, :, 0], mask)
        self.sow("intermediates", "attention", weights)
        weights = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
        mixed = jnp.einsum("bts,bse->bte", weights[:, 0].astype(context.dtype), context)
        return project(x.shape[-1], "output")(mixed)


class AdditiveLayer(nn.Module):
    """Additive attention of each stream to the other, then a `Block` for each."""

    config: LayerConfig
    attention_dim: int | None = None

    @nn.compact
    def __call__(
        self,
        streams: tuple[Float[Array, "b n d"], Float[Array, "b t d"]],
        image_mask: Bool[Array, "b 1 1 n"] | None = None,
        text_mask: Bool[Array, "b 1 1 t"] | None = None,
        *,
        drop_path: float | Float[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b t d"]]:
        config = self.config
        pre = lookup("norm_style", config.norm_style, NORM_STYLES)

        def cross(x: Array, context: Array, mask: Array | None, name: str) -> Array:
            norm = LayerNorm(name=f"{name}_reads_norm", **config.norm)
            read = AdditiveAttention(
                self.attention_dim,
                config.attention_dropout_rate,
                name=f"{name}_reads",
                **config.dtypes,
            )
            y = read(norm(x) if pre else x, context, mask=mask, train=train)
            y = nn.Dropout(config.dropout_rate)(y, deterministic=not train)
            y = layer_scale(config, f"{name}_reads_layer_scale")(y)
            x = x + DropPath()(y, drop_path, train=train)
            return x if pre else norm(x)

        def block(x: Array, mask: Array | None, name: str) -> Array:
            return Block(config, name=name)(x, mask, drop_path=drop_path, train=train)

        image, text = (constrain_batch(x) for x in streams)
        image, text = (
            cross(image, text, text_mask, "image"),
            cross(text, image, image_mask, "text"),
        )
        return block(image, image_mask, "image"), block(text, text_mask, "text")


class AdditiveFusion(Fusion):
    """Fusion by additive attention; `pooled` [b 2*width] is of both streams.

    `attention_dim` is `width` if None. The small network holds [b t n attention_dim] numbers at
    once, so it is the field to lower where memory is short.
    """

    attention_dim: int | None = None

    @nn.compact
    def fuse(
        self, image: Array, text: Array, image_mask: Mask, text_mask: Mask, *, train: bool
    ) -> Fused:
        streams = self.embed(image, text, image_mask, text_mask)
        stack = self.layers("encoder", AdditiveLayer, attention_dim=self.attention_dim)
        image, text = stack(
            streams, attention_mask(image_mask), attention_mask(text_mask), train=train
        )
        image, text = self.final_norm(image, "image"), self.final_norm(text, "text")
        return Fused(image, text, self.pool_pair(image, text, image_mask, text_mask))


def build(**fields: Any) -> AdditiveFusion:
    """An `AdditiveFusion`; `fields` are its own."""
    return make(AdditiveFusion, fields)
