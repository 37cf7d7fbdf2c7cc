"""A decoder's layer, whose attention can keep the keys and values of what it has read."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.layers.attention import attend, attention_weights
from mmflax.models.layers.blocks import (
    KERNEL_INIT,
    MLP,
    DropPath,
    LayerNorm,
    choose,
    constrain_batch,
    shared_init,
)

KeyValue = tuple[Array, Array]  # keys and values [b s h k]


class KeyValueAttention(nn.Module):
    """`MultiHeadAttention` in two halves, so that keys and values can be kept between calls.

    Parameters and results are those of `MultiHeadAttention`; so are the fields, but for `width`,
    which the first half cannot read off the queries.
    """

    width: int
    num_heads: int
    dropout_rate: float = 0.0
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.width % self.num_heads:
            raise MmflaxError(
                f"width {self.width} does not divide into {self.num_heads} heads; "
                "change width or num_heads."
            )
        heads = (self.num_heads, self.width // self.num_heads)
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        likeness = choose("qk_init", self.qk_init, {"independent": False, "shared": True})
        init = shared_init(self.path) if likeness else KERNEL_INIT
        self.query = nn.DenseGeneral(heads, kernel_init=init, **kinds)
        self.key = nn.DenseGeneral(heads, kernel_init=init, **kinds)
        self.value = nn.DenseGeneral(heads, kernel_init=KERNEL_INIT, **kinds)
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1), kernel_init=KERNEL_INIT, **kinds)
        self.dropout = nn.Dropout(self.dropout_rate)

    def keep(self, context: Float[Array, "b s e"]) -> KeyValue:
        """Keys and values of the context."""
        return self.key(context), self.value(context)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        kept: KeyValue,
        *,
        mask: Bool[Array, "#b #h #t s"] | None,
        train: bool,
    ) -> Float[Array, "b t d"]:
        query, (key, value) = self.query(x), kept
        sow = self.is_mutable_collection("intermediates")
        dropped = train and self.dropout_rate > 0.0
        if sow or dropped:
            weights = attention_weights(query, key, mask)
            self.sow("intermediates", "attention", weights)
        if dropped:
            weights = self.dropout(weights, deterministic=False)
            mixed = jnp.einsum("bhts,bshk->bthk", weights.astype(value.dtype), value)
        else:
            # cuDNN's kernel refuses single queries, and has nothing to gain there.
            one = self.attention_impl == "cudnn" and x.shape[1] == 1
            mixed = attend(
                query, key, value, mask, implementation="auto" if one else self.attention_impl
            )
        out = self.out(mixed)
        if mask is None:
            return out
        used = mask.any(axis=(1, 3))[..., None]
        return jnp.where(used, out, jnp.zeros_like(out))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, MLP, each a residual branch as in `Block`.

    With a `cache` (keys and values [b s h k] of the text so far) `x` is the one token at
    `position`; its own key and value are written there first.
    """

    width: int
    num_heads: int
    mlp_dim: int
    norm_style: str = "pre"
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        fields = dict(
            width=self.width,
            num_heads=self.num_heads,
            dropout_rate=self.attention_dropout_rate,
            attention_impl=self.attention_impl,
            qk_init=self.qk_init,
            **kinds,
        )
        self.attention = KeyValueAttention(**fields)
        self.cross_attention = KeyValueAttention(**fields)
        self.mlp = MLP(self.mlp_dim, activation=self.activation, **kinds)
        self.attention_norm = LayerNorm(epsilon=self.epsilon, **kinds)
        self.cross_attention_norm = LayerNorm(epsilon=self.epsilon, **kinds)
        self.mlp_norm = LayerNorm(epsilon=self.epsilon, **kinds)
        self.dropout = nn.Dropout(self.dropout_rate)
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
        pre = choose("norm_style", self.norm_style, {"pre": True, "post": False})
        kept = cache

        def look_back(y: Array) -> Array:
            nonlocal kept
            new = self.attention.keep(y)
            kept = new if cache is None else _write(cache, new, position)
            return self.attention(y, kept, mask=mask, train=train)

        def look_at_memory(y: Array) -> Array:
            # Beams of one example are queries of one memory, which is never copied.
            queries = y.reshape(memory[0].shape[0], -1, y.shape[-1])
            return self.cross_attention(queries, memory, mask=memory_mask, train=train).reshape(
                y.shape
            )

        x = constrain_batch(x)
        for branch, norm in (
            (look_back, self.attention_norm),
            (look_at_memory, self.cross_attention_norm),
            (self.mlp, self.mlp_norm),
        ):
            y = branch(norm(x) if pre else x)
            y = self.dropout(y, deterministic=not train)
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
