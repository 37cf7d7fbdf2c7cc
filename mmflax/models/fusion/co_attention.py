"""Co-attention: two streams, each attending to the other's previous layer.

Two published forms, of any depth, both post-norm with BERT's epsilon and erf GELU:

- "lxmert" (Tan & Bansal 2019, sec. 2.2): cross-attention, self-attention, MLP. The released code
  uses ONE cross-attention (with its norm) for both directions, which the paper does not say.
- "meter" (Dou et al. 2022, fig. 2): self-attention, cross-attention, MLP; each stream has its own.

In both, each stream's cross-attention reads what the other stream was before this layer. A stack
of these leaks future words into a text decoder through the image stream, so `causal` is refused.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.fusion.base import Fused as Fused
from mmflax.models.fusion.base import FusionBase, ImageType
from mmflax.models.layers.blocks import (
    KERNEL_INIT,
    TABLE_INIT,
    Block,
    LayerNorm,
    MultiHeadAttention,
    Pooler,
    as_dtype,
    choose,
    constrain_batch,
)
from mmflax.models.layers.masks import attention_mask, zero_masked
from mmflax.models.layers.pooling import pool_tokens
from mmflax.models.layers.stack import Stack

FORMS = {"meter": True, "lxmert": False}  # whether each stream has its own cross-attention


class CoAttentionLayer(nn.Module):
    """One co-attention layer; `(image, text) -> (image, text)`, the carry a `Stack` expects."""

    num_heads: int
    mlp_dim: int
    form: str = "meter"
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
        meter = choose("form", self.form, FORMS)
        image, text = streams
        attention_kinds = dict(
            num_heads=self.num_heads,
            attention_impl=self.attention_impl,
            qk_init=self.qk_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        block = functools.partial(
            Block,
            mlp_dim=self.mlp_dim,
            norm_style=self.norm_style,
            cross_attention=meter,
            activation=self.activation,
            epsilon=self.epsilon,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            **attention_kinds,
        )
        image_block, text_block = block(name="image"), block(name="text")
        rest: Any = dict(drop_path=drop_path, train=train)
        if meter:
            return (
                image_block(image, image_mask, text, text_mask, **rest),
                text_block(text, text_mask, image, image_mask, **rest),
            )
        attend = MultiHeadAttention(
            dropout_rate=self.attention_dropout_rate, name="cross_attention", **attention_kinds
        )
        norm = LayerNorm(
            epsilon=self.epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="cross_attention_norm",
        )
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        def cross(x: Array, context: Array, mask: Array | None) -> Array:
            return norm(x + dropout(attend(x, context, mask=mask, train=train)))

        image, text = constrain_batch(image), constrain_batch(text)
        image, text = cross(image, text, text_mask), cross(text, image, image_mask)
        return image_block(image, image_mask, **rest), text_block(text, text_mask, **rest)


class CoAttention(FusionBase):
    """Projection and modality type of each stream, a stack of co-attention layers, and poolers.

    Masks are true where a token is used; None uses all. Masked tokens are zeroed on entry, so an
    all-false mask makes a modality absent: no value and no gradient passes. `pooled` is, for
    "meter", the tanh poolers of [text, image] side by side [b 2*width]; for "lxmert" text's alone.
    `image_pool` "cls" pools the first image token, "gap" their mean (an encoder without CLS).

    "meter" always projects and adds a type embedding (row 0 text, `image_type` of `num_types` the
    image, so that of a pair of images each has its own; no norm after it).
    "lxmert" adds no type and projects only a stream whose width differs, where the paper has none.
    `norm_style="pre"` ("meter" only; both papers are post-norm) trains better from scratch.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    form: str = "meter"
    image_pool: str = "cls"
    num_types: int = 2
    norm_style: str = "post"
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: str = "none"
    scan_layers: bool = False
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b n i"],
        text: Float[Array, "b t j"],
        image_mask: Bool[Array, "b n"] | None = None,
        text_mask: Bool[Array, "b t"] | None = None,
        *,
        causal: bool = False,
        image_type: ImageType = 1,
        train: bool,
    ) -> Fused:
        if causal:
            raise MmflaxError(
                "co-attention was asked for causal=True, but the image stream carries later words "
                "back to earlier ones; generate with a decoder that cross-attends to the image."
            )
        meter = choose("form", self.form, FORMS)
        if self.norm_style == "pre" and not meter:
            raise MmflaxError('form "lxmert" has no norm_style "pre"; use "post", or form "meter".')
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def enter(x: Array, mask: Array | None, name: str) -> Array:
            x = zero_masked(x, mask)
            if meter or x.shape[-1] != self.width:
                name = f"{name}_projection"
                x = nn.Dense(self.width, kernel_init=KERNEL_INIT, name=name, **kinds)(x)
            return x if self.dtype is None else x.astype(self.dtype)

        image, text = enter(image, image_mask, "image"), enter(text, text_mask, "text")
        if meter:
            types = nn.Embed(
                self.num_types,
                self.width,
                embedding_init=TABLE_INIT,
                name="type_embedding",
                **kinds,
            )(jnp.arange(self.num_types))
            text = text + types[None, None, 0]
            image = image + types[jnp.atleast_1d(image_type)][:, None]
        layer = functools.partial(
            CoAttentionLayer,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            form=self.form,
            norm_style=self.norm_style,
            activation=self.activation,
            epsilon=self.epsilon,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            attention_impl=self.attention_impl,
            qk_init=self.qk_init,
            **kinds,
        )
        stack = Stack(
            layer,
            depth=self.depth,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
            scan_layers=self.scan_layers,
            name="encoder",
        )
        streams = (constrain_batch(image), constrain_batch(text))
        image, text = stack(
            streams, attention_mask(image_mask), attention_mask(text_mask), train=train
        )
        if self.norm_style == "pre":  # its residual sums leave the last layer unnormalised
            image = LayerNorm(epsilon=self.epsilon, name="image_norm", **kinds)(image)
            text = LayerNorm(epsilon=self.epsilon, name="text_norm", **kinds)(text)
        pooled = Pooler(self.width, name="text_pooler", **kinds)(text[:, 0])
        if meter:
            first = pool_tokens(image, image_mask, pool=self.image_pool)
            second = Pooler(self.width, name="image_pooler", **kinds)(first)
            pooled = jnp.concatenate([pooled, second], axis=-1)
        return Fused(image, text, pooled)


def build(
    *,
    width: int,
    depth: int,
    num_heads: int,
    mlp_dim: int | None = None,
    dtype: Any = None,
    param_dtype: Any = "float32",
    **fields: Any,
) -> CoAttention:
    """A `CoAttention`; `mlp_dim` defaults to 4 * width. Other fields are `CoAttention`'s."""
    return CoAttention(
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=4 * width if mlp_dim is None else mlp_dim,
        dtype=as_dtype(dtype),
        param_dtype=as_dtype(param_dtype),
        **fields,
    )
