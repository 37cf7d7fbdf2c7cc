"""BERT-style text encoder (Devlin et al. 2019): post-norm blocks, erf GELU, epsilon 1e-12.

`norm_style="pre"` is not BERT's; such layers train better from scratch (Xiong et al. 2020,
arXiv:2002.04745).
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.models.encoders.base import TextEncoderBase, variant_sizes
from mmflax.models.layers.attention import text_attention_mask
from mmflax.models.layers.blocks import (
    NORM_STYLES,
    Block,
    LayerNorm,
    Pooler,
    check_length,
    constrain_batch,
    embedding_table,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, Layered, StackConfig
from mmflax.models.layers.stack import Stack
from mmflax.registry import flat, make

# tiny to medium: Turc et al. 2019 (github.com/google-research/bert, "24 smaller models");
# base, large: Devlin et al. 2019, sec. 3.
SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(width=128, depth=2, num_heads=2, mlp_dim=512),
    "mini": dict(width=256, depth=4, num_heads=4, mlp_dim=1024),
    "small": dict(width=512, depth=4, num_heads=8, mlp_dim=2048),
    "medium": dict(width=512, depth=8, num_heads=8, mlp_dim=2048),
    "base": dict(width=768, depth=12, num_heads=12, mlp_dim=3072),
    "large": dict(width=1024, depth=24, num_heads=16, mlp_dim=4096),
}


class BERT(TextEncoderBase, Layered):
    """Tokens to contextual vectors [b t d]; `pool` makes BERT's summary of the first one.

    Positions count from 0 at the first column, so padding belongs on the right; the position table
    is read from row `position_offset` on (RoBERTa keeps its first rows for padding: 2) and
    `max_length` counts all its rows. With `pad_token` (RoBERTa: 1) positions count the tokens that
    are not it, wherever it stands, and it has row `position_offset - 1` itself. What a masked
    column on the right holds never matters, not even an index outside the vocabulary. `causal=True`
    limits every token to itself and what lies before it. With `layers=k` above 0 the result is a
    pair: the tokens, and a tuple of what the last k layers gave, the last one last. With
    `norm_embeddings=False` the sum of embeddings goes on as it is, for a fusion that normalizes it
    together with the image (VisualBERT). With `norm_style="pre"` a last norm follows the layers,
    and what they gave with `layers=k` goes through it too. `num_token_types` 0 leaves token types
    out. With `cross_attention` every layer also reads the `context` of a call that has one.
    """

    width: int
    vocab_size: int
    layer: LayerConfig = flat(LayerConfig, without=("qkv_bias",), norm_style="post", epsilon=1e-12)
    stack: StackConfig = flat(StackConfig)
    max_length: int = 512
    position_offset: int = 0
    pad_token: int | None = None
    num_token_types: int = 2
    norm_embeddings: bool = True
    cross_attention: bool = False

    gives_layers = True
    supports_causal = True

    @property
    def num_words(self) -> int:
        return self.vocab_size

    def setup(self) -> None:
        config, dtypes = self.layer, self.layer.dtypes
        self.word_embedding = embedding_table(self.vocab_size, self.width, dtypes)
        self.position_embedding = embedding_table(self.max_length, self.width, dtypes)
        if self.num_token_types:
            self.token_type_embedding = embedding_table(self.num_token_types, self.width, dtypes)
        self.embedding_norm = LayerNorm(**config.norm)
        self.embedding_dropout = nn.Dropout(config.dropout_rate)
        layer = functools.partial(
            Block, config, cross_attention=self.cross_attention, context_optional=True
        )
        self.encoder = Stack(layer, self.stack)
        if lookup("norm_style", config.norm_style, NORM_STYLES):
            self.norm = LayerNorm(**config.norm)
        self.pooler = Pooler(self.width, **dtypes)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"] | None = None,
        token_types: Int[Array, "b t"] | None = None,
        *,
        context: Float[Array, "b s e"] | None = None,
        causal: bool = False,
        layers: int = 0,
        train: bool,
    ) -> Float[Array, "b t d"] | tuple[Float[Array, "b t d"], tuple[Float[Array, "b t d"], ...]]:
        x = self.embed(tokens, text_mask, token_types)
        rest: Any = dict(causal=causal, layers=layers, train=train)
        return self.encode(x, text_mask, context, **rest)

    def embed(
        self,
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"] | None = None,
        token_types: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """The sum of word, type and position embeddings, not yet normalized."""
        length = tokens.shape[1]
        check_length(length, self.max_length - self.position_offset, "max_length")
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        positions = self._positions(tokens)
        if text_mask is not None:
            tokens, types = (jnp.where(text_mask, x, jnp.zeros_like(x)) for x in (tokens, types))
        x = self.word_embedding(tokens)
        if self.num_token_types:
            x = x + self.token_type_embedding(types)
        return x + self.position_embedding(positions)

    def _positions(self, tokens: Int[Array, "b t"]) -> Int[Array, "#b t"]:
        """Rows of the position table."""
        if self.pad_token is None:
            return self.position_offset + jnp.arange(tokens.shape[1])[None]
        counted = (tokens != self.pad_token).astype(jnp.int32)
        return self.position_offset - 1 + jnp.cumsum(counted, axis=1) * counted

    def encode(
        self,
        x: Float[Array, "b t d"],
        text_mask: Bool[Array, "b t"] | None = None,
        context: Float[Array, "b s e"] | None = None,
        *,
        causal: bool = False,
        layers: int = 0,
        train: bool,
    ) -> Float[Array, "b t d"] | tuple[Float[Array, "b t d"], tuple[Float[Array, "b t d"], ...]]:
        """Embeddings normalized and through the layers, which read the whole `context`."""
        if self.norm_embeddings:
            x = self.embedding_dropout(self.embedding_norm(x), deterministic=not train)
        x = constrain_batch(x)
        mask = text_attention_mask(text_mask, x.shape[1], causal=causal)
        found = self.encoder(x, mask, context, layers=layers, train=train)
        if not NORM_STYLES[self.layer.norm_style]:
            return found
        if not layers:
            return self.norm(found)
        outputs = tuple(self.norm(y) for y in found[1])
        return outputs[-1], outputs

    def pool(self, text: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        """tanh(dense(first token)), trained by next-sentence prediction in the paper.

        Its parameters exist only if `init` runs through it.
        """
        return self.pooler(text[:, 0])


def build(
    *,
    vocab_size: int,
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_dim: int | None = None,
    **fields: Any,
) -> BERT:
    """A `BERT` of a named variant; sizes given one by one override it; `fields` are `BERT`'s."""
    named = lookup("BERT variant", variant, SIZES) if variant else {}
    given = dict(width=width, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim)
    sizes = variant_sizes("BERT", named, given, "base", part="text_encoder")
    return make(BERT, fields | sizes | {"vocab_size": vocab_size})
