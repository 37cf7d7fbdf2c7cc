"""The encoders of CLIP, SigLIP and ALIGN: what they see, what they pool, what stays frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.encoders import clip_text, clip_vision, efficientnet, siglip_text, vit
from mmflax.models.encoders.positions import resize_positions
from mmflax.models.vision_language import read_encoder

SMALL = dict(width=16, depth=2, num_heads=4, mlp_dim=32)
TEXT = dict(SMALL, vocab_size=30, max_length=8)
IMAGE = dict(SMALL, image_size=8, patch_size=4)


def reach(zoo, model, tokens, mask):
    """[t t]: how much the output at one place moves with the word at another, by gradients."""
    params = zoo.params(model, tokens, mask, train=False)

    def total(table, place):
        changed = {**params, "position_embedding": {"embedding": table}}
        return model.apply({"params": changed}, tokens, mask, train=False)[0, place].sum()

    table = params["position_embedding"]["embedding"]
    grads = jax.jit(jax.vmap(jax.grad(total), (None, 0)))(table, jnp.arange(tokens.shape[1]))
    return np.abs(grads).sum(-1)[:, : tokens.shape[1]]


def test_clip_reads_backwards_only_and_siglip_both_ways(zoo):
    tokens = zoo.inputs()["tokens"][:1]
    mask = jnp.arange(6)[None] < 4
    causal = reach(zoo, clip_text.build(**TEXT), tokens, mask) > 0
    np.testing.assert_array_equal(causal[:4], np.tril(np.ones((4, 6), bool)))
    assert (reach(zoo, siglip_text.build(**TEXT), tokens, mask)[:4, :4] > 0).all()


def test_the_end_of_a_text_stands_for_it():
    vectors = jnp.arange(10.0).reshape(2, 5, 1)
    tokens = jnp.array([[1, 9, 3, 9, 2], [1, 2, 7, 7, 29]])
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)

    def pool(**fields):
        model = clip_text.build(**TEXT, **fields)
        return model.apply({}, vectors, tokens, mask, method="pool")[:, 0].tolist()

    assert pool() == [1.0, 7.0]  # the highest, first of equals, not what padding holds
    assert pool(end_token=7) == [0.0, 7.0]
    assert pool(end_token=9)[0] == 1.0
    assert pool(pooling="last") == [4.0, 9.0]


def test_text_layers_go_through_the_last_norm(zoo):
    model, inputs = clip_text.build(**TEXT), zoo.inputs()
    params = zoo.params(model, inputs["tokens"], inputs["text_mask"], train=False)
    tokens = zoo.run(model, params, inputs["tokens"], inputs["text_mask"], train=False)
    again, layers = zoo.run(
        model, params, inputs["tokens"], inputs["text_mask"], layers=2, train=False
    )
    assert len(layers) == 2
    np.testing.assert_array_equal(again, tokens)
    np.testing.assert_array_equal(layers[1], tokens)


def test_sizes():
    assert clip_text.build(variant="L", vocab_size=9).layer.mlp_dim == 3072
    assert siglip_text.build(variant="B", vocab_size=9).max_length == 64
    clip = clip_vision.build(variant="B/32", image_size=224)
    assert (clip.width, clip.layer.activation, clip.layer.epsilon) == (768, "quick_gelu", 1e-5)
    with pytest.raises(MmflaxError, match=r"variant=B\), or also width"):
        clip_text.build(vocab_size=9)
    with pytest.raises(MmflaxError, match=r"variant=B0\), or also width_factor"):
        efficientnet.build()


def test_images_of_any_size(zoo):
    model = vit.build(**IMAGE, any_size=True)
    image = zoo.inputs()["image"]
    params = zoo.params(model, image, train=False)
    wide = jnp.concatenate([image, image[:, :, :4]], axis=2)
    assert zoo.run(model, params, wide, train=False).shape == (3, 7, 16)
    fixed = zoo.run(vit.build(**IMAGE), params, image, train=False)
    np.testing.assert_array_equal(zoo.run(model, params, image, train=False), fixed)


def test_positions_are_resampled_as_torch_does():
    expected = [-0.2528816, 0.2829862, 0.8188536, 0.8697919, 1.75, 2.6302083, 1.992465, 3.2170138]
    table = jnp.array([5.0, 0.0, 1.0, 2.0, 4.0])[:, None]
    found = resize_positions(table, (2, 2), (3, 3))[:, 0]
    np.testing.assert_allclose(found, [5.0, *expected, 4.4415627], rtol=1e-5)
    assert resize_positions(table, (2, 2), (2, 2)) is table


def test_cropped_pixels_are_not_seen(zoo):
    model = vit.build(**{**IMAGE, "image_size": 10}, crop=True)
    image = jnp.pad(zoo.inputs()["image"], ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=3.0)
    params = zoo.params(model, image, train=False)
    tokens = zoo.run(model, params, image, train=False)
    assert tokens.shape[1] == model.num_tokens() == 5
    np.testing.assert_array_equal(
        zoo.run(model, params, image.at[:, 8:].set(0.0), train=False), tokens
    )


def test_layers_before_the_last_norm(zoo):
    model, image = vit.build(**IMAGE), zoo.inputs()["image"]
    params = zoo.params(model, image, train=False)
    tokens, (last,) = zoo.run(model, params, image, layers=1, norm_layers=False, train=False)
    np.testing.assert_array_equal(tokens, zoo.run(model, params, image, train=False))
    assert float(jnp.abs(last - tokens).max()) > 0.1


EFFICIENT = dict(
    width_factor=0.25, depth_factor=1.0, image_size=32, divisor=4, kernel_sizes=(3, 5),
    widths_in=(32, 16), widths=(16, 32), strides=(1, 2), repeats=(2, 2), expands=(1, 4),
)  # fmt: skip


@pytest.fixture(scope="module")
def efficient():
    model = efficientnet.build(**EFFICIENT, drop_path_rate=0.9)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    params = jax.jit(lambda: model.init(jax.random.key(0), image, train=False)["params"])()
    return model, params, image


def test_efficientnet_gives_the_tokens_it_announces(efficient, zoo):
    model, params, image = efficient
    tokens = zoo.run(model, params, image, train=False)
    assert tokens.shape == (2, model.num_tokens(), model.width) == (2, 64, 8)
    assert model.grid((37, 64)) == (9, 16)
    one = zoo.run(model, params, image[:1], train=False)
    np.testing.assert_allclose(one[0], tokens[0], rtol=1e-5, atol=1e-6)
    dropped = zoo.run(model, params, image, train=True, key=1)
    assert float(jnp.abs(dropped - tokens).max()) > 1e-3
    with pytest.raises(MmflaxError, match="EfficientNet does not give"):
        read_encoder(model, 1, image, train=False)


def test_statistics_are_frozen(efficient):
    model, params, image = efficient

    @jax.jit
    def grads(params):
        return jax.grad(lambda p: model.apply({"params": p}, image, train=False).sum())(params)

    for path, grad in jax.tree_util.tree_leaves_with_path(grads(params)):
        if path[-1].key in ("mean", "var"):
            assert not grad.any(), path
        if path[-1].key == "scale":
            assert grad.any(), path


def test_published_widths_and_depths():
    """Tan & Le 2019 scale B0's 16 blocks of up to 320 channels to B7's 55 of up to 640."""
    small, large = (efficientnet.build(variant=name) for name in ("B0", "B7"))
    assert (len(small.blocks()), small.width) == (16, 320)
    assert (len(large.blocks()), large.width) == (55, 640)
    assert small.grid() == (7, 7)
