"""Attention: both implementations agree, empty rows give zero, what is masked has no gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.layers.attention import attend, attention_weights, choose, resolve
from mmflax.models.layers.blocks import MultiHeadAttention
from mmflax.models.layers.config import LayerConfig

B, T, S, H, K = 2, 5, 7, 3, 4


def qkv(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = [(B, T, H, K), (B, S, H, K), (B, S, H, K)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def random_mask(shape, seed=1):
    """Random, with one query of example 0 that may use nothing."""
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[..., 0] = True
    mask[0, :, -1] = False
    return jnp.asarray(mask)


MASKS = {
    "none": None,
    "keys": random_mask((B, 1, 1, S)),
    "queries": random_mask((B, 1, T, S)),
    "heads": random_mask((B, H, T, S)),
    "shared": random_mask((1, 1, T, S)),
}


BIASES = {
    name: jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    for name, shape in {"shared": (1, H, T, S), "own": (B, 1, T, S)}.items()
}


@pytest.mark.parametrize(
    ("name", "bias"), [*((name, None) for name in MASKS), ("none", "shared"), ("heads", "own")]
)
def test_einsum_equals_xla_with_gradients(name, bias):
    def value_and_grads(implementation):
        def total(query, key, value, bias):
            mixed = attend(query, key, value, MASKS[name], bias, implementation=implementation)
            cotangent = jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
            return (mixed * cotangent).sum(), mixed

        inputs = (*qkv(), BIASES.get(bias))
        argnums = tuple(range(4 if bias else 3))
        grads, mixed = jax.jit(jax.grad(total, argnums=argnums, has_aux=True))(*inputs)
        return mixed, *grads

    for ours, xla in zip(value_and_grads("einsum"), value_and_grads("xla"), strict=True):
        np.testing.assert_allclose(ours, xla, atol=2e-6)


def test_gradients_keep_their_digits_where_values_share_a_large_part():
    """Against float64; by way of `grad * mixed` the worst is 7.6e-5."""
    rng = np.random.default_rng(0)
    query, key, value, weight = rng.normal(size=(4, 2, 50, 4, 64))
    inputs = query * 5, key, value + 100

    def plain(query, key, value):
        fits = jnp.einsum("bthk,bshk->bhts", query, key) / math.sqrt(query.shape[-1])
        return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(fits), value)

    def gradients(attention, inputs, weight):
        return jax.grad(lambda *inputs: (attention(*inputs) * weight).sum(), (0, 1))(*inputs)

    einsum = functools.partial(attend, implementation="einsum")
    found = gradients(einsum, [jnp.asarray(x, jnp.float32) for x in inputs], jnp.float32(weight))
    with jax.enable_x64(True):
        exact = gradients(plain, [jnp.asarray(x) for x in inputs], jnp.asarray(weight))
        exact = [np.asarray(x) for x in exact]
    for ours, truth in zip(found, exact, strict=True):
        assert np.abs(np.asarray(ours) - truth).max() < 5e-5 * np.abs(truth).max()


def test_a_bias_chooses_the_key():
    bias = jnp.zeros((1, 1, T, S)).at[..., 3].set(1e3)
    value = qkv()[2]
    mixed = attend(*qkv(), bias=bias)
    np.testing.assert_allclose(mixed, jnp.broadcast_to(value[:, 3:4], mixed.shape), atol=1e-6)


@pytest.mark.parametrize("implementation", ["einsum", "xla", "chunked"])
def test_a_query_with_nothing_to_use_gives_zero(implementation):
    mixed = attend(*qkv(), MASKS["heads"], implementation=implementation)
    assert (mixed[0, -1] == 0).all() and (mixed[0, 0] != 0).all()


def test_weights_sum_to_one_or_to_zero():
    query, key, _ = qkv()
    weights = attention_weights(query, key, MASKS["heads"])
    expected = np.ones((B, H, T))
    expected[0, :, -1] = 0
    np.testing.assert_allclose(weights.sum(-1), expected, atol=1e-6)
    assert (weights[~MASKS["heads"]] == 0).all()


@pytest.mark.parametrize("implementation", ["einsum", "xla", "chunked"])
def test_masked_keys_and_values_get_no_gradient(implementation):
    mask = MASKS["keys"]

    def total(query, key, value):
        return (attend(query, key, value, mask, implementation=implementation) ** 2).sum()

    for grad in jax.jit(jax.grad(total, argnums=(1, 2)))(*qkv()):
        hidden = ~np.asarray(mask)[:, 0, 0]
        assert (grad[hidden] == 0).all() and (grad[~hidden] != 0).any()


def test_half_precision_keeps_its_dtype_and_is_close():
    exact = attend(*qkv(), MASKS["keys"])
    half = attend(*qkv(dtype=jnp.bfloat16), MASKS["keys"])
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.05)


def test_module_gives_zero_not_its_bias_where_nothing_may_be_used(zoo):
    x = jnp.ones((B, T, 12))
    mask = jnp.asarray([[[[False] * T]], [[[True] * T]]])
    module = MultiHeadAttention(LayerConfig(3))
    params = zoo.params(module, x, mask=mask, train=False)
    out = zoo.run(module, params, x, mask=mask, train=False)
    assert (out[0] == 0).all() and (out[1] != 0).all()


def test_sown_weights_are_those_used(zoo):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, 12)), jnp.float32)
    module = MultiHeadAttention(LayerConfig(3))
    params = zoo.params(module, x, train=False)
    out, sown = zoo.run(module, params, x, train=False, mutable=["intermediates"])
    (weights,) = sown["intermediates"]["attention"]
    value = jnp.einsum("bsd,dhk->bshk", x, params["value"]["kernel"])
    mixed = jnp.einsum("bhts,bshk->bthk", weights, value + params["value"]["bias"][None, None])
    again = jnp.einsum("bthk,hkd->btd", mixed, params["out"]["kernel"])
    np.testing.assert_allclose(again + params["out"]["bias"][None, None], out, atol=1e-5)


def test_kernels_carry_heads(zoo):
    x = jnp.ones((1, 2, 12))
    module = MultiHeadAttention(LayerConfig(3, qkv_bias=False))
    shapes = jax.tree.map(jnp.shape, zoo.params(module, x, train=False))
    assert shapes == {
        "query": {"kernel": (12, 3, 4)},
        "key": {"kernel": (12, 3, 4)},
        "value": {"kernel": (12, 3, 4)},
        "out": {"kernel": (3, 4, 12), "bias": (12,)},
    }


PLAIN = dict(has_bias=False, has_query_mask=False)


@pytest.mark.parametrize(
    ("platform", "t", "s", "more", "expected"),
    [
        ("cpu", 577, 577, PLAIN, "einsum"),
        ("cpu", 1297, 1297, PLAIN, "chunked"),
        ("cpu", 1, 100_000, PLAIN, "einsum"),
        ("tpu", 197, 577, PLAIN, "xla"),
        ("tpu", 40, 1297, PLAIN, "xla"),
        ("tpu", 577, 577, PLAIN, "splash"),
        ("tpu", 577, 577, PLAIN | dict(has_bias=True), "chunked"),
        ("tpu", 577, 577, PLAIN | dict(has_query_mask=True), "chunked"),
        ("tpu", 577, 577, PLAIN | dict(head_dim=48), "chunked"),
        ("tpu", 577, 577, PLAIN | dict(dtype="float16"), "chunked"),
        ("gpu", 512, 511, PLAIN, "xla"),
        ("gpu", 512, 512, PLAIN, "chunked"),
        ("gpu", 1297, 1297, PLAIN | dict(dtype="bfloat16"), "chunked"),
    ],
)
def test_auto_is_chosen_by_sizes_and_platform(platform, t, s, more, expected):
    more = dict(head_dim=64, dtype="float32") | more
    assert choose(platform, t, s, **more) == expected


def test_auto_asks_for_this_call_and_this_machine():
    def resolved(name, t, mask=None):
        shape = jax.ShapeDtypeStruct((1, t, 2, 64), jnp.float32)
        return jax.eval_shape(lambda x: jnp.zeros(len(resolve(name, x, x, mask))), shape).shape[0]

    assert resolved("auto", 64) == len("einsum") and resolved("auto", 1024) == len("chunked")
    assert resolved("cudnn", 64) == len("cudnn") and resolved("cudnn", 1) == len("einsum")
    assert resolved("xla", 4096) == len("xla")


def test_dropout_of_chunks_builds_no_matrix(zoo):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, 8)), jnp.float32)

    def module(implementation):
        return MultiHeadAttention(
            LayerConfig(2, attention_dropout_rate=0.2, attention_impl=implementation)
        )

    params = zoo.params(module("chunked"), x, train=False)

    def run(seed, implementation="chunked"):
        rngs = {"dropout": jax.random.key(seed)}
        return module(implementation).apply({"params": params}, x, train=True, rngs=rngs)

    def whole(implementation):
        traced = jax.make_jaxpr(functools.partial(run, implementation=implementation))(0)
        return "f32[1,2,40,40]" in str(traced)

    assert whole("einsum") and not whole("chunked")
    exact = zoo.run(module("chunked"), params, x, train=False)
    draws = jax.jit(jax.vmap(run))(jnp.asarray([0, 0, *range(1, 39)]))
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    np.testing.assert_allclose(draws.mean(axis=0), exact, atol=0.05)
    assert 0.05 < float(jnp.abs(draws[0] - exact).max())


def test_weights_are_sown_undropped_beside_dropout_in_chunks(zoo):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, 12)), jnp.float32)
    config = LayerConfig(3, attention_dropout_rate=0.5, attention_impl="chunked")
    module = MultiHeadAttention(config)
    params = zoo.params(module, x, train=False)
    more = dict(train=True, rngs={"dropout": jax.random.key(0)}, mutable=["intermediates"])
    _, sown = module.apply({"params": params}, x, **more)
    np.testing.assert_allclose(sown["intermediates"]["attention"][0].sum(-1), 1.0, atol=1e-6)


def test_errors_name_the_field_and_the_choices(zoo):
    with pytest.raises(MmflaxError, match="attention_impl.*'flash'.*auto, xla"):
        attend(*qkv(), implementation="flash")
    with pytest.raises(MmflaxError, match="width 12.*5 heads"):
        zoo.params(MultiHeadAttention(LayerConfig(5)), jnp.ones((1, 2, 12)), train=False)
