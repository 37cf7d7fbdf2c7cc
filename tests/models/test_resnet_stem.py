"""The hybrid's ResNet stem: grids, the published sizes, standardized kernels, options, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmflax.errors import MmflaxError
from mmflax.models.encoders import vit
from mmflax.models.encoders.resnet_stem import ResNetStem
from mmflax.models.layers.conv import standardized_conv
from tests.models.on_mesh import same_tokens

SIZES = dict(width=16, depth=1, num_heads=4, stem="resnet", stem_width=8)


def pixels(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes_of(model, *image):
    tokens, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), pixels(*image), train=False)
    )
    return tokens.shape, variables["params"]


# patch_size, stem_depths: blocks of the stages, side of the projection's kernel
STAGES = {
    (4, None): ((3,), 1),
    (8, None): ((3, 4), 1),
    (16, None): ((3, 4, 9), 1),
    (32, None): ((3, 4, 6, 3), 1),
    (8, (1, 2)): ((1, 2), 1),
    (12, (2,)): ((2,), 3),
    (32, (1, 1, 1)): ((1, 1, 1), 2),
}


@pytest.mark.parametrize(("patch_size", "given"), STAGES)
def test_stages_follow_the_patch_size(patch_size, given):
    depths, side = STAGES[patch_size, given]
    size = (3 * patch_size, 2 * patch_size)
    model = vit.build(image_size=size, patch_size=patch_size, stem_depths=given, **SIZES)
    tokens, params = shapes_of(model, 1, *size, 3)
    assert tokens == (1, 7, 16) and model.grid() == (3, 2)
    stem = params["resnet_stem"]
    blocks = {name for name in stem if name.startswith("stage_")}
    expected = [(stage, i) for stage, depth in enumerate(depths) for i in range(depth)]
    assert blocks == {f"stage_{stage}_block_{i}" for stage, i in expected}
    before = 8
    for stage, i in expected:
        width = 32 * 2**stage
        block = stem[f"stage_{stage}_block_{i}"]
        kernels = [block[f"conv_{j}"]["kernel"].shape for j in range(3)]
        inner = width // 4
        assert kernels == [(1, 1, before, inner), (3, 3, inner, inner), (1, 1, inner, width)]
        assert ("conv_shortcut" in block) == (i == 0)
        before = width
    assert stem["patch_embedding"]["kernel"].shape == (side, side, before, 16)


def test_the_published_sizes():
    """R50+ViT-B/16 at 384 pixels has 98.95 million parameters, its 1000 classes among them."""
    model = vit.build(variant="B/16", image_size=384, stem="resnet")
    tokens, params = shapes_of(model, 1, 384, 384, 3)
    assert tokens == (1, 577, 768)
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) + 768 * 1000 + 1000
    assert round(count / 1e6, 2) == 98.95


def test_a_kernel_counts_only_up_to_its_scale_and_mean():
    x, conv = pixels(2, 7, 6, 5), standardized_conv(4, 3, 2, {}, "conv")
    params = conv.init(jax.random.key(0), x)
    kernel = params["params"]["kernel"]

    @jax.jit
    def run(kernel):
        return conv.apply({"params": {"kernel": kernel}}, x)

    found = run(kernel)
    assert found.shape == (2, 4, 3, 4)
    other = 7.0 * kernel + pixels(1, 1, 1, 4)
    np.testing.assert_allclose(run(other), found, atol=1e-4)
    plain = (kernel - kernel.mean((0, 1, 2))[None, None, None]) / kernel.std((0, 1, 2))[
        None, None, None
    ]
    expected = jax.lax.conv_general_dilated(
        x, plain, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


OPTIONS = {
    "plain": (dict(), 5),
    "no cls": (dict(cls_token=False, position="sincos2d"), 4),
    "rotary, registers": (dict(position="rope2d", registers=3), 5),
    "two first tokens": (dict(distillation_token=True, patch_bias=False), 6),
    "scanned": (dict(scan_layers=True, remat="full", pre_norm=True), 5),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_works_with_the_other_options(name):
    fields, tokens = OPTIONS[name]
    model = vit.build(image_size=16, patch_size=8, stem_depths=(1, 1), **SIZES | fields)
    image = pixels(2, 16, 16, 3)
    params = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()

    @jax.jit
    def run(params):
        found = model.apply(params, image, train=False)
        return jnp.square(found).mean() + found[:, :, 0].sum(), found

    (_, found), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    assert found.shape == (2, tokens, 16) == (2, model.num_tokens(), 16)
    stem = grads["params"]["resnet_stem"]
    assert ("bias" in stem["patch_embedding"]) == fields.get("patch_bias", True)
    for leaf in jax.tree.leaves(stem):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any()


def test_what_is_left_over_is_refused_or_not_seen():
    fields = dict(image_size=(18, 17), patch_size=8, stem_depths=(1, 1), **SIZES)
    with pytest.raises(MmflaxError, match="18x17 does not divide into patches of 8"):
        vit.build(**fields).grid()
    model = vit.build(**fields, crop=True, any_size=True)
    image = pixels(1, 18, 17, 3)
    run = jax.jit(lambda params, image: model.apply(params, image, train=False))
    params = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()
    tokens = run(params, image)
    assert tokens.shape == (1, 5, 16)
    np.testing.assert_array_equal(tokens, run(params, image.at[:, 16:].add(1.0)))
    assert run(params, pixels(1, 24, 16, 3)).shape == (1, 7, 16)


WRONG = {
    "no stages for these patches": (
        dict(patch_size=12),
        "patch_size is 12, .*one of 4, 8, 16, 32: give --config.model.image_encoder.patch_size=8",
    ),
    "too many stages": (
        dict(patch_size=8, stem_depths=(3, 4, 9)),
        "patch_size is 8, but the stem's 3 stages .*multiple of 16: give .*patch_size=16",
    ),
    "a stage without a block": (
        dict(patch_size=8, stem_depths=(3, 0)),
        r"stem_depths is \(3, 0\); expected the number of blocks",
    ),
    "no stage": (dict(patch_size=8, stem_depths=()), r"stem_depths is \(\)"),
    "no channels": (dict(patch_size=8, stem_width=0), "stem_width is 0; expected at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_sizes_that_do_not_fit_are_one_sentence(name):
    fields, match = WRONG[name]
    with pytest.raises(MmflaxError, match=match) as error:
        vit.build(image_size=48, **SIZES | fields)
    assert "\n" not in str(error.value) and ". " not in str(error.value)


def test_half_precision_is_close_and_has_gradients():
    image = pixels(2, 16, 16, 3)
    fields = dict(width=16, patch_size=4, depths=(1,), stem=8)
    exact = ResNetStem(**fields)
    half = ResNetStem(**fields, dtype="bfloat16", param_dtype="bfloat16")
    params = jax.jit(half.init)(jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}

    @jax.jit
    def run(params):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        grads = jax.grad(lambda p: jnp.square(half.apply(p, image)).sum(dtype=jnp.float32))(params)
        return half.apply(params, image), exact.apply(wide, image), grads

    found, expected, grads = run(params)
    assert found.dtype == jnp.bfloat16
    error = jnp.abs(found.astype(jnp.float32) - expected)
    assert error.mean() < 0.03 * jnp.abs(expected).mean()
    for leaf in jax.tree.leaves(grads):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any()


def test_on_a_mesh_the_tokens_are_those_of_one_device():
    model = vit.build(image_size=16, patch_size=8, stem_depths=(1, 1), scan_layers=True, **SIZES)
    image = pixels(8, 16, 16, 3)
    specs = same_tokens(model, image, atol=5e-5)
    stem = specs["resnet_stem"]
    assert stem["patch_embedding"]["kernel"].spec == PartitionSpec(None, None, None, "fsdp")
    assert stem["stage_0_block_0"]["conv_shortcut"]["kernel"].spec == PartitionSpec()
