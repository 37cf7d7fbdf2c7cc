"""Text decoder: causal self-attention, and cross-attention to a memory.

The decoder of Vaswani et al. (2017, sec. 3.1), post-norm as there or pre-norm. What differs:
learned positions, and a norm of the word embeddings (BERT's), so that a word table that is shared
with an encoder may be of any size.

The memory is what was encoded *before* the first word is written: the image, the input text, or
both after fusion. The text being written meets itself through causal self-attention alone and
never enters a fusion. That is why fusions whose streams attend to each other, through which later
words would reach earlier ones, are safe as a memory, while they stay refused as causal decoders.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.decoder.layer import DecoderLayer, KeyValue
from mmflax.models.heads import MLMHead
from mmflax.models.layers.attention import attention_mask, causal_mask
from mmflax.models.layers.blocks import (
    NORM_STYLES,
    LayerNorm,
    check_length,
    constrain_batch,
    embedding_table,
    head_shape,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, StackConfig
from mmflax.models.layers.stack import REMAT_POLICIES, named_input, sow_states
from mmflax.registry import flat, make


class Context(NamedTuple):
    """The memory as every layer's cross-attention wants it, computed once per example."""

    memory: tuple[KeyValue, ...]
    mask: Bool[Array, "b m"] | None


class Decoder(nn.Module):
    """Tokens and a memory to scores of each next token.

    The whole text at once, for training: `decoder(tokens, memory, ...)`. Token by token, for
    search: `prepare` once, `empty` for the cache, then `step`. Both give the same logits.

    Words are embedded by the decoder's own table, or by the `table` [v d] that a call passes, such
    as a text encoder's. `tie="own"` scores next words by that same table (Press & Wolf 2017),
    `"none"` by a kernel of the decoder's own; `word_head` puts BERT's dense layer and norm before
    it, as BLIP does (Li et al. 2022). `max_length` is how many positions are learned, the begin
    token's included.
    """

    vocab_size: int
    width: int
    max_length: int
    layer: LayerConfig = flat(LayerConfig, without=("qkv_bias",))
    stack: StackConfig = flat(StackConfig, without=("scan_layers",))
    tie: str = "own"
    word_head: bool = False

    def setup(self) -> None:
        layer, dtypes = self.layer, self.layer.dtypes
        self.word_embedding = embedding_table(self.vocab_size, self.width, dtypes)
        self.position_embedding = embedding_table(self.max_length, self.width, dtypes)
        self.embedding_norm = LayerNorm(**layer.norm)
        self.embedding_dropout = nn.Dropout(layer.dropout_rate)
        self.layers = [DecoderLayer(layer, self.width) for _ in range(self.stack.depth)]
        if lookup("norm_style", layer.norm_style, NORM_STYLES):
            # Pre-norm layers end in an unnormalized sum.
            self.norm = LayerNorm(**layer.norm)
        head = (layer.activation, layer.epsilon, self.word_head)
        self.output = MLMHead(self.vocab_size, *head, **dtypes)

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        memory: Float[Array, "b m e"],
        *,
        tokens_mask: Bool[Array, "b s"] | None = None,
        memory_mask: Bool[Array, "b m"] | None = None,
        table: Float[Array, "v d"] | None = None,
        train: bool,
    ) -> Float[Array, "b s v"]:
        """Row i scores the token after `tokens[:, i]`, from the tokens up to i and the memory.

        What a masked token holds never matters. An all-false row of `memory_mask` = no memory.
        """
        length = tokens.shape[1]
        check_length(length, self.max_length, "decoder.max_length")
        mask = causal_mask(length)
        if tokens_mask is not None:
            tokens = jnp.where(tokens_mask, tokens, jnp.zeros_like(tokens))
            mask = mask & tokens_mask[:, None, None, :]
        x = self._embed(tokens, jnp.arange(length), table, train=train)
        last_rate = self.stack.drop_path_rate
        rates = jnp.linspace(0.0, last_rate, self.stack.depth, dtype=jnp.float32)
        keys = attention_mask(memory_mask)

        def body(layer: Any, x: Array, rate: Any) -> Array:
            kept = layer.cross_attention.key_value(memory)
            return layer(named_input(x), mask, kept, keys, drop_path=rate, train=train)[0]

        policy = lookup("remat", self.stack.remat, REMAT_POLICIES)
        if policy is not None:
            body = nn.remat(body, policy=policy)
        states = [x]
        for i, layer in enumerate(self.layers):
            x = body(layer, x, rates[i] if train and last_rate > 0.0 else None)
            states.append(x)
        sow_states(self, states)
        return self._score(x, table)

    def prepare(
        self, memory: Float[Array, "b m e"], memory_mask: Bool[Array, "b m"] | None = None
    ) -> Context:
        """Every layer's keys and values of the memory."""
        return Context(
            tuple(layer.cross_attention.key_value(memory) for layer in self.layers), memory_mask
        )

    def empty(self, rows: int, length: int) -> tuple[KeyValue, ...]:
        """A cache for `rows` texts of up to `length` tokens: per layer keys, values [r s h k]."""
        check_length(length, self.max_length, "decoder.max_length")
        shape = (rows, length, *head_shape(self.width, self.layer.num_heads))
        dtype = self.layer.dtype or self.layer.param_dtype
        return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in self.layers)

    def step(
        self,
        context: Context,
        cache: tuple[KeyValue, ...],
        token: Int[Array, "r"],
        position: Int[Array, ""],
        *,
        table: Float[Array, "v d"] | None = None,
    ) -> tuple[Float[Array, "r v"], tuple[KeyValue, ...]]:
        """Scores of the token after `position`, whose token is `token`; and the cache with it.

        `r` is a multiple of the context's b: r / b texts side by side share an example's memory.
        """
        x = self._embed(token[:, None], position[None], table, train=False)
        past = jnp.arange(cache[0][0].shape[1]) <= position
        keys = attention_mask(context.mask)
        kept = []
        for layer, memory, old in zip(self.layers, context.memory, cache, strict=True):
            x, new = layer(
                x, past[None, None, None], memory, keys, cache=old, position=position, train=False
            )
            kept.append(new)
        return self._score(x, table)[:, 0], tuple(kept)

    def _embed(self, tokens: Array, positions: Array, table: Array | None, *, train: bool) -> Array:
        if table is None:
            words = self.word_embedding(tokens)
        elif table.shape == (self.vocab_size, self.width):
            words = jnp.take(table, tokens, axis=0).astype(self.layer.dtype or table.dtype)
        else:
            raise MmflaxError(
                f"the shared word table is {list(table.shape)}, the decoder's words are "
                f"[{self.vocab_size}, {self.width}]; give both the same width, or the decoder its "
                "own table."
            )
        x = self.embedding_norm(words + self.position_embedding(positions)[None])
        return constrain_batch(self.embedding_dropout(x, deterministic=not train))

    def _score(self, x: Array, table: Array | None) -> Array:
        if self.layer.norm_style == "pre":
            x = self.norm(x)
        if lookup("tie", self.tie, {"own": True, "none": False}):
            return self.output(x, self.word_embedding.embedding if table is None else table)
        return self.output(x, None)


def build(**fields: Any) -> Decoder:
    """A `Decoder`; `fields` are its own and those of its layers, such as `num_heads`."""
    return make(Decoder, fields)
