"""What every kind of fusion has in common: its fields, how streams enter and leave, and pooling.

A fusion is called as `(image, text, image_mask, text_mask, *, train)` and gives `Fused`. The fields
here mean the same in every kind, so that a config changes the kind by its `name` alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.layers.blocks import (
    KERNEL_INIT,
    TABLE_INIT,
    Block,
    LayerNorm,
    Pooler,
    as_dtype,
    choose,
    constrain_batch,
)
from mmflax.models.layers.masks import zero_masked
from mmflax.models.layers.pooling import pool_tokens
from mmflax.models.layers.stack import Stack

# Which row of a fusion's table of types the images have: one for all, or each its own.
ImageType = int | Int[Array, "b"]


class Fused(NamedTuple):
    """Both streams after fusion, and one vector for the pair."""

    image: Float[Array, "b n d"]
    text: Float[Array, "b t d"]
    pooled: Float[Array, "b e"]


class FusionBase(nn.Module):
    """Base of every fusion: a default for every attribute of `models/contracts.py`."""

    num_types = 2

    @property
    def num_layers_read(self) -> int:
        """Layers of each encoder that this fusion reads besides their tokens."""
        return 0

    @property
    def supports_causal(self) -> bool:
        """Whether `causal=True` keeps later words from reaching earlier ones."""
        return False


class Fusion(FusionBase):
    """The fields of every kind; a kind adds its own and `__call__`.

    Masks are true where a token is used; None uses all. Masked tokens are zeroed on entry, so an
    all-false mask makes a modality absent: no value and no gradient passes, and whatever is
    averaged or attended to is averaged over what is there. `image_pool` "cls" pools the first image
    token, "gap" the mean of those used (for an encoder without CLS). `mlp_dim` defaults to
    4 * width.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int | None = None
    image_pool: str = "cls"
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
    param_dtype: Any = "float32"

    @property
    def kinds(self) -> dict[str, Any]:
        """The dtypes, as every layer takes them."""
        return dict(dtype=as_dtype(self.dtype), param_dtype=as_dtype(self.param_dtype))

    @property
    def layer_fields(self) -> dict[str, Any]:
        """What a transformer layer of this fusion is made with."""
        return dict(
            num_heads=self.num_heads,
            mlp_dim=4 * self.width if self.mlp_dim is None else self.mlp_dim,
            norm_style=self.norm_style,
            activation=self.activation,
            epsilon=self.epsilon,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            attention_impl=self.attention_impl,
            qk_init=self.qk_init,
            **self.kinds,
        )

    def refuse(self, causal: bool, why: str) -> None:
        """Raises if asked for `causal`, for the reason `why`."""
        if causal:
            raise MmflaxError(
                f"{type(self).__name__} was asked for causal=True, but {why}; use cross_attention "
                "or merged_attention, or generate with a decoder that cross-attends."
            )

    def dense(self, width: int, name: str) -> nn.Dense:
        return nn.Dense(width, kernel_init=KERNEL_INIT, name=name, **self.kinds)

    def entrance(self, modality: str) -> Callable[[Array, Array | None], Array]:
        """`(x[b s ?], mask) -> [b s d]`: without its masked tokens, projected."""
        dense = self.dense(self.width, f"{modality}_projection")
        return lambda x, mask: constrain_batch(dense(zero_masked(x, mask)))

    def enter(
        self, image: Array, text: Array, image_mask: Array | None, text_mask: Array | None
    ) -> tuple[Array, Array]:
        """Both streams, projected, each with its type.

        The type also keeps an absent modality's tokens off the zero vector, where a layer norm of
        BERT's epsilon has a slope of a million.
        """
        image_type, text_type = self.types()
        return (
            self.entrance("image")(image, image_mask) + image_type,
            self.entrance("text")(text, text_mask) + text_type,
        )

    def types(self, rows: int = 2, image: ImageType = 1) -> tuple[Array, Array]:
        """Vectors that say (image, text): rows `image` and 0 of a table, as in METER.

        [1 1 d] each, or where `image` is a row for every example [b 1 d] of the image.
        """
        table = nn.Embed(
            rows, self.width, embedding_init=TABLE_INIT, name="type_embedding", **self.kinds
        )(jnp.arange(rows))
        return table[jnp.atleast_1d(image)][:, None], table[None, None, 0]

    def stack(self, name: str, layer: Callable[..., nn.Module] = Block, **fields: Any) -> Stack:
        """`depth` layers of this fusion's fields and `fields`."""
        return Stack(
            functools.partial(layer, **self.layer_fields, **fields),
            depth=self.depth,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
            scan_layers=self.scan_layers,
            name=name,
        )

    def leave(self, x: Array, modality: str) -> Array:
        """Pre-norm layers end in an unnormalised sum: normalise it."""
        if not choose("norm_style", self.norm_style, {"pre": True, "post": False}):
            return x
        return LayerNorm(epsilon=self.epsilon, name=f"{modality}_norm", **self.kinds)(x)

    def summary(
        self, x: Array, mask: Bool[Array, "b s"] | None, *, pool: str, absent: float = 0.0
    ) -> Float[Array, "b d"]:
        """One vector a row of [b s d] tokens, `absent` everywhere for a row with none in use."""
        vector = pool_tokens(x, mask, pool=pool)
        if mask is None:
            return vector
        there = mask.any(axis=1)[:, None]
        return jnp.where(there, vector, jnp.full_like(vector, absent))

    def pool_pair(
        self, image: Array, text: Array, image_mask: Bool[Array, "b n"] | None
    ) -> Float[Array, "b e"]:
        """METER's summary [b 2*width]: the tanh poolers of [text, image] side by side."""
        first = Pooler(self.width, name="text_pooler", **self.kinds)(text[:, 0])
        second = Pooler(self.width, name="image_pooler", **self.kinds)(
            pool_tokens(image, image_mask, pool=self.image_pool)
        )
        return jnp.concatenate([first, second], axis=-1)
