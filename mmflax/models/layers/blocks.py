"""The layers all encoders and fusions share: attention, MLP, norm, one block, drop-path, pooler.

Kernels start Xavier-uniform, as in the Vision Transformer's own code. Tables start normal(0.02), as
in BERT, which uses a truncated normal(0.02) for its kernels too.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.attention import attend, attention_weights, resolve
from mmflax.models.layers.chunked_attention import ATTENTION_OUTPUT, chunked_attention
from mmflax.models.layers.config import LayerConfig, Typed
from mmflax.models.layers.product import widening_product

KERNEL_INIT = nn.initializers.xavier_uniform()
TABLE_INIT = nn.initializers.normal(0.02)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """GELU by the error function (Hendrycks & Gimpel 2016), as BERT and PyTorch compute it.

    `jax.nn.gelu(approximate=False)` takes erfc instead, which keeps more digits below -3, where the
    result is near 0, and costs four times as much on CPU.
    """
    half, root = jnp.asarray(0.5, x.dtype), jnp.asarray(0.5**0.5, x.dtype)
    return half * x * (jnp.asarray(1.0, x.dtype) + jax.lax.erf(x * root))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "swish": jax.nn.swish,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


# Whether what enters a branch is normalized.
NORM_STYLES = {"pre": True, "post": False}


def lookup(field: str, value: str, table: dict[str, Any]) -> Any:
    """`table[value]`, or an error that names the field and lists what it may be."""
    if value not in table:
        raise MmflaxError(f"{field} is {value!r}; expected one of {', '.join(table)}.")
    return table[value]


def check_length(length: int, longest: int, field: str) -> None:
    """Raises for a text of more tokens than there are positions."""
    if length > longest:
        raise MmflaxError(
            f"the text is {length} tokens long, the position table holds {longest}; shorten the "
            f"text or raise {field}."
        )


def constrain_batch(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Keep the batch axis laid out as the trainer's logical rules say; without rules, nothing.

    Without it XLA may replicate activations when parameters are sharded over a large axis.
    """
    return nn.with_logical_constraint(x, ("batch",) + (None,) * (x.ndim - 1))


def dense(width: int, dtypes: Mapping[str, Any], **fields: Any) -> nn.Dense:
    """A dense layer whose kernel starts as all do here."""
    return nn.Dense(width, kernel_init=KERNEL_INIT, **dtypes, **fields)


def embedding_table(rows: int, width: int, dtypes: Mapping[str, Any], **fields: Any) -> nn.Embed:
    """A table of `rows` learned vectors."""
    return nn.Embed(rows, width, embedding_init=TABLE_INIT, **dtypes, **fields)


class LayerNorm(Typed):
    """Layer normalization over the last axis (Ba et al. 2016), in float32 whatever `dtype` is.

    The default `epsilon` is ViT's; BERT wants 1e-12 and CLIP 1e-5. The variance takes two passes:
    E[x^2] - E[x]^2 cancels, and what it leaves is far above 1e-12.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        axes = (1,) * (x.ndim - 1) + shape
        exact = x.astype(jnp.float32)
        exact = exact - exact.mean(axis=-1, keepdims=True)
        variance = jnp.square(exact).mean(axis=-1, keepdims=True)
        exact = exact * jax.lax.rsqrt(variance + self.epsilon)
        exact = exact * scale.astype(jnp.float32).reshape(axes)
        exact = exact + bias.astype(jnp.float32).reshape(axes)
        return exact.astype(self.dtype or x.dtype)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drop a residual branch for whole examples.

    `rate` may be an array, so that scanned layers can differ; None or not training: identity.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ..."], rate: float | Float[Array, ""] | None, *, train: bool
    ) -> Float[Array, "b ..."]:
        if not train or rate is None:
            return x
        keep = 1.0 - jnp.asarray(rate, jnp.float32)
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))


class LayerScale(Typed):
    """A learned scale of every channel of a residual branch (Touvron et al. 2021, CaiT, eq. 4)."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        start = nn.initializers.constant(self.initial)
        scale = self.param("scale", start, (x.shape[-1],), self.param_dtype)
        return x * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)


