"""Attention in chunks: no matrix of all queries by all keys is built, forward or backward.

Queries are taken a chunk at a time, and for each the keys a chunk at a time with an online softmax
(Rabe & Staats 2021, alg. in sec. 2; FlashAttention, Dao et al. 2022, alg. 1). The derivative is
written out: it keeps queries, keys, values, the output and two numbers for each row, and computes
the weights again (FlashAttention, alg. 4). Where this differs from the papers:

- Up to `LONGEST_ROW` keys are one chunk, so that most rows have a plain softmax.
- Kept are a row's maximum and sum, not the logarithm of its sum of exponentials, which at large
  logits has fewer digits than the weights.
- Rows that may use nothing give zeros (see `attention`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

# What attention gives, and the rows' numbers; remat policies of `stack` keep it by this name.
ATTENTION_OUTPUT = "attention_output"
# The lanes of a TPU, of which chunks are multiples; the most keys in a chunk; and the most entries
# of a chunk of queries by a chunk of keys.
LANES, LONGEST_ROW, LARGEST_TILE = 128, 2048, 2**18
_LOWEST, _TINY = jnp.finfo(jnp.float32).min, jnp.finfo(jnp.float32).tiny


def chunked_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    value: Float[Array, "b s h k"],
    mask: Bool[Array, "#b #h #t s"] | None = None,
    bias: Float[Array, "#b #h t s"] | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    chunk_sizes: tuple[int, int] | None = None,
) -> Float[Array, "b t h k"]:
    """`softmax(query key^T / sqrt(k) + bias) value` in memory linear in t and in s.

    The softmax, sums and the derivatives' sums are float32 whatever the dtype. With a
    `dropout_key` weights are dropped at `dropout_rate` and the rest divided by `1 - dropout_rate`;
    every chunk's draw is by the key folded with the chunk's place, so that the backward pass draws
    it again. `chunk_sizes` (queries, keys) are those of `default_chunk_sizes` unless given. No
    forward-mode derivatives.
    """
    sizes = chunk_sizes or default_chunk_sizes(query.shape[1], key.shape[1])
    rate = 0.0 if dropout_key is None else dropout_rate
    return _attention(rate, sizes, query, key, value, mask, bias, dropout_key)


def default_chunk_sizes(t: int, s: int) -> tuple[int, int]:
    """Sizes of the chunks of `t` queries and of `s` keys: multiples of 128 that pad little."""
    keys = even_chunks(s, LONGEST_ROW)
    return even_chunks(t, max(LARGEST_TILE // keys // LANES, 1) * LANES), keys


def even_chunks(length: int, longest: int) -> int:
    """The size of equal chunks of at most `longest` that together are least above `length`."""
    tiles = math.ceil(length / LANES)
    fewest = math.ceil(tiles * LANES / longest)
    counts = range(fewest, min(2 * fewest, tiles) + 1)
    count = min(counts, key=lambda count: math.ceil(tiles / count) * count)
    return math.ceil(tiles / count) * LANES


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    rate: float,
    sizes: tuple[int, int],
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    dropout_key: Array | None,
) -> Array:
    return _forward(rate, sizes, query, key, value, mask, bias, dropout_key)[0]


def _forward(
    rate: float,
    sizes: tuple[int, int],
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    dropout_key: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    rows, keys, tiles = _chunks(sizes, query, key, value, mask, bias)

    def row(_: Any, one: Any) -> tuple[Any, Any]:
        i, queries, row_tiles = one

        def tile(carry: Any, one: Any) -> tuple[Any, Any]:
            mixed, largest, summed = carry
            j, (keys, values), (allowed, biases) = one
            logits = _logits(queries, keys, allowed, biases)
            before, largest = largest, jnp.maximum(largest, logits.max(axis=-1))
            weights = _exponentials(logits, largest, allowed)
            shrink = jnp.exp(before - largest)
            summed = summed * shrink + weights.sum(axis=-1)
            weights = _dropped(weights, rate, dropout_key, i, j).astype(values.dtype)
            mixed = mixed * shrink[..., None] + _product("bhts,bhsk->bhtk", weights, values)
            return (mixed, largest, summed), None

        nothing = jnp.zeros(queries.shape[:-1], jnp.float32)
        start = jnp.zeros(queries.shape, jnp.float32), nothing + _LOWEST, nothing
        (mixed, largest, summed), _ = _loop(tile, start, (keys, row_tiles))
        mixed = mixed / jnp.maximum(summed, _TINY)[..., None]
        return None, (mixed.astype(query.dtype), largest, summed)

    _, (chunks, largest, summed) = _loop(row, None, (rows, tiles))
    mixed, largest, summed = (
        checkpoint_name(x, ATTENTION_OUTPUT)
        for x in (_heads_first(_join(chunks, 2, query.shape[1])), largest, summed)
    )
    return mixed, (query, key, value, mask, bias, dropout_key, mixed, largest, summed)


def _backward(
    rate: float, sizes: tuple[int, int], saved: tuple[Any, ...], grad: Array
) -> tuple[Array, Array, Array, None, Array | None, None]:
    query, key, value, mask, bias, dropout_key, mixed, largest, summed = saved
    rows, keys, tiles = _chunks(sizes, query, key, value, mask, bias)
    grads = _split(_heads_first(grad), 2, sizes[0])
    means = None
    if key.shape[1] > sizes[1]:
        # FlashAttention, appendix B.2. From whole rows this is computed below, with more digits
        # where values share a large part.
        exact = grad.astype(jnp.float32) * mixed.astype(jnp.float32)
        means = _split(_heads_first(exact).sum(axis=-1), 2, sizes[0])

    def row(carry: Any, one: Any) -> tuple[Any, Any]:
        i, (queries, grads, means, largest, summed), row_tiles = one
        summed = jnp.maximum(summed, _TINY)[..., None]

        def tile(grad_queries: Any, one: Any) -> tuple[Any, Any]:
            j, (keys, values), (allowed, biases) = one
            logits = _logits(queries, keys, allowed, biases)
            weights = _exponentials(logits, largest, allowed) / summed
            kept = _dropped(weights, rate, dropout_key, i, j).astype(values.dtype)
            grad_values = _product("bhts,bhtk->bhsk", kept, grads)
            grad_weights = _product("bhtk,bhsk->bhts", grads, values)
            grad_weights = _dropped(grad_weights, rate, dropout_key, i, j)
            expected = (weights * grad_weights).sum(axis=-1) if means is None else means
            grad_logits = weights * (grad_weights - expected[..., None])
            grad_bias = None if bias is None else _sum_like(bias, grad_logits)
            grad_logits = grad_logits.astype(query.dtype)
            grad_queries = grad_queries + _product("bhts,bhsk->bhtk", grad_logits, keys)
            grad_keys = _product("bhts,bhtk->bhsk", grad_logits, queries)
            return grad_queries, ((grad_keys, grad_values), grad_bias)

        start = jnp.zeros(queries.shape, jnp.float32)
        grad_queries, (more, grad_bias) = _loop(tile, start, (keys, row_tiles))
        return jax.tree.map(jnp.add, carry, more), (grad_queries.astype(query.dtype), grad_bias)

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), keys)
    inputs = (rows, grads, means, largest, summed), tiles
    (grad_key, grad_value), (grad_query, grad_bias) = _loop(row, start, inputs)
    grad_query = _heads_first(_join(grad_query, 2, query.shape[1])) * _scale(query)
    grad_key, grad_value = (
        _heads_first(_join(x, 2, key.shape[1])).astype(key.dtype) for x in (grad_key, grad_value)
    )
    if bias is not None:
        grad_bias = _join(_join(grad_bias, 3, bias.shape[2]), 3, bias.shape[3])
    return grad_query, grad_key, grad_value, None, grad_bias, None


_attention.defvjp(_forward, _backward)


def _chunks(
    sizes: tuple[int, int],
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
) -> tuple[Array, tuple[Array, Array], tuple[Array | None, Array | None]]:
    """Scaled queries, (keys, values) and (mask, bias) with leading axes of chunks.

    [n b h c k], [m b h c k] and [n m #b #h #c c], for n chunks of queries and m of keys.
    """
    rows = _split(_heads_first(query) * _scale(query), 2, sizes[0])
    keys, values = (_split(_heads_first(x), 2, sizes[1]) for x in (key, value))
    if mask is None and key.shape[1] % sizes[1]:
        mask = jnp.ones((1, 1, 1, key.shape[1]), bool)  # padded with false

    def tiles(x: Array | None) -> Array | None:
        if x is None:
            return None
        across = x.shape[2] == 1
        x = _split(x, 3, sizes[1])
        if across:
            return jnp.broadcast_to(x[None], (len(rows), *x.shape))
        return _split(x, 3, sizes[0])

    return rows, (keys, values), (tiles(mask), tiles(bias))


def _split(x: Array, axis: int, size: int) -> Array:
    """Chunks of `size` along `axis`, the last one padded with zeros, on a new first axis."""
    count = math.ceil(x.shape[axis] / size)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - x.shape[axis])
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)


def _join(chunks: Array, axis: int, length: int) -> Array:
    """The inverse of `_split`: the first axis joined into `axis`, of which `length` is kept."""
    x = jnp.moveaxis(chunks, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def _loop(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: tuple[Any, ...]) -> Any:
    """`jax.lax.scan` of `body(carry, (index, *inputs))`; of a single chunk, without a loop."""
    count = len(jax.tree.leaves(inputs)[0])
    if count > 1:
        return jax.lax.scan(body, carry, (jnp.arange(count), *inputs))
    carry, output = body(carry, (jnp.int32(0), *jax.tree.map(lambda x: x[0], inputs)))
    return carry, jax.tree.map(lambda x: x[None], output)


def _logits(query: Array, key: Array, mask: Array | None, bias: Array | None) -> Array:
    logits = _product("bhtk,bhsk->bhts", query, key)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    # As in `attention.masked_softmax`.
    return logits if mask is None else jnp.where(mask, logits, _LOWEST / 2)


def _exponentials(logits: Array, largest: Array, mask: Array | None) -> Array:
    weights = jnp.exp(logits - largest[..., None])
    return weights if mask is None else jnp.where(mask, weights, 0.0)


def _dropped(x: Array, rate: float, key: Array | None, i: Array, j: Array) -> Array:
    """`x` with dropout by the key of tile (i, j)."""
    if key is None or rate == 0.0:
        return x
    key = jax.random.fold_in(jax.random.fold_in(key, i), j)
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


def _product(axes: str, left: Array, right: Array) -> Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def _sum_like(bias: Array, grad: Array) -> Array:
    """`grad` summed over the batch and head axes that `bias` is broadcast over."""
    axes = tuple(i for i in (0, 1) if bias.shape[i] == 1)
    return grad.sum(axis=axes, keepdims=True).astype(bias.dtype)


def _scale(query: Array) -> Array:
    return jnp.asarray(query.shape[-1] ** -0.5, query.dtype)


def _heads_first(x: Array) -> Array:
    """[b t h ...] <-> [b h t ...]."""
    return x.swapaxes(1, 2)
