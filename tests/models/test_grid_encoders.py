"""Swin, ResNet and VGG: published sizes, their grids, windows that stay apart, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert, resnet, swin, vgg
from mmflax.models.fusion import merged_attention
from mmflax.models.layers.config import LayerConfig
from mmflax.models.vision_language import VisionLanguageModel, read_encoder


def count(model):
    """Parameters without the statistics of batch normalization, which nobody counts."""
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, 224, 224, 3)), train=False)
    )
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return sum(
        int(np.prod(leaf.shape)) for path, leaf in leaves if path[-1].key not in ("mean", "var")
    )


# Published totals with a classifier of 1000 classes, less that classifier (timm's for Swin,
# torchvision's for ResNet and VGG).
HIDDEN = 25088 * 4096 + 4096 * 4096 + 4096 * 1000 + 2 * 4096 + 1000
PUBLISHED = {
    ("swin", "T"): 28_288_354 - 769_000,
    ("swin", "S"): 49_606_258 - 769_000,
    ("swin", "B"): 87_768_224 - 1_025_000,
    ("swin", "L"): 196_532_476 - 1_537_000,
    ("resnet", "18"): 11_689_512 - 513_000,
    ("resnet", "34"): 21_797_672 - 513_000,
    ("resnet", "50"): 25_557_032 - 2_049_000,
    ("resnet", "101"): 44_549_160 - 2_049_000,
    ("resnet", "152"): 60_192_808 - 2_049_000,
    ("vgg", "11"): 132_863_336 - HIDDEN,
    ("vgg", "13"): 133_047_848 - HIDDEN,
    ("vgg", "16"): 138_357_544 - HIDDEN,
    ("vgg", "19"): 143_667_240 - HIDDEN,
}
MODULES = {"swin": swin, "resnet": resnet, "vgg": vgg}


@pytest.mark.parametrize(("name", "variant"), PUBLISHED)
def test_sizes_are_the_published_ones(name, variant):
    model = MODULES[name].build(variant=variant, image_size=224)
    assert count(model) == PUBLISHED[name, variant]
    assert model.grid() == (7, 7) and model.num_tokens((448, 224)) == 98


def test_batch_norm_of_vgg_adds_two_numbers_a_channel():
    both = [count(vgg.build(variant="16", image_size=224, batch_norm=b)) for b in (False, True)]
    assert both[1] - both[0] == 138_365_992 - 138_357_544


TINY = {
    "swin": dict(width=8, depths=[2, 2], num_heads=[2, 4], window_size=3, patch_size=2),
    "resnet": dict(block="bottleneck", stem=4, widths=[8, 16], depths=[1, 2]),
    "vgg": dict(widths=[[4], [8, 16]], batch_norm=True),
}


@pytest.mark.parametrize("name", TINY)
def test_tokens_of_every_size(name, zoo):
    model = MODULES[name].build(image_size=8, **TINY[name])
    params = zoo.params(model, jnp.ones((1, 8, 8, 3)), train=False)
    for size in ((8, 8), (13, 22)):
        image = jnp.ones((2, *size, 3))
        out = zoo.run(model, params, image, train=False)
        assert out.shape == (2, model.num_tokens(size), 16)
        assert model.num_tokens(size) == model.grid(size)[0] * model.grid(size)[1]


@pytest.mark.parametrize("name", TINY)
def test_they_take_the_place_of_a_vit(name, zoo):
    sizes = dict(width=16, num_heads=4, depth=1)
    model = VisionLanguageModel(
        MODULES[name].build(image_size=8, **TINY[name]),
        bert.build(vocab_size=30, max_length=16, **sizes),
        merged_attention.build(**sizes),
    )
    inputs = zoo.inputs()
    params = zoo.params(model, **inputs, train=False)
    encoded = zoo.run(model, params, **inputs, train=False)
    assert encoded.image.shape == (3, model.image_encoder.num_tokens(), 16)


def test_statistics_are_not_trained(zoo):
    model = vgg.build(image_size=8, **TINY["vgg"])
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    params = zoo.params(model, image, train=False)
    grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, image, train=True).sum()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert (path[-1].key in ("mean", "var")) == (not leaf.any()), path


def test_last_layers_of_the_last_stage(zoo):
    image = jnp.ones((1, 8, 8, 3))
    for name in ("swin", "resnet"):
        model = MODULES[name].build(image_size=8, **TINY[name])
        params = zoo.params(model, image, train=False)
        tokens, layers = zoo.run(model, params, image, layers=2, train=False)
        alone = zoo.run(model, params, image, train=False)
        np.testing.assert_allclose(tokens, alone, atol=1e-6)
        np.testing.assert_allclose(layers[-1], tokens, atol=1e-6)
        assert len(layers) == 2 and layers[0].shape == tokens.shape
        with pytest.raises(MmflaxError, match="last 3 layers were requested"):
            zoo.params(model, image, layers=3, train=False)
    with pytest.raises(MmflaxError, match="VGG does not give"):
        read_encoder(vgg.build(image_size=8, **TINY["vgg"]), 1, image, train=False)


def reach(shift, zoo):
    """Which tokens of a 6 x 6 grid token 7 changes, in windows of 2."""
    module = swin.WindowAttention(LayerConfig(1), (6, 6), window=2, shift=shift)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 36, 4)), jnp.float32)
    params = zoo.params(module, x, train=False)
    before = zoo.run(module, params, x, train=False)
    after = zoo.run(module, params, x.at[0, 7].add(1.0), train=False)
    return set(np.flatnonzero((before != after).any((0, 2))))


def test_windows_stay_apart(zoo):
    assert reach(0, zoo) == {0, 1, 6, 7}
    assert reach(1, zoo) == {7, 8, 13, 14}


def test_a_shifted_window_does_not_reach_round_the_edge():
    allowed = swin.window_mask((6, 6), 2, 1)
    assert allowed.shape == (9, 4, 4)
    np.testing.assert_array_equal(allowed.all((1, 2)), [1, 1, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(allowed[8], np.eye(4))


def test_remat_changes_nothing_and_paths_drop(zoo):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    plain = swin.build(image_size=8, **TINY["swin"], drop_path_rate=0.5)
    params = zoo.params(plain, image, train=False)
    out = zoo.run(plain, params, image, train=False)
    remat = swin.build(image_size=8, **TINY["swin"], remat="full")
    np.testing.assert_allclose(zoo.run(remat, params, image, train=False), out, atol=1e-6)
    assert (zoo.run(plain, params, image, key=1, train=True) != out).any()


def test_errors_name_what_is_missing():
    with pytest.raises(MmflaxError, match=r"variant=B\), or also depths, num_heads"):
        swin.build(image_size=8, width=8)
    with pytest.raises(MmflaxError, match="2 stages by depths and 1 by num_heads"):
        swin.build(image_size=8, width=8, depths=(1, 1), num_heads=(1,))
    with pytest.raises(MmflaxError, match=r"variant=50\), or also depths"):
        resnet.build(image_size=8, block="basic")
    with pytest.raises(MmflaxError, match="VGG variant is '12'.*11, 13, 16, 19"):
        vgg.build(image_size=8, variant="12")
