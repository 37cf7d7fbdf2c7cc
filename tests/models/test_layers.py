"""The shared layers: norms, activations, blocks, drop-path, and what is random in training only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mmflax.errors import MmflaxError
from mmflax.models.heads import MAPHead, pool_tokens
from mmflax.models.layers.attention import masked_mean
from mmflax.models.layers.blocks import MLP, Block, DropPath, LayerNorm, MultiHeadAttention, gelu
from mmflax.models.layers.config import LayerConfig
from mmflax.models.layers.product import widening_product
from mmflax.platform import platform


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_gelu_is_the_erf_form():
    x = jnp.linspace(-5, 5, 201)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    assert jnp.abs(gelu(x) - jax.nn.gelu(x, approximate=True)).max() > 1e-4
    # Reference values of 0.5 x (1 + erf(x / sqrt 2)).
    np.testing.assert_allclose(
        gelu(jnp.asarray([-1.0, 0.5, 2.0])), [-0.15865525, 0.34573123, 1.9544997], rtol=1e-6
    )


def test_layer_norm_epsilon_and_variance():
    # A variance of 1e-8 around 10 is lost by E[x^2] - E[x]^2 and drowned by an epsilon of 1e-6.
    x = 10.0 + jnp.asarray([[1.0, -1.0, 1.0, -1.0]]) * 2.0**-13
    tight = LayerNorm(epsilon=1e-12)
    out = tight.apply(tight.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(out, [[1, -1, 1, -1]], atol=1e-3)
    loose = LayerNorm(epsilon=1e-6)
    assert jnp.abs(loose.apply(loose.init(jax.random.key(0), x), x)).max() < 0.2


def test_unknown_choices_list_the_known(zoo):
    with pytest.raises(MmflaxError, match="activation is 'elu'.*gelu, gelu_tanh, quick_gelu"):
        zoo.params(MLP(LayerConfig(2, 8, activation="elu")), jnp.ones((1, 4)))
    with pytest.raises(MmflaxError, match="norm_style is 'mid'.*pre, post"):
        zoo.params(Block(LayerConfig(2, 8, norm_style="mid")), jnp.ones((1, 2, 4)), train=False)
    with pytest.raises(MmflaxError, match="needs a context"):
        zoo.params(Block(LayerConfig(2, 8), cross_attention=True), jnp.ones((1, 2, 4)), train=False)


def test_block_parts(zoo):
    x, context = normal(2, 3, 8), normal(2, 5, 6)
    block = Block(LayerConfig(2, 16), cross_attention=True)
    params = zoo.params(block, x, None, context, train=False)
    assert set(params) == {
        *("attention", "attention_norm", "cross_attention", "cross_attention_norm"),
        *("mlp", "mlp_norm"),
    }
    plain = zoo.params(Block(LayerConfig(2, 16)), x, train=False)
    assert set(plain) == {"attention", "attention_norm", "mlp", "mlp_norm"}


def test_post_norm_ends_normalized_and_pre_norm_is_the_identity_at_zero(zoo):
    x = normal(2, 3, 8)
    zeros = jax.tree.map(jnp.zeros_like, zoo.params(Block(LayerConfig(2, 16)), x, train=False))
    pre = zoo.run(Block(LayerConfig(2, 16, norm_style="pre")), zeros, x, train=False)
    np.testing.assert_array_equal(pre, x)
    for name in ("attention_norm", "mlp_norm"):
        zeros[name]["scale"] = jnp.ones(8)
    post = zoo.run(Block(LayerConfig(2, 16, norm_style="post")), zeros, x, train=False)
    np.testing.assert_allclose(post.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(post.std(-1), 1, atol=1e-4)


def test_dropout_and_drop_path_act_in_training_only(zoo):
    x = normal(4, 3, 8)
    plain = Block(LayerConfig(2, 16))
    params = zoo.params(plain, x, train=False)
    expected = zoo.run(plain, params, x, train=False)
    for rates in ({"dropout_rate": 0.5}, {"attention_dropout_rate": 0.5}):
        block = Block(LayerConfig(2, 16, **rates))
        np.testing.assert_allclose(zoo.run(block, params, x, train=False), expected, atol=1e-6)
        train = jax.jit(
            lambda key, block=block: block.apply(
                {"params": params}, x, train=True, rngs={"dropout": key}
            )
        )
        first, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, same)
        assert (first != other).any() and jnp.abs(first - expected).max() > 1e-3
    dropped = zoo.run(plain, params, x, drop_path=0.5, train=True, key=0)
    assert jnp.abs(dropped - expected).max() > 1e-3
    kept = zoo.run(plain, params, x, drop_path=0.5, train=False)
    np.testing.assert_allclose(kept, expected, atol=1e-6)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((2000, 3))
    out = DropPath().apply({}, x, 0.25, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert (out == out[:, :1]).all()
    assert abs(float(out.mean()) - 1) < 0.05


def test_masked_mean_ignores_what_is_hidden():
    x = normal(2, 4, 3)
    mask = jnp.asarray([[True, True, False, False], [False] * 4])
    mean = masked_mean(x.at[0, 2:].set(1e6), mask)
    np.testing.assert_allclose(mean[0], x[0, :2].mean(0), rtol=1e-5)
    assert (mean[1] == 0).all()


def test_pooling(zoo):
    x, mask = normal(2, 4, 8), jnp.asarray([[True] * 4, [True, True, False, False]])
    np.testing.assert_array_equal(pool_tokens(x, mask, pool="cls"), x[:, 0])
    np.testing.assert_array_equal(pool_tokens(x, mask, pool="gap"), masked_mean(x, mask))
    with pytest.raises(MmflaxError, match="pool is 'max'.*cls or gap"):
        pool_tokens(x, pool="max")
    head = MAPHead(LayerConfig(2, 16))
    params = zoo.params(head, x, mask, train=False)
    out = zoo.run(head, params, x, mask, train=False)
    assert out.shape == (2, 8)
    shorter = zoo.run(head, params, x[1:, :2], train=False)
    np.testing.assert_allclose(out[1:], shorter, atol=1e-5)


def test_widening_product_differentiates_like_a_dense_layer():
    x, kernel, grad = normal(2, 3, 4), normal(4, 16, seed=1), normal(2, 3, 16, seed=2)
    dimensions = (((2,), (0,)), ((), ()))

    def gradients(product):
        value, pull = jax.vjp(lambda x, kernel: product(x, kernel, dimensions), x, kernel)
        return value, *pull(grad)

    for ours, plain in zip(
        gradients(widening_product), gradients(jax.lax.dot_general), strict=True
    ):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_platform_is_the_mesh_s(monkeypatch):
    assert platform() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert platform() == "tpu"
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        assert platform() == "cpu"


def test_shared_qk_init_starts_attention_as_likeness():
    """Equal kernels at the start; each module draws its own; training may part them."""
    x = jax.random.normal(jax.random.key(0), (1, 6, 16))
    kernels = {}
    for kind in ("shared", "independent"):
        layer = MultiHeadAttention(LayerConfig(2, qk_init=kind))
        params = layer.init(jax.random.key(1), x, train=False)["params"]
        kernels[kind] = params["query"]["kernel"], params["key"]["kernel"]
        _, variables = layer.apply({"params": params}, x, train=False, mutable=["intermediates"])
        (weights,) = variables["intermediates"]["attention"]
        to_itself = np.asarray(weights)[0, :, np.arange(6), np.arange(6)].mean()
        assert (to_itself > 0.3) == (kind == "shared")
    np.testing.assert_array_equal(*kernels["shared"])
    assert np.abs(kernels["independent"][0] - kernels["independent"][1]).max() > 0.01
