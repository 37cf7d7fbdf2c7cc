"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1) whose empty rows give zeros.

`softmax(query key^T / sqrt(head_dim)) value`, the softmax in float32. Where this differs from the
paper: a query whose mask is false everywhere returns zeros. A softmax over nothing would become
the uniform average of exactly the positions that the mask hides. Masks are boolean, true means "use
this position", in the whole library.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.chunked_attention import ATTENTION_OUTPUT, chunked_attention
from mmflax.models.layers.splash_attention import check_splash, splash_attention
from mmflax.platform import platform

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "einsum", "chunked", "splash")
# From this many queries times keys on "auto" builds no matrix of them. The gradient for 12 heads
# of 1,297 tokens took a CPU less time in chunks than whole, and for 577 tokens more.
LARGE_MATRIX, LARGE_MATRIX_ON_CPU = 512 * 512, 1024 * 1024


def attend(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    value: Float[Array, "b s h k"],
    mask: Bool[Array, "#b #h #t s"] | None = None,
    bias: Float[Array, "#b #h t s"] | None = None,
    *,
    implementation: str = "auto",
) -> Float[Array, "b t h k"]:
    """`softmax(query key^T / sqrt(k) + bias) value`; `mask` is true where a key may be used.

    `implementation`:
    - "xla", "cudnn": those of `jax.nn.dot_product_attention`; cuDNN's flash kernel wants an NVIDIA
      device and half precision, and raises for shapes it does not support.
    - "einsum": `einsum_attention`, about twice as fast on CPU in training; no forward-mode
      derivatives.
    - "chunked": `chunked_attention`, in memory linear in t and s on every device; no forward-mode
      derivatives.
    - "splash": `splash_attention`, JAX's flash kernel for TPUs; raises elsewhere, for a bias, and
      for masks that are not of keys alone. No forward-mode derivatives.
    - "auto": what `choose` says.
    """
    implementation = resolve(implementation, query, key, mask, bias)
    if implementation == "chunked":
        return chunked_attention(query, key, value, mask, bias)
    if implementation == "splash":
        check_splash(mask, bias, platform())
        return splash_attention(query, key, value, mask)
    if implementation == "einsum":
        return checkpoint_name(einsum_attention(query, key, value, mask, bias), ATTENTION_OUTPUT)
    kernel: Literal["xla", "cudnn"] = "cudnn" if implementation == "cudnn" else "xla"
    bias = None if bias is None else bias.astype(query.dtype)
    mixed = jax.nn.dot_product_attention(query, key, value, bias, mask, implementation=kernel)
    if mask is not None:
        used = mask.any(axis=-1).swapaxes(1, 2)[..., None]  # [b t h 1]
        mixed = jnp.where(used, mixed, jnp.zeros_like(mixed))
    return checkpoint_name(mixed, ATTENTION_OUTPUT)


def resolve(
    implementation: str,
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    mask: Bool[Array, "#b #h #t s"] | None = None,
    bias: Float[Array, "#b #h t s"] | None = None,
) -> str:
    """The implementation of `attend` by a name that may be "auto"; a single query has no "cudnn".

    Raises:
      MmflaxError: the name is none of `IMPLEMENTATIONS`.
    """
    if implementation not in IMPLEMENTATIONS:
        raise MmflaxError(
            f"attention_impl is {implementation!r}; expected one of {', '.join(IMPLEMENTATIONS)}."
        )
    # cuDNN's kernel refuses single queries, and has nothing to gain there.
    single = implementation == "cudnn" and query.shape[1] == 1
    if implementation != "auto" and not single:
        return implementation
    return choose(
        platform(), query.shape[1], key.shape[1], query.shape[3], query.dtype,
        has_bias=bias is not None,
        has_query_mask=mask is not None and mask.shape[1:3] != (1, 1),
    )  # fmt: skip


def choose(
    platform: str,
    t: int,
    s: int,
    head_dim: int,
    dtype: Any,
    *,
    has_bias: bool,
    has_query_mask: bool,
) -> str:
    """What `attention_impl="auto"` means for `t` queries and `s` keys of a head, on a platform.

    Where the matrix of queries by keys is small: "einsum" on a CPU, else "xla". Where it is large:
    on a TPU "splash" for heads and dtypes whose program is known to compile, without a bias and
    without a mask that differs between queries; else "chunked". Never "cudnn": whether its kernel
    takes a call depends on the GPU and on the cuDNN that is installed, and it raises where not.
    """
    large = t * s >= (LARGE_MATRIX_ON_CPU if platform == "cpu" else LARGE_MATRIX)
    if not large:
        return "einsum" if platform == "cpu" else "xla"
    known = head_dim in (64, 128) and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float32)
    if platform == "tpu" and known and not has_bias and not has_query_mask:
        return "splash"
    return "chunked"


def attention_weights(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    mask: Bool[Array, "#b #h #t s"] | None = None,
    bias: Float[Array, "#b #h t s"] | None = None,
) -> Float[Array, "b h t s"]:
    """The softmax of `attend`, in float32; rows sum to 1, or to 0 where empty."""
    return _weights(_heads_first(query) * _scale(query), _heads_first(key), mask, bias)


