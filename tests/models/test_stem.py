"""The convolutional stem: grids, what a token sees, both forms of its convolutions, meshes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmflax.errors import MmflaxError
from mmflax.models.encoders import vit
from mmflax.models.layers import product
from mmflax.models.layers.conv import GroupNorm
from tests.models.on_mesh import same_tokens

SIZES = dict(width=16, depth=1, num_heads=2, stem="conv")


def pixels(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# patch_size: strides, widths of the convolutions before `width`, sides of their kernels
STRIDES = {
    1: ((1,), (), (3,)),
    2: ((2,), (), (3,)),
    3: ((3,), (), (3,)),
    4: ((2, 2), (8,), (3, 3)),
    7: ((7,), (), (7,)),
    8: ((2, 2, 2), (4, 8), (3, 3, 3)),
    12: ((2, 2, 3), (4, 8), (3, 3, 3)),
    14: ((2, 7), (8,), (3, 7)),
    16: ((2, 2, 2, 2), (2, 4, 8), (3, 3, 3, 3)),
}


@pytest.mark.parametrize("patch_size", STRIDES)
def test_any_patch_size_gives_its_grid(patch_size):
    strides, widths, sides = STRIDES[patch_size]
    assert vit.factors(patch_size) == strides
    model = vit.build(image_size=(3 * patch_size, 2 * patch_size), patch_size=patch_size, **SIZES)
    image = pixels(1, 3 * patch_size, 2 * patch_size, 3)
    tokens, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=False)
    )
    assert tokens.shape == (1, 7, 16) and model.grid() == (3, 2)
    params = variables["params"]["conv_stem"]
    kernels = [params[f"conv_{i}"]["kernel"].shape for i in range(len(strides))]
    inputs = (3, *widths)
    expected = zip(sides, inputs, (*widths, 16), strict=True)
    assert kernels == [(side, side, before, after) for side, before, after in expected]
    assert params["projection"]["kernel"].shape == (16, 16)


def test_the_group_norm_is_flaxs():
    x = 3.0 + 2.0 * pixels(2, 5, 4, 12)
    for groups, want in ((4, 4), (8, 6)):  # 12 channels do not divide into 8 groups
        ours = GroupNorm(groups=groups)
        params = ours.init(jax.random.key(0), x)
        params = jax.tree.map(lambda leaf: leaf + jnp.arange(12.0), params)

        def both(x, module, params=params):
            return module.apply(params, x), jax.grad(
                lambda x: jnp.sin(module.apply(params, x)).sum()
            )(x)

        for found, theirs in zip(both(x, ours), both(x, nn.GroupNorm(want)), strict=True):
            np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-4)


def test_a_stem_with_group_norm_has_the_same_parameters():
    image = pixels(1, 16, 16, 3)
    layer, group = (
        vit.build(image_size=16, patch_size=8, stem_norm=norm, **SIZES)
        for norm in ("layer", "group")
    )
    params = layer.init(jax.random.key(0), image, train=False)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, group.init(jax.random.key(0), image, train=False)
    )
    one, other = (model.apply(params, image, train=False) for model in (layer, group))
    assert jnp.abs(one - other).max() > 1e-3
    with pytest.raises(MmflaxError, match="stem_norm is 'batch'.*layer, group"):
        vit.build(image_size=16, patch_size=8, stem_norm="batch", **SIZES).init(
            jax.random.key(0), image, train=False
        )


@pytest.mark.parametrize(("patch_size", "before"), [(1, 1), (4, 3), (6, 1)])
def test_a_token_sees_its_patch_and_the_edges_of_those_beside(patch_size, before):
    """Padding of 1 and stride 2 reach 1, 3 … pixels back, and never beyond the patch's end."""
    side = 3 * patch_size
    module = vit.ConvStem(width=8, patch_size=patch_size)
    image = pixels(1, side, side, 3)
    params = jax.jit(module.init)(jax.random.key(0), image)

    def middle(image):
        # Squares, for the sum of what a layer norm gives does not move.
        return jnp.square(module.apply(params, image)[0, 1, 1]).sum()

    seen = np.asarray((jax.jit(jax.grad(middle))(image)[0] != 0).any(-1))
    after = 1 if patch_size == 1 else 0  # nothing is skipped there, so both sides are seen
    expected = np.zeros((side, side), bool)
    part = slice(patch_size - before, 2 * patch_size + after)
    expected[part, part] = True
    # A ReLU may hide a pixel in all channels, so inside it is counted; outside nothing is seen.
    assert not seen[~expected].any() and seen[expected].mean() > 0.8
    assert seen[part.start].any() and seen[part.stop - 1].any()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "margin"),
    [
        ((8, 12), 3, 2, (1, 0)),
        ((5, 6), 3, 1, (1, 1)),
        ((9, 7), 3, 3, (0, 0)),
        ((10, 11), 2, 3, (1, 1)),
    ],
)
def test_the_product_form_is_the_convolution(size, kernel, stride, margin):
    x, weights = pixels(2, *size, 4), pixels(kernel, kernel, 4, 6, seed=1)
    numbers = ("NHWC", "HWIO", "NHWC")

    def library(x, weights):
        return jax.lax.conv_general_dilated(
            x, weights, (stride, stride), (margin, margin), dimension_numbers=numbers
        )

    def ours(x, weights):
        return product.product_form(x, weights, (stride, stride), (margin, margin))

    @jax.jit
    def both(x, weights):
        expected, back = jax.vjp(library, x, weights)
        found, ours_back = jax.vjp(ours, x, weights)
        grad = jnp.cos(7 * expected)  # any other numbers
        return (found, *ours_back(grad)), (expected, *back(grad))

    for one, other in zip(*both(x, weights), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_other_backends_take_the_convolution_with_the_same_numbers(monkeypatch):
    module, image = vit.ConvStem(width=16, patch_size=6), pixels(2, 12, 18, 3)
    params = jax.jit(module.init)(jax.random.key(0), image)
    found = jax.jit(module.apply)(params, image)
    monkeypatch.setattr(product, "platform", lambda: "gpu")
    other = jax.jit(lambda params, image: module.apply(params, image))
    assert str(other.trace(params, image).jaxpr).count("conv_general_dilated[") == 2
    np.testing.assert_allclose(other(params, image), found, rtol=1e-5, atol=1e-5)


def test_what_is_left_over_is_refused_or_not_seen():
    image = pixels(1, 18, 17, 3)
    with pytest.raises(MmflaxError, match="18x17 does not divide into patches of 8"):
        vit.build(image_size=(18, 17), patch_size=8, **SIZES).grid()
    model = vit.build(
        image_size=(18, 17), patch_size=8, crop=True, any_size=True, **SIZES | dict(depth=0)
    )
    run = jax.jit(lambda params, image: model.apply(params, image, train=False))
    params = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()
    tokens = run(params, image)
    assert tokens.shape == (1, 5, 16)
    np.testing.assert_array_equal(tokens, run(params, image.at[:, 16:].add(1.0)))
    np.testing.assert_allclose(tokens, run(params, image[:, :16, :16]), atol=1e-6)
    table = params["params"]["position_embedding"]
    assert model.resize_table(table, (2, 2)).shape == table.shape
    assert run(params, pixels(1, 24, 16, 3)).shape == (1, 7, 16)


def test_the_stem_is_chosen_by_name():
    fields = dict(image_size=16, patch_size=8, **SIZES | dict(stem="cnn"))
    with pytest.raises(MmflaxError, match="stem is 'cnn'; expected one of patch, conv, resnet"):
        jax.eval_shape(
            lambda: vit.build(**fields).init(jax.random.key(0), pixels(1, 16, 16, 3), train=False)
        )


def test_half_precision_is_close_and_has_gradients():
    image = pixels(2, 16, 16, 3)
    exact = vit.ConvStem(width=16, patch_size=4)
    half = vit.ConvStem(width=16, patch_size=4, dtype="bfloat16", param_dtype="bfloat16")
    params = jax.jit(half.init)(jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}

    @jax.jit
    def run(params):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        expected = exact.apply(wide, image)
        grads = jax.grad(lambda p: jnp.square(half.apply(p, image)).sum(dtype=jnp.float32))(params)
        return half.apply(params, image), expected, grads

    found, expected, grads = run(params)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.1)
    for leaf in jax.tree.leaves(grads):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any()


def test_on_a_mesh_the_tokens_are_those_of_one_device():
    model = vit.build(image_size=16, patch_size=4, scan_layers=True, **SIZES | dict(num_heads=4))
    image = pixels(8, 16, 16, 3)
    specs = same_tokens(model, image, atol=2e-5)
    assert specs["conv_stem"]["projection"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert specs["conv_stem"]["conv_0"]["kernel"].spec == PartitionSpec()
