"""Chunked attention equals the whole matrix's, values and gradients, in far less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmflax.models.layers.attention import attend, einsum_attention
from mmflax.models.layers.chunked_attention import chunked_attention, default_chunk_sizes

B, H, K = 2, 3, 8


def inputs(t, s, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(B, t, H, K), (B, s, H, K), (B, s, H, K)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def random_mask(shape):
    """Random; the last query of example 0 may use nothing, as may every query of a mask of keys."""
    mask = np.random.default_rng(1).random(shape) < 0.6
    mask[0, :, -1] = False
    return jnp.asarray(mask)


def bias_of(shape):
    return jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)


def value_and_grads(attention, query, key, value, mask, bias):
    """What `attention` gives, and every gradient of it times a fixed cotangent."""

    def total(query, key, value, bias):
        mixed = attention(query, key, value, mask, bias)
        cotangent = jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
        return (mixed.astype(jnp.float32) * cotangent).sum(), mixed

    wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    run = jax.jit(jax.grad(total, wanted, has_aux=True))
    grads, mixed = run(query, key, value, bias)
    return [mixed, *grads]


# t, s, mask, bias, chunk sizes: one chunk, several of either, of both; some divide, some do not.
CASES = {
    "defaults": (37, 53, None, None, None),
    "dividing": (16, 24, None, None, (8, 8)),
    "odd": (13, 21, None, None, (8, 8)),
    "one row of keys": (13, 21, (B, 1, 1, 21), None, (4, 32)),
    "one chunk of queries": (5, 21, (B, 1, 5, 21), None, (8, 8)),
    "keys masked": (13, 21, (B, 1, 1, 21), None, (8, 8)),
    "queries masked": (13, 21, (B, 1, 13, 21), (1, H, 13, 21), (8, 8)),
    "heads masked": (13, 21, (B, H, 13, 21), (B, 1, 13, 21), (8, 32)),
    "mask shared": (16, 24, (1, 1, 16, 24), (1, 1, 16, 24), (8, 8)),
    "bias of each": (13, 21, None, (B, H, 13, 21), (8, 8)),
    "one query": (1, 21, (B, 1, 1, 21), (1, H, 1, 21), (8, 8)),
    "one key": (13, 1, (B, 1, 13, 1), (1, H, 13, 1), (8, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_einsum_with_gradients(case):
    t, s, mask, bias, sizes = CASES[case]
    mask = None if mask is None else random_mask(mask)
    bias = None if bias is None else bias_of(bias)
    chunked = functools.partial(chunked_attention, chunk_sizes=sizes)
    found = value_and_grads(chunked, *inputs(t, s), mask, bias)
    expected = value_and_grads(einsum_attention, *inputs(t, s), mask, bias)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == plain.dtype and ours.shape == plain.shape
        np.testing.assert_allclose(ours, plain, atol=3e-6)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 32)])
def test_half_precision_is_as_near_to_the_truth_as_the_whole_matrix(sizes):
    mask, bias = random_mask((B, 1, 13, 21)), bias_of((1, H, 13, 21))
    half = [x.astype(jnp.bfloat16) for x in inputs(13, 21)]
    exact = [x.astype(jnp.float32) for x in half]
    truth = value_and_grads(einsum_attention, *exact, mask, bias)
    plain = value_and_grads(einsum_attention, *half, mask, bias)
    found = value_and_grads(
        functools.partial(chunked_attention, chunk_sizes=sizes), *half, mask, bias
    )
    for ours, other, true in zip(found, plain, truth, strict=True):
        assert ours.dtype == other.dtype

        def off(x, true=true):
            return float(jnp.abs(x.astype(jnp.float32) - true).max())

        assert off(ours) < max(1.5 * off(other), 0.02 * float(jnp.abs(true).max()))


@pytest.mark.parametrize("sizes", [(8, 8), (4, 32)])
def test_rows_that_may_use_nothing_are_zero_and_pass_no_gradient(sizes):
    query, key, value = inputs(13, 21)
    mask = random_mask((B, 1, 13, 21)).at[1].set(False)

    def run(query, key, value):
        mixed = chunked_attention(query, key, value, mask, chunk_sizes=sizes)
        return (mixed * jnp.cos(mixed)).sum(), mixed

    gradients = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))
    (grad_query, *others), mixed = gradients(query, key, value)
    assert (mixed[0, -1] == 0).all() and (mixed[1] == 0).all() and (mixed[0, 0] != 0).all()
    assert (grad_query[0, -1] == 0).all() and (grad_query[0, 0] != 0).any()
    for grad in (grad_query, *others):
        assert (grad[1] == 0).all() and (grad[0] != 0).any()


@pytest.mark.parametrize("sizes", [(8, 8), (8, 64)])
def test_large_logits_keep_their_digits(sizes):
    """Softmax of logits near 1e4, whose log-sum-exp in float32 is right to 5e-4 only."""
    query, key, value = inputs(13, 40)
    bias = jnp.full((1, 1, 13, 40), 1e4).at[0, 0, 0, 0].add(1.0)
    found = value_and_grads(
        functools.partial(chunked_attention, chunk_sizes=sizes),
        query * 1e-3, key, value, None, bias,
    )  # fmt: skip
    expected = value_and_grads(einsum_attention, query * 1e-3, key, value, None, bias)
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-6 * float(jnp.abs(plain).max()) + 1e-9)


def test_default_chunks_are_multiples_of_the_lanes_and_pad_little():
    for length in (1, 100, 197, 577, 901, 1297, 2048, 2049, 4097, 9000):
        queries, keys = default_chunk_sizes(length, length)
        assert queries % 128 == keys % 128 == 0 and keys <= 2048 and queries * keys <= 2**19
        tiles = -(-length // 128) * 128
        assert max(-(-length // size) * size for size in (queries, keys)) <= 1.25 * tiles


@pytest.mark.optimized
def test_memory_is_linear_in_the_length():
    """Temporaries of the gradient's program, one example of two heads, in bytes."""

    def temporaries(attention, length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 32), jnp.float32)

        def total(query, key, value):
            return (attention(query, key, value) ** 2).sum()

        program = jax.jit(jax.grad(total, (0, 1, 2))).lower(shape, shape, shape).compile()
        return program.memory_analysis().temp_size_in_bytes

    einsum = functools.partial(attend, implementation="einsum")
    chunked = functools.partial(attend, implementation="chunked")
    matrix = 2 * 2048 * 2048 * 4
    assert temporaries(einsum, 2048) > matrix
    assert temporaries(chunked, 2048) < matrix / 3
    assert temporaries(chunked, 8192) < 6 * temporaries(chunked, 2048)


