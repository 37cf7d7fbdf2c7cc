"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020): pre-norm, causal, 77 tokens."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.models.encoders.base import TextEncoderBase, variant_sizes
from mmflax.models.layers.attention import text_attention_mask
from mmflax.models.layers.blocks import (
    Block,
    LayerNorm,
    check_length,
    constrain_batch,
    embedding_table,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, Layered, StackConfig
from mmflax.models.layers.stack import Stack
from mmflax.registry import flat, make

# As in the released checkpoints (github.com/openai/CLIP), by the image encoder they belong to.
SIZES: dict[str, dict[str, int]] = {
    "B": dict(width=512, depth=12, num_heads=8, mlp_dim=2048),
    "L": dict(width=768, depth=12, num_heads=12, mlp_dim=3072),
}


class CLIPText(TextEncoderBase, Layered):
    """Tokens to normalized vectors [b t d]; `pool` picks the one that stands for the text.

    `always_causal` is CLIP's: no token sees what comes after it. SigLIP's text encoder is the same
    without. `pooling` is "end" (the token that ends the text: the first `end_token`, or where that
    is None the one with the highest id, as in CLIP's own code) or "last" (the last column, padding
    or not, as SigLIP).

    Positions count from 0 at the first column, so padding belongs on the right; what a masked
    column holds never matters. With `layers=k` above 0 the result is a pair: the tokens, and a
    tuple of what the last k layers gave, each through the same final norm.
    """

    width: int
    vocab_size: int
    layer: LayerConfig = flat(
        LayerConfig, without=("norm_style", "qkv_bias"), activation="quick_gelu", epsilon=1e-5
    )
    stack: StackConfig = flat(StackConfig)
    max_length: int = 77
    always_causal: bool = True
    pooling: str = "end"
    end_token: int | None = None

    gives_layers = True
    supports_causal = True

    @property
    def num_words(self) -> int:
        return self.vocab_size

    def setup(self) -> None:
        config = self.layer
        self.word_embedding = embedding_table(self.vocab_size, self.width, config.dtypes)
        self.position_embedding = embedding_table(self.max_length, self.width, config.dtypes)
        self.embedding_dropout = nn.Dropout(config.dropout_rate)
        self.encoder = Stack(functools.partial(Block, config), self.stack)
        self.norm = LayerNorm(**config.norm)

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
        check_length(length, self.max_length, "max_length")
        x = self.word_embedding(_used(tokens, text_mask))
        x = x + self.position_embedding(jnp.arange(length))[None]
        x = constrain_batch(self.embedding_dropout(x, deterministic=not train))
        mask = text_attention_mask(text_mask, length, causal=causal or self.always_causal)
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
        if lookup("pooling", self.pooling, {"end": False, "last": True}):
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
    **fields: Any,
) -> CLIPText:
    """A `CLIPText` of a named variant; sizes given one by one override it."""
    named = lookup("CLIP text variant", variant, SIZES) if variant else {}
    given = dict(width=width, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim)
    sizes = variant_sizes("CLIP's text encoder", named, given, "B", part="text_encoder")
    return make(CLIPText, fields | sizes | {"vocab_size": vocab_size})
