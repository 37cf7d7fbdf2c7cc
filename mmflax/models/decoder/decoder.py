"""A decoder that writes a text while it looks at a memory: causal self-attention, cross-attention.

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
from mmflax.models.layers.blocks import TABLE_INIT, LayerNorm, as_dtype, choose, constrain_batch
from mmflax.models.layers.masks import attention_mask, causal_mask
from mmflax.models.layers.stack import REMAT_POLICIES


class Context(NamedTuple):
    """The memory as every layer's cross-attention wants it, computed once per example."""

    memory: tuple[KeyValue, ...]
    mask: Bool[Array, "b m"] | None


class Decoder(nn.Module):
    """Tokens and a memory to scores of each next token.

    The whole text at once, for training: `decoder(tokens, memory, ...)`. Token by token, for
    search: `prepare` once, `empty` for the cache, then `step`. Both give the same logits.

    Words are embedded by the decoder's own table, or by the `table` [v d] that a call passes, such
    as a text encoder's. `tie="own"` scores next words by likeness to that same table (Press & Wolf
    2017), `"none"` by a kernel of the decoder's own; `word_head` puts BERT's dense layer and norm
    before it, as BLIP does (Li et al. 2022). `mlp_dim` defaults to 4 * width. `max_length`
    is how many positions are learned, the begin token's included.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    max_length: int
    mlp_dim: int | None = None
    norm_style: str = "pre"
    tie: str = "own"
    word_head: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: str = "none"
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = "float32"

    def setup(self) -> None:
        kinds = dict(dtype=as_dtype(self.dtype), param_dtype=as_dtype(self.param_dtype))

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, self.width, embedding_init=TABLE_INIT, **kinds)

        self.word_embedding = table(self.vocab_size)
        self.position_embedding = table(self.max_length)
        self.embedding_norm = LayerNorm(epsilon=self.epsilon, **kinds)
        self.embedding_dropout = nn.Dropout(self.dropout_rate)
        self.layers = [
            DecoderLayer(
                width=self.width,
                num_heads=self.num_heads,
                mlp_dim=4 * self.width if self.mlp_dim is None else self.mlp_dim,
                norm_style=self.norm_style,
                activation=self.activation,
                epsilon=self.epsilon,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                attention_impl=self.attention_impl,
                qk_init=self.qk_init,
                **kinds,
            )
            for _ in range(self.depth)
        ]
        if choose("norm_style", self.norm_style, {"pre": True, "post": False}):
            # Pre-norm layers end in an unnormalised sum.
            self.norm = LayerNorm(epsilon=self.epsilon, **kinds)
        self.output = MLMHead(
            self.vocab_size, self.activation, self.epsilon, transform=self.word_head, **kinds
        )

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
        self._check_length(length)
        mask = causal_mask(length)
        if tokens_mask is not None:
            tokens = jnp.where(tokens_mask, tokens, jnp.zeros_like(tokens))
            mask = mask & tokens_mask[:, None, None, :]
        x = self._embed(tokens, jnp.arange(length), table, train=train)
        rates = jnp.linspace(0.0, self.drop_path_rate, self.depth, dtype=jnp.float32)
        keys = attention_mask(memory_mask)

        def body(layer: Any, x: Array, rate: Any) -> Array:
            kept = layer.cross_attention.keep(memory)
            return layer(x, mask, kept, keys, drop_path=rate, train=train)[0]

        policy = choose("remat", self.remat, REMAT_POLICIES)
        if policy is not None:
            body = nn.remat(body, policy=policy)
        states = [x]
        for i, layer in enumerate(self.layers):
            x = body(layer, x, rates[i] if train and self.drop_path_rate > 0.0 else None)
            states.append(x)
        if self.is_mutable_collection("hidden_states") and not self.is_initializing():
            self.sow("hidden_states", "carry", tuple(states), reduce_fn=lambda _, new: new)
        return self._score(x, table)

    def prepare(
        self, memory: Float[Array, "b m e"], memory_mask: Bool[Array, "b m"] | None = None
    ) -> Context:
        """Every layer's keys and values of the memory."""
        return Context(
            tuple(layer.cross_attention.keep(memory) for layer in self.layers), memory_mask
        )

    def empty(self, rows: int, length: int) -> tuple[KeyValue, ...]:
        """A cache for `rows` texts of up to `length` tokens: per layer keys, values [r s h k]."""
        self._check_length(length)
        shape = (rows, length, self.num_heads, self.width // self.num_heads)
        dtype = as_dtype(self.dtype) or as_dtype(self.param_dtype)
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
        seen = jnp.arange(cache[0][0].shape[1]) <= position
        keys = attention_mask(context.mask)
        kept = []
        for layer, memory, old in zip(self.layers, context.memory, cache, strict=True):
            x, new = layer(
                x, seen[None, None, None], memory, keys, cache=old, position=position, train=False
            )
            kept.append(new)
        return self._score(x, table)[:, 0], tuple(kept)

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise MmflaxError(
                f"the text is {length} tokens long, the decoder's position table holds "
                f"{self.max_length}; shorten the text or raise decoder.max_length."
            )

    def _embed(self, tokens: Array, positions: Array, table: Array | None, *, train: bool) -> Array:
        if table is None:
            words = self.word_embedding(tokens)
        elif table.shape == (self.vocab_size, self.width):
            words = jnp.take(table, tokens, axis=0).astype(as_dtype(self.dtype) or table.dtype)
        else:
            raise MmflaxError(
                f"the shared word table is {list(table.shape)}, the decoder's words are "
                f"[{self.vocab_size}, {self.width}]; give both the same width, or the decoder its "
                "own table."
            )
        x = self.embedding_norm(words + self.position_embedding(positions)[None])
        return constrain_batch(self.embedding_dropout(x, deterministic=not train))

    def _score(self, x: Array, table: Array | None) -> Array:
        if self.norm_style == "pre":
            x = self.norm(x)
        if choose("tie", self.tie, {"own": True, "none": False}):
            return self.output(x, self.word_embedding.embedding if table is None else table)
        return self.output(x, None)