@jax.custom_vjp
def einsum_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    value: Float[Array, "b s h k"],
    mask: Bool[Array, "#b #h #t s"] | None,
    bias: Float[Array, "#b #h t s"] | None = None,
) -> Float[Array, "b t h k"]:
    """Attention as products of contiguous matrices, with its derivative written out.

    Left to itself XLA's CPU backend multiplies strided heads and differentiates the softmax through
    its maximum and sum.
    """
    return _forward(query, key, value, mask, bias)[0]


def _forward(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None
) -> tuple[Array, tuple]:
    scaled = _heads_first(query) * _scale(query)
    key, value = _heads_first(key), _heads_first(value)
    weights = _weights(scaled, key, mask, bias).astype(value.dtype)
    mixed = jnp.einsum("bhts,bhsk->bhtk", weights, value)
    return _heads_first(mixed), (scaled, key, value, weights, bias)


def _backward(saved: tuple, grad: Array) -> tuple[Array, Array, Array, None, Array | None]:
    scaled, key, value, weights, bias = saved
    grad = _heads_first(grad)
    grad_value = jnp.einsum("bhts,bhtk->bhsk", weights, grad)
    grad_weights = jnp.einsum("bhtk,bhsk->bhts", grad, value)
    # Not by way of the smaller `grad * mixed` (FlashAttention, appendix B.2): where values share a
    # large part, what rounding leaves in the difference below is about twice as much.
    expected = (weights * grad_weights).sum(axis=-1, keepdims=True)
    # Zero weights, masked ones among them, get zero gradient here.
    grad_logits = weights * (grad_weights - expected)
    grad_scaled = jnp.einsum("bhts,bhsk->bhtk", grad_logits, key)
    grad_key = jnp.einsum("bhts,bhtk->bhsk", grad_logits, scaled)
    grad_query = _heads_first(grad_scaled) * _scale(grad_scaled)
    grad_bias = None
    if bias is not None:
        axes = tuple(i for i in range(4) if bias.shape[i] == 1)
        grad_bias = grad_logits.sum(axis=axes, keepdims=True).astype(bias.dtype)
    return grad_query, _heads_first(grad_key), _heads_first(grad_value), None, grad_bias


einsum_attention.defvjp(_forward, _backward)


def _weights(scaled: Array, key: Array, mask: Array | None, bias: Array | None) -> Array:
    logits = jnp.einsum("bhtk,bhsk->bhts", scaled, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    return masked_softmax(logits, mask)


def masked_softmax(
    logits: Float[Array, "b h t s"], mask: Bool[Array, "#b #h #t s"] | None
) -> Float[Array, "b h t s"]:
    """Softmax over the keys that `mask` allows; rows sum to 1, or to 0 where it allows none."""
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    # Half of the lowest number, so that subtracting the row's maximum cannot overflow.
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min / 2)
    # The largest has no part in the derivative, and asked for one may give 0 / 0 by rounding.
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - largest), 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def _scale(query: Array) -> Array:
    return jnp.asarray(query.shape[-1] ** -0.5, query.dtype)


def _heads_first(x: Array) -> Array:
    """[b t h k] <-> [b h t k]."""
    return x.swapaxes(1, 2)


def attention_mask(mask: Bool[Array, "b s"] | None) -> Bool[Array, "b 1 1 s"] | None:
    """A mask of keys shaped for `MultiHeadAttention`; None (everything is used) stays None."""
    return None if mask is None else mask[:, None, None, :]


def causal_mask(length: int) -> Bool[Array, "1 1 t t"]:
    """Each query position sees itself and what lies before it."""
    position = jnp.arange(length)
    return (position[:, None] >= position[None, :])[None, None]


def both_masks(
    first: Bool[Array, "#b 1 #t s"] | None, second: Bool[Array, "#b 1 #t s"]
) -> Bool[Array, "#b 1 #t s"]:
    """Positions that both allow; a first mask of None allows all."""
    return second if first is None else first & second


def text_attention_mask(
    mask: Bool[Array, "b t"] | None, length: int, *, causal: bool
) -> Bool[Array, "#b 1 #t t"] | None:
    """`attention_mask`; if causal, each position also sees nothing after itself."""
    keys = attention_mask(mask)
    return both_masks(keys, causal_mask(length)) if causal else keys


def joint_mask(
    first: Bool[Array, "b s"] | None, second: Bool[Array, "b r"] | None, lengths: tuple[int, int]
) -> Bool[Array, "b q"] | None:
    """The mask of two sequences joined, of these lengths; None where neither has one."""
    given = first if first is not None else second
    if given is None:
        return None
    masks = (first, second)
    filled = [
        jnp.ones((given.shape[0], length), bool) if mask is None else mask
        for mask, length in zip(masks, lengths, strict=True)
    ]
    return jnp.concatenate(filled, axis=1)


def zero_masked(x: Float[Array, "b s d"], mask: Bool[Array, "b s"] | None) -> Float[Array, "b s d"]:
    """`x` with every position under a false mask set to 0, so neither value nor gradient passes."""
    return x if mask is None else jnp.where(mask[:, :, None], x, jnp.zeros_like(x))


def masked_mean(x: Float[Array, "b s d"], mask: Bool[Array, "b s"] | None) -> Float[Array, "b d"]:
    """Mean over the used positions; 0 where none is used."""
    if mask is None:
        return x.mean(axis=1)
    count = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1).astype(x.dtype)
    return zero_masked(x, mask).sum(axis=1) / count[:, None]
