"""A decoder's layer, whose attention can keep the keys and values of what it has read."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float, Int

from mmflax.models.layers.blocks import (
    KERNEL_INIT,
    MLP,
    NORM_STYLES,
    DropPath,
    LayerNorm,
    attend_and_sow,
    constrain_batch,
    head_norm,
    head_shape,
    layer_scale,
    lookup,
    query_key_init,
    zero_without_key,
)
from mmflax.models.layers.config import LayerConfig

KeyValue = tuple[Array, Array]  # keys and values [b s h k]


class KeyValueAttention(nn.Module):
    """`MultiHeadAttention` in two halves, so that keys and values can be kept between calls.

    Parameters and results are those of `MultiHeadAttention`; so are the fields, but for `width`,
    which the first half cannot read off the queries.
    """

    config: LayerConfig
    width: int

    def setup(self) -> None:
        heads, dtypes = head_shape(self.width, self.config.num_heads), self.config.dtypes
        init = query_key_init(self.config, self.path)
        self.query = nn.DenseGeneral(heads, kernel_init=init, **dtypes)
        self.key = nn.DenseGeneral(heads, kernel_init=init, **dtypes)
        self.value = nn.DenseGeneral(heads, kernel_init=KERNEL_INIT, **dtypes)
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1), kernel_init=KERNEL_INIT, **dtypes)
        self.query_norm, self.key_norm = head_norm(self.config), head_norm(self.config)
        self.dropout = nn.Dropout(self.config.attention_dropout_rate)

    def key_value(self, context: Float[Array, "b s e"]) -> KeyValue:
        """Keys and values of the context."""
        return self.key_norm(self.key(context)), self.value(context)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        kept: KeyValue,
        *,
        mask: Bool[Array, "#b #h #t s"] | None,
        train: bool,
    ) -> Float[Array, "b t d"]:
        query = self.query_norm(self.query(x))
        mixed = attend_and_sow(
            self, self.config, query, *kept, mask, dropout=self.dropout, train=train
        )
        return zero_without_key(self.out(mixed), mask)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, MLP, each a residual branch as in `Block`.

    With a `cache` (keys and values [b s h k] of the text so far) `x` is the one token at
    `position`; its own key and value are written there first.
    """

    config: LayerConfig
    width: int

    def setup(self) -> None:
        config = self.config
        self.attention = KeyValueAttention(config, self.width)
        self.cross_attention = KeyValueAttention(config, self.width)
        self.mlp = MLP(config)
        self.attention_norm = LayerNorm(**config.norm)
        self.cross_attention_norm = LayerNorm(**config.norm)
        self.mlp_norm = LayerNorm(**config.norm)
        self.attention_layer_scale = layer_scale(config)
        self.cross_attention_layer_scale = layer_scale(config)
        self.mlp_layer_scale = layer_scale(config)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.drop_path = DropPath()

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "#b 1 #t s"],
        memory: KeyValue,
        memory_mask: Bool[Array, "c 1 1 m"] | None,
        *,
        cache: KeyValue | None = None,
        position: Int[Array, ""] | None = None,
        drop_path: float | Float[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b t d"], KeyValue]:
        pre = lookup("norm_style", self.config.norm_style, NORM_STYLES)
        kept = cache

        def self_attend(y: Array) -> Array:
            nonlocal kept
            new = self.attention.key_value(y)
            kept = new if cache is None else _write(cache, new, position)
            return self.attention(y, kept, mask=mask, train=train)

        def cross_attend(y: Array) -> Array:
            # Beams of one example are queries of one memory, which is never copied.
            queries = y.reshape(memory[0].shape[0], -1, y.shape[-1])
            return self.cross_attention(queries, memory, mask=memory_mask, train=train).reshape(
                y.shape
            )

        x = constrain_batch(x)
        for branch, norm, scale in (
            (self_attend, self.attention_norm, self.attention_layer_scale),
            (cross_attend, self.cross_attention_norm, self.cross_attention_layer_scale),
            (self.mlp, self.mlp_norm, self.mlp_layer_scale),
        ):
            y = branch(norm(x) if pre else x)
            y = scale(self.dropout(y, deterministic=not train))
            y = x + self.drop_path(y, drop_path, train=train)
            x = y if pre else norm(y)
        assert kept is not None
        return x, kept


def _write(cache: KeyValue, new: KeyValue, position: Any) -> KeyValue:
    key, value = (
        jax.lax.dynamic_update_slice_in_dim(old, one.astype(old.dtype), position, axis=1)
        for old, one in zip(cache, new, strict=True)
    )
    return key, value
