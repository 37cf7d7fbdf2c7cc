"""The layers all encoders and fusions share: attention, MLP, norm, one block, drop-path, pooler.

Kernels start Xavier-uniform, as in the Vision Transformer's own code. Tables start normal(0.02), as
in BERT, which uses a truncated normal(0.02) for its kernels too.
"""

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.attention import attend, attention_weights
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


def as_dtype(dtype: Any) -> Any:
    """A dtype from its name, as configs write it; None (follow the inputs) stays None."""
    return None if dtype is None else jnp.dtype(dtype)


def choose(field: str, value: str, table: dict[str, Any]) -> Any:
    """`table[value]`, or an error that names the field and lists what it may be."""
    if value not in table:
        raise MmflaxError(f"{field} is {value!r}; expected one of {', '.join(table)}.")
    return table[value]


def constrain_batch(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Keep the batch axis laid out as the trainer's logical rules say; without rules, nothing.

    Without it XLA may replicate activations when parameters are sharded over a large axis.
    """
    return nn.with_logical_constraint(x, ("batch",) + (None,) * (x.ndim - 1))


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), in float32 whatever `dtype` is.

    The default `epsilon` is ViT's; BERT wants 1e-12 and CLIP 1e-5. The variance takes two passes:
    E[x^2] - E[x]^2 cancels, and what it leaves is far above 1e-12.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32

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


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, sec. 3.2.2) of `x` over `context`, or over itself.

    `bias` is added to the logits. `mask` is true where a query may use a key. A query with no key
    to use gives exactly zero, output bias included. Dropout acts on the weights, as in BERT. With a
    mutable "intermediates" collection the weights are sown there as `attention` [b h t s].

    `qkv_dim` is the width of queries, keys and values, all heads together; None takes that of `x`.
    `qk_init="shared"` starts the query and key kernels equal, so that attention begins as likeness
    (after mimetic initialisation, Trockman & Kolter 2023, sec. 4: W_q W_k^T near the identity). It
    helps small models trained from scratch.
    """

    num_heads: int
    qkv_dim: int | None = None
    dropout_rate: float = 0.0
    qkv_bias: bool = True
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = jnp.float32

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
        width = self.qkv_dim or x.shape[-1]
        if width % self.num_heads:
            raise MmflaxError(
                f"width {width} does not divide into {self.num_heads} heads; "
                "change width or num_heads."
            )
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=KERNEL_INIT)
        heads = (self.num_heads, width // self.num_heads)
        context = x if context is None else context
        likeness = choose("qk_init", self.qk_init, {"independent": False, "shared": True})
        query, key, value = (
            nn.DenseGeneral(
                heads,
                use_bias=self.qkv_bias,
                name=name,
                **kinds
                | {"kernel_init": shared_init(self.path) if likeness and i < 2 else KERNEL_INIT},
            )(source)
            for i, (name, source) in enumerate((("query", x), ("key", context), ("value", context)))
        )
        sow = self.is_mutable_collection("intermediates")
        dropped = train and self.dropout_rate > 0.0
        if sow or dropped:
            weights = attention_weights(query, key, mask, bias)
            self.sow("intermediates", "attention", weights)
        if dropped:
            weights = nn.Dropout(self.dropout_rate)(weights, deterministic=False)
            mixed = jnp.einsum("bhts,bshk->bthk", weights.astype(value.dtype), value)
        else:
            mixed = attend(query, key, value, mask, bias, implementation=self.attention_impl)
        out = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out", **kinds)(mixed)
        if mask is not None:
            used = mask.any(axis=(1, 3))[..., None]
            out = jnp.where(used, out, jnp.zeros_like(out))
        return out


def shared_init(path: tuple[str, ...]) -> Callable[..., Array]:
    """One draw for query and key: from their module's path, not from the parameter's own key."""
    seed = zlib.crc32("/".join(map(str, path)).encode())
    return lambda _, shape, dtype: KERNEL_INIT(jax.random.key(seed), shape, dtype)


class MLP(nn.Module):
    """Two dense layers with an activation between: "gelu" (erf), "gelu_tanh" or "quick_gelu"."""

    mlp_dim: int
    activation: str = "gelu"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=KERNEL_INIT)
        hidden = nn.Dense(self.mlp_dim, name="fc1", dot_general=widening_product, **kinds)(x)
        hidden = choose("activation", self.activation, ACTIVATIONS)(hidden)
        return nn.Dense(x.shape[-1], name="fc2", **kinds)(hidden)


class Block(nn.Module):
    """One transformer layer: self-attention, optional cross-attention to a context, MLP.

    Each part is a residual branch, normalised on entry (`norm_style="pre"`, ViT) or after the sum
    (`"post"`, BERT). `mask` limits self-attention, `context_mask` cross-attention. Without
    `self_attention` the layer only reads its context (ViLBERT's co-attention); `attention_layer`
    (`name -> module`, called like ours) makes another self-attention. `qkv_dim` is that of
    `MultiHeadAttention`. With `context_optional` a call without a context leaves cross-attention
    and its norm out (BLIP).
    """

    num_heads: int
    mlp_dim: int
    norm_style: str = "pre"
    self_attention: bool = True
    attention_layer: Callable[..., nn.Module] | None = None
    cross_attention: bool = False
    context_optional: bool = False
    qkv_dim: int | None = None
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    qkv_bias: bool = True
    attention_impl: str = "auto"
    qk_init: str = "independent"
    dtype: Any = None
    param_dtype: Any = jnp.float32

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
        pre = choose("norm_style", self.norm_style, {"pre": True, "post": False})
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(
                num_heads=self.num_heads,
                qkv_dim=self.qkv_dim,
                dropout_rate=self.attention_dropout_rate,
                qkv_bias=self.qkv_bias,
                attention_impl=self.attention_impl,
                qk_init=self.qk_init,
                name=name,
                **kinds,
            )

        def residual(x: Array, branch: Callable[[Array], Array], name: str) -> Array:
            norm = LayerNorm(epsilon=self.epsilon, name=name, **kinds)
            y = branch(norm(x) if pre else x)
            y = nn.Dropout(self.dropout_rate)(y, deterministic=not train)
            y = x + DropPath()(y, drop_path, train=train)
            return y if pre else norm(y)

        x = constrain_batch(x)
        if self.self_attention:
            attend_self = (self.attention_layer or attention)(name="attention")
            x = residual(x, lambda y: attend_self(y, mask=mask, train=train), "attention_norm")
        if self.cross_attention and not (self.context_optional and context is None):
            if context is None:
                raise MmflaxError("a Block with cross_attention=True needs a context; none given.")
            attend_context = attention("cross_attention")
            x = residual(
                x,
                lambda y: attend_context(y, context, mask=context_mask, train=train),
                "cross_attention_norm",
            )
        mlp = MLP(self.mlp_dim, activation=self.activation, name="mlp", **kinds)
        return residual(x, mlp, "mlp_norm")


class Pooler(nn.Module):
    """tanh(dense(x)) of one vector per example, BERT's summary of its first token."""

    width: int
    activation: str = "tanh"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        dense = nn.Dense(
            self.width,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=KERNEL_INIT,
            name="dense",
        )
        return choose("activation", self.activation, ACTIVATIONS)(dense(x))
