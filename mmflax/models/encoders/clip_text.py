"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020): pre-norm, causal, 77 tokens."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.encoders.base import TextEncoderBase
from mmflax.models.layers.blocks import (
    TABLE_INIT,
    Block,
    LayerNorm,
    as_dtype,
    choose,
    constrain_batch,
)
from mmflax.models.layers.masks import attention_mask, causal_mask
from mmflax.models.layers.stack import Stack

# As in the released checkpoints (github.com/openai/CLIP), by the image encoder they belong to.
SIZES: dict[str, dict[str, int]] = {
    "B": dict(width=512, depth=12, num_heads=8, mlp_dim=2048),
    "L": dict(width=768, depth=12, num_heads=12, mlp_dim=3072),
}


class CLIPText(TextEncoderBase):
    """Tokens to normalised vectors [b t d]; `pool` picks the one that stands for the text.

    `always_causal` is CLIP's: no token sees what comes after it. SigLIP's text encoder is the same
    without. `pooling` is "end" (the token that ends the text: the first `end_token`, or where that
    is None the one with the highest id, as in CLIP's own code) or "last" (the last column, padding
    or not, as SigLIP).

    Positions count from 0 at the first column, so padding belongs on the right; what a masked
    column holds never matters. With `layers=k` above 0 the result is a pair: the tokens, and a
    tuple of what the last k layers gave, each through the same final norm.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    vocab_size: int
    max_length: int = 77
    always_causal: bool = True
    pooling: str = "end"
    end_token: int | None = None
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: str = "none"
    scan_layers: bool = False
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    gives_layers = True
    supports_causal = True

    def setup(self) -> None:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, self.width, embedding_init=TABLE_INIT, **kinds)

        self.word_embedding = table(self.vocab_size)
        self.position_embedding = table(self.max_length)
        self.embedding_dropout = nn.Dropout(self.dropout_rate)
        layer = functools.partial(
            Block,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            norm_style="pre",
            activation=self.activation,
            epsilon=self.epsilon,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            attention_impl=self.attention_impl,
            qk_init=self.qk_init,
            **kinds,
        )
        self.encoder = Stack(
            layer,
            depth=self.depth,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
            scan_layers=self.scan_layers,
        )
        self.norm = LayerNorm(epsilon=self.epsilon, **kinds)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"] | None = None,
        *,
        causal: bool = False,
        layers: int = 0,
        train: bool,
    ) -> Float[Array, "b t d"] | tuple[Float[Array, "b t d"], tuple[Float[Array, "b t d"], ...]]:
        length = tokens.shape[1]
        if length > self.max_length:
            raise MmflaxError(
                f"the text is {length} tokens long, the position table holds {self.max_length}; "
                "shorten the text or raise max_length."
            )
        x = self.word_embedding(_used(tokens, text_mask))
        x = x + self.position_embedding(jnp.arange(length))[None]
        x = constrain_batch(self.embedding_dropout(x, deterministic=not train))
        mask = attention_mask(text_mask)
        if causal or self.always_causal:
            mask = causal_mask(length) if mask is None else mask & causal_mask(length)
        if not layers:
            return self.norm(self.encoder(x, mask, train=train))
        outputs = tuple(map(self.norm, self.encoder(x, mask, layers=layers, train=train)[1]))
        return outputs[-1], outputs

    def pool(
        self,
        text: Float[Array, "b t d"],
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b d"]:
        """The vector that stands for the text; `text` is what the encoder gave for `tokens`."""
        if choose("pooling", self.pooling, {"end": False, "last": True}):
            return text[:, -1]
        tokens = _used(tokens, text_mask)
        score = tokens if self.end_token is None else (tokens == self.end_token).astype(jnp.int32)
        return jnp.take_along_axis(text, score.argmax(axis=1)[:, None, None], axis=1)[:, 0]


def _used(tokens: Array, mask: Array | None) -> Array:
    """0 in place of what a masked column holds."""
    return tokens if mask is None else jnp.where(mask, tokens, jnp.zeros_like(tokens))


def build(
    *,
    vocab_size: int,
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_dim: int | None = None,
    dtype: Any = None,
    param_dtype: Any = "float32",
    **fields: Any,
) -> CLIPText:
    """A `CLIPText` of a named variant; sizes given one by one override it."""
    sizes: dict[str, Any] = dict(choose("CLIP text variant", variant, SIZES)) if variant else {}
    given = dict(width=width, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim)
    sizes |= {name: value for name, value in given.items() if value is not None}
    if width is not None and mlp_dim is None:
        sizes["mlp_dim"] = 4 * width
    missing = [name for name in given if name not in sizes]
    if missing:
        raise MmflaxError(
            f"CLIP's text encoder needs a variant such as 'B', or also {', '.join(missing)}."
        )
    return CLIPText(
        **sizes,
        vocab_size=vocab_size,
        dtype=as_dtype(dtype),
        param_dtype=as_dtype(param_dtype),
        **fields,
    )