def layer_scale(config: LayerConfig, name: str | None = None) -> Callable[[Array], Array]:
    """The scale of a branch; without one in the config, nothing."""
    if config.layer_scale is None:
        return lambda x: x
    return LayerScale(config.layer_scale, name=name, **config.dtypes)


def head_norm(config: LayerConfig, name: str | None = None) -> Callable[[Array], Array]:
    """The norm of queries or keys [b t h k], one for all heads; without `qk_norm`, nothing.

    A masked token is 0, where the slope of a norm of BERT's epsilon is a million: so ViT's epsilon.
    """
    if not config.qk_norm:
        return lambda x: x
    return LayerNorm(name=name, **config.dtypes)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, sec. 3.2.2) of `x` over `context`, or over itself.

    `bias` is added to the logits. `mask` is true where a query may use a key. A query with no key
    to use gives exactly zero, output bias included. Dropout acts on the weights, as in BERT. With a
    mutable "intermediates" collection the weights are sown there as `attention` [b h t s].
    `qkv_dim` is the width of queries, keys and values, all heads together; None is that of `x`.
    `rotate` turns queries and keys [b t h k] by their positions (see `positions.rope2d`).
    """

    config: LayerConfig
    qkv_dim: int | None = None
    rotate: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s e"] | None = None,
        *,
        mask: Bool[Array, "#b #h #t s"] | None = None,
        bias: Float[Array, "#b #h t s"] | None = None,
        train: bool,
    ) -> Float[Array, "b t d"]:
        config = self.config
        heads = head_shape(self.qkv_dim or x.shape[-1], config.num_heads)
        context = x if context is None else context
        qk_init = query_key_init(config, self.path)
        query, key, value = (
            nn.DenseGeneral(
                heads, use_bias=config.qkv_bias, kernel_init=init, name=name, **config.dtypes
            )(source)
            for name, source, init in (
                ("query", x, qk_init),
                ("key", context, qk_init),
                ("value", context, KERNEL_INIT),
            )
        )
        query, key = head_norm(config, "query_norm")(query), head_norm(config, "key_norm")(key)
        if self.rotate is not None:
            query, key = self.rotate(query), self.rotate(key)
        dropout = nn.Dropout(config.attention_dropout_rate)
        mixed = attend_and_sow(
            self, config, query, key, value, mask, bias, dropout=dropout, train=train
        )
        out = nn.DenseGeneral(
            x.shape[-1], axis=(-2, -1), kernel_init=KERNEL_INIT, name="out", **config.dtypes
        )
        return zero_without_key(out(mixed), mask)


def head_shape(width: int, num_heads: int) -> tuple[int, int]:
    """(heads, width of each)."""
    if width % num_heads:
        raise MmflaxError(
            f"width {width} does not divide into {num_heads} heads; change width or num_heads."
        )
    return num_heads, width // num_heads


def query_key_init(config: LayerConfig, path: tuple[str, ...]) -> Callable[..., Array]:
    """Initializer of the query and key kernels of the module at `path`.

    For `qk_init="shared"` the draw depends on the path, not on the parameter's own key.
    """
    if not lookup("qk_init", config.qk_init, {"independent": False, "shared": True}):
        return KERNEL_INIT
    seed = zlib.crc32("/".join(map(str, path)).encode())
    return lambda _, shape, dtype: KERNEL_INIT(jax.random.key(seed), shape, dtype)


def attend_and_sow(
    module: nn.Module,
    config: LayerConfig,
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    value: Float[Array, "b s h k"],
    mask: Bool[Array, "#b #h #t s"] | None,
    bias: Float[Array, "#b #h t s"] | None = None,
    *,
    dropout: nn.Dropout,
    train: bool,
) -> Float[Array, "b t h k"]:
    """`attend` with dropout of the weights, which `module` sows where that is asked for.

    Chunks drop their own weights; every other implementation leaves dropout to the whole matrix.
    """
    rate = config.attention_dropout_rate
    dropped = train and rate > 0.0
    implementation = resolve(config.attention_impl, query, key, mask, bias)
    in_chunks = dropped and implementation in ("chunked", "splash")
    if (dropped and not in_chunks) or module.is_mutable_collection("intermediates"):
        weights = attention_weights(query, key, mask, bias)
        module.sow("intermediates", "attention", weights)
    if in_chunks:
        draw = module.make_rng("dropout")
        return chunked_attention(query, key, value, mask, bias, dropout_rate=rate, dropout_key=draw)
    if dropped:
        weights = dropout(weights, deterministic=False)
        mixed = jnp.einsum("bhts,bshk->bthk", weights.astype(value.dtype), value)
        return checkpoint_name(mixed, ATTENTION_OUTPUT)
    return attend(query, key, value, mask, bias, implementation=implementation)


def zero_without_key(
    x: Float[Array, "b t d"], mask: Bool[Array, "#b #h #t s"] | None
) -> Float[Array, "b t d"]:
    """0 for queries that have no key to use."""
    if mask is None:
        return x
    return jnp.where(mask.any(axis=(1, 3))[..., None], x, jnp.zeros_like(x))


class MLP(nn.Module):
    """Two dense layers with the config's activation between them."""

    config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        config, width = self.config, x.shape[-1]
        hidden = 4 * width if config.mlp_dim is None else config.mlp_dim
        x = dense(hidden, config.dtypes, name="fc1", dot_general=widening_product)(x)
        x = lookup("activation", config.activation, ACTIVATIONS)(x)
        return dense(width, config.dtypes, name="fc2")(x)


