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

from mmflax.models.fusion.base import Fused, Fusion
from mmflax.models.layers.attention import masked_softmax
from mmflax.models.layers.blocks import (
    KERNEL_INIT,
    Block,
    DropPath,
    LayerNorm,
    choose,
    constrain_batch,
)
from mmflax.models.layers.masks import attention_mask


class AdditiveAttention(nn.Module):
    """`x` [b t d] reads `context` [b s e]; a query with no token to read gives exactly zero.

    `attention_dim`, the size of the small network, is the width of `x` if None. Weights are sown as
    `attention` [b 1 t s] in a mutable "intermediates" collection.
    """

    attention_dim: int | None = None
    dropout_rate: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s e"],
        *,
        mask: Bool[Array, "#b 1 #t s"] | None = None,
        train: bool,
    ) -> Float[Array, "b t d"]:
        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(
                width,
                use_bias=False,
                kernel_init=KERNEL_INIT,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        size = self.attention_dim or x.shape[-1]
        query = dense(size, "query_projection")(x)
        key = dense(size, "key_projection")(context)
        score = dense(1, "score")(jnp.tanh(query[:, :, None] + key[:, None]))
        weights = masked_softmax(score.astype(jnp.float32)[:, None, :, :, 0], mask)
        self.sow("intermediates", "attention", weights)
        weights = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
        mixed = jnp.einsum("bts,bse->bte", weights[:, 0].astype(context.dtype), context)
        return dense(x.shape[-1], "output")(mixed)


class AdditiveLayer(nn.Module):
    """Additive attention of each stream to the other, then a `Block` for each."""

    num_heads: int
    mlp_dim: int
    attention_dim: int | None = None
    norm_style: str = "post"
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = jnp.float32

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
        pre = choose("norm_style", self.norm_style, {"pre": True, "post": False})
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def cross(x: Array, context: Array, mask: Array | None, name: str) -> Array:
            norm = LayerNorm(epsilon=self.epsilon, name=f"{name}_reads_norm", **kinds)
            read = AdditiveAttention(
                self.attention_dim, self.attention_dropout_rate, name=f"{name}_reads", **kinds
            )
            y = read(norm(x) if pre else x, context, mask=mask, train=train)
            y = nn.Dropout(self.dropout_rate)(y, deterministic=not train)
            x = x + DropPath()(y, drop_path, train=train)
            return x if pre else norm(x)

        def block(x: Array, mask: Array | None, name: str) -> Array:
            layer = Block(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                norm_style=self.norm_style,
                activation=self.activation,
                epsilon=self.epsilon,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                attention_impl=self.attention_impl,
                qk_init=self.qk_init,
                name=name,
                **kinds,
            )
            return layer(x, mask, drop_path=drop_path, train=train)

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
    def __call__(
        self,
        image: Float[Array, "b n i"],
        text: Float[Array, "b t j"],
        image_mask: Bool[Array, "b n"] | None = None,
        text_mask: Bool[Array, "b t"] | None = None,
        *,
        causal: bool = False,
        train: bool,
    ) -> Fused:
        self.refuse(causal, "the image stream carries later words back to earlier ones")
        streams = self.enter(image, text, image_mask, text_mask)
        stack = self.stack("encoder", AdditiveLayer, attention_dim=self.attention_dim)
        image, text = stack(
            streams, attention_mask(image_mask), attention_mask(text_mask), train=train
        )
        image, text = self.leave(image, "image"), self.leave(text, "text")
        return Fused(image, text, self.pool_pair(image, text, image_mask))


def build(**fields: Any) -> AdditiveFusion:
    """An `AdditiveFusion`; `fields` are its own."""
    return AdditiveFusion(**fields)
