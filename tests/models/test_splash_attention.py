"""The kernel for TPUs, run as JAX operations: values and gradients, on one device and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.distributed.mesh import activation_rules, make_mesh
from mmflax.errors import MmflaxError
from mmflax.models.layers.attention import attend, einsum_attention
from mmflax.models.layers.splash_attention import check_splash, splash_attention


def inputs(b, t, s, h, k):
    rng = np.random.default_rng(0)
    shapes = [(b, t, h, k), (b, s, h, k), (b, s, h, k)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def value_and_grads(attention, query, key, value, mask):
    def total(query, key, value):
        mixed = attention(query, key, value, mask)
        cotangent = jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
        return (mixed * cotangent).sum(), mixed

    grads, mixed = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(query, key, value)
    return [mixed, *grads]


interpreted = functools.partial(splash_attention, interpret=True)


@pytest.mark.optimized
@pytest.mark.parametrize("masked", [False, True])
def test_equals_einsum_with_gradients(masked):
    """Lengths that no block divides; example 1 may use nothing."""
    query, key, value = inputs(2, 130, 300, 2, 64)
    mask = jnp.asarray(np.random.default_rng(1).random((2, 1, 1, 300)) < 0.5).at[1].set(False)
    mask = mask if masked else None
    found = value_and_grads(interpreted, query, key, value, mask)
    expected = value_and_grads(einsum_attention, query, key, value, mask)
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=3e-6)
        assert not masked or (ours[1] == 0).all()


@pytest.mark.optimized
@pytest.mark.parametrize("rows", [4, 3])
def test_each_device_computes_its_own_examples_and_heads(rows):
    """Over 2x2 for examples, where their number divides, and 2 for heads."""
    query, key, value = inputs(rows, 20, 40, 2, 64)
    mask = jnp.asarray(np.random.default_rng(1).random((rows, 1, 1, 40)) < 0.5)
    expected = value_and_grads(einsum_attention, query, key, value, mask)
    traced = []

    def recorded(query, key, value, mask):
        mixed = interpreted(query, key, value, mask)
        traced.append(str(jax.make_jaxpr(interpreted)(query, key, value, mask)))
        return mixed

    with activation_rules(make_mesh(2, 2, 2)):
        found = value_and_grads(recorded, query, key, value, mask)
    examples = 1 if rows == 4 else 3
    assert "shard_map" in traced[0] and f"f32[{examples},1,128,64]" in traced[0]
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=3e-6)


def test_what_the_kernel_does_not_take_is_one_sentence():
    mask, query_mask = jnp.ones((2, 1, 1, 7), bool), jnp.ones((2, 1, 5, 7), bool)
    check_splash(mask, None, "tpu")
    with pytest.raises(MmflaxError, match="runs on TPUs, not on 'cpu'"):
        attend(*inputs(2, 5, 7, 1, 4), implementation="splash")
    with pytest.raises(MmflaxError, match="no bias"):
        check_splash(mask, jnp.zeros((1, 1, 5, 7)), "tpu")
    with pytest.raises(MmflaxError, match=r"masks of keys.*\[2, 1, 5, 7\]"):
        check_splash(query_mask, None, "tpu")