class Block(nn.Module):
    """One transformer layer: self-attention, optional cross-attention to a context, MLP.

    Each part is a residual branch, normalized on entry (`norm_style="pre"`, ViT) or after the sum
    (`"post"`, BERT). `mask` limits self-attention, `context_mask` cross-attention. Without
    `self_attention` the layer only reads its context (ViLBERT's co-attention); `attention_layer`
    (`name -> module`, called like ours) makes another self-attention. `qkv_dim` is that of
    `MultiHeadAttention`. With `context_optional` a call without a context leaves cross-attention
    and its norm out (BLIP).
    """

    config: LayerConfig
    self_attention: bool = True
    attention_layer: Callable[..., nn.Module] | None = None
    cross_attention: bool = False
    context_optional: bool = False
    qkv_dim: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "#b #h #t t"] | None = None,
        context: Float[Array, "b s e"] | None = None,
        context_mask: Bool[Array, "#b #h #t s"] | None = None,
        *,
        drop_path: float | Float[Array, ""] | None = None,
        train: bool,
    ) -> Float[Array, "b t d"]:
        config = self.config
        pre = lookup("norm_style", config.norm_style, NORM_STYLES)
        attention = functools.partial(MultiHeadAttention, config, self.qkv_dim)

        def residual(x: Array, branch: Callable[[Array], Array], name: str) -> Array:
            norm = LayerNorm(name=name, **config.norm)
            y = branch(norm(x) if pre else x)
            y = nn.Dropout(config.dropout_rate)(y, deterministic=not train)
            y = layer_scale(config, name.replace("norm", "layer_scale"))(y)
            y = x + DropPath()(y, drop_path, train=train)
            return y if pre else norm(y)

        x = constrain_batch(x)
        if self.self_attention:
            attend_self = (self.attention_layer or attention)(name="attention")
            x = residual(x, lambda y: attend_self(y, mask=mask, train=train), "attention_norm")
        if self.cross_attention and not (self.context_optional and context is None):
            if context is None:
                raise MmflaxError("a Block with cross_attention=True needs a context; none given.")
            attend_context = attention(name="cross_attention")
            x = residual(
                x,
                lambda y: attend_context(y, context, mask=context_mask, train=train),
                "cross_attention_norm",
            )
        return residual(x, MLP(config, name="mlp"), "mlp_norm")


class Pooler(Typed):
    """tanh(dense(x)) of one vector per example, BERT's summary of its first token."""

    width: int
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        x = dense(self.width, self.dtypes, name="dense")(x)
        return lookup("activation", self.activation, ACTIVATIONS)(x)