def dropped_matrix(attention, t, s):
    """The weights [b h t s] after dropout: what mixes an identity as value."""
    query, key, _ = inputs(t, s)
    query = jnp.pad(query, ((0, 0),) * 3 + ((0, s - K),)) * (s / K) ** 0.5  # same scaled logits
    key = jnp.pad(key, ((0, 0),) * 3 + ((0, s - K),))
    identity = jnp.broadcast_to(jnp.eye(s)[None, :, None, :], (B, s, H, s))
    return attention(query, key, identity).swapaxes(1, 2)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 32), (16, 8)])
def test_dropout_is_the_same_forward_and_backward(sizes):
    """Gradients equal those of explicit weights, under the mask that the forward pass drew."""
    t, s, rate = 13, 21, 0.3
    dropout = functools.partial(
        chunked_attention, dropout_rate=rate, dropout_key=jax.random.key(7), chunk_sizes=sizes
    )
    kept = dropped_matrix(dropout, t, s) != 0
    mask, bias = random_mask((B, 1, t, s)), bias_of((1, H, t, s))

    def explicit(query, key, value, mask, bias):
        logits = jnp.einsum("bthk,bshk->bhts", query, key) / K**0.5 + bias
        weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
        weights = jnp.where(mask & kept, weights / (1 - rate), 0.0)
        return jnp.einsum("bhts,bshk->bthk", weights, value)

    found = value_and_grads(dropout, *inputs(t, s), mask, bias)
    expected = value_and_grads(explicit, *inputs(t, s), mask, bias)
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=5e-6)


def test_dropout_keeps_its_share_and_its_expectation():
    t, s, rate = 13, 21, 0.3
    sizes = (8, 8)
    whole = dropped_matrix(functools.partial(chunked_attention, chunk_sizes=sizes), t, s)

    @jax.jit
    def drawn(key):
        dropout = functools.partial(
            chunked_attention, dropout_rate=rate, dropout_key=key, chunk_sizes=sizes
        )
        return dropped_matrix(dropout, t, s)

    draws = [drawn(key) for key in jax.random.split(jax.random.key(0), 60)]
    kept = jnp.stack([draw != 0 for draw in draws])
    np.testing.assert_allclose(kept.mean(), 1 - rate, atol=0.01)
    np.testing.assert_allclose(jnp.stack(draws).mean(0), whole, atol=0.25 * float(whole.max()))
    # No two chunks, heads or examples share a draw.
    first = np.asarray(kept[0])
    tiles = [first[b, h, i : i + 5, j : j + 5].tobytes()
             for b in range(B) for h in range(H) for i in (0, 8) for j in (0, 8, 16)]  # fmt: skip
    assert len(set(tiles)) == len(tiles)


@pytest.mark.optimized
@pytest.mark.parametrize(("sizes", "rate"), [((8, 8), 0.3), ((8, 32), 0.0)])
def test_on_a_mesh_nothing_gathers_the_batch(sizes, rate):
    """Batch over four devices, heads over two; only the gradient of the bias is summed."""
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    rng = np.random.default_rng(0)
    shapes = [(8, 13, 4, K), (8, 21, 4, K), (8, 21, 4, K)]
    whole = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    mask = jnp.asarray(rng.random((8, 1, 1, 21)) < 0.7)
    bias = bias_of((1, 4, 13, 21))
    dropout = functools.partial(
        chunked_attention, dropout_rate=rate, dropout_key=jax.random.key(3), chunk_sizes=sizes
    )

    def run(query, key, value, mask, bias):
        return value_and_grads(dropout, query, key, value, mask, bias)

    expected = jax.jit(run)(*whole, mask, bias)
    parts = jax.device_put(whole, split)
    mask = jax.device_put(mask, NamedSharding(mesh, PartitionSpec("data")))
    bias = jax.device_put(bias, NamedSharding(mesh, PartitionSpec(None, "tensor")))
    program = jax.jit(run).lower(*parts, mask, bias).compile()
    text = program.as_text()
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert f"{kind}(" not in text and f"{kind}-start(" not in text
    assert "all-reduce" in text
    assert "f32[8,4,8" not in text, "a device holds a chunk of the whole batch"
    for ours, plain in zip(program(*parts, mask, bias), expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)
