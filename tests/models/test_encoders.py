"""ViT and BERT: published sizes, positions, padding, causality, dtypes, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert, vit
from mmflax.models.encoders.positions import resize_positions, sincos2d
from mmflax.models.layers.stack import stack_layers


def count(model, *args, **kwargs):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, train=False, **kwargs))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


# Without a classification head: timm's vit_*_patch16_224 and vit_huge_patch14_224, num_classes=0.
VIT_PARAMETERS = {
    "Ti/16": 5_524_416,
    "S/16": 21_665_664,
    "B/16": 85_798_656,
    "L/16": 303_301_632,
    "H/14": 630_764_800,
}


@pytest.mark.parametrize("variant", VIT_PARAMETERS)
def test_vit_sizes_are_the_published_ones(variant):
    model = vit.build(variant=variant, image_size=224)
    assert count(model, jnp.ones((1, 224, 224, 3))) == VIT_PARAMETERS[variant]


# bert-base-uncased and bert-large-uncased with pooler; the small ones of Turc et al. 2019, table 1
# (4.4, 11.3, 29.1 and 41.7 million, stated without the pooler's share in the table's rounding).
BERT_PARAMETERS = {
    "tiny": 4.4e6,
    "mini": 11.3e6,
    "small": 29.1e6,
    "medium": 41.7e6,
    "base": 109_482_240,
    "large": 335_141_888,
}


@pytest.mark.parametrize("variant", BERT_PARAMETERS)
def test_bert_sizes_are_the_published_ones(variant):
    model = bert.build(variant=variant, vocab_size=30522)

    def encode_and_pool(module, tokens, *, train):
        return module.pool(module(tokens, train=train))

    found = count(model, jnp.ones((1, 4), jnp.int32), method=encode_and_pool)
    expected = BERT_PARAMETERS[variant]
    assert found == expected if isinstance(expected, int) else abs(found / expected - 1) < 0.015


def test_sizes_given_one_by_one_override_the_variant():
    model = vit.build(variant="B/16", image_size=224, depth=11)
    assert (model.stack.depth, model.width, model.patch_size) == (11, 768, 16)
    assert bert.build(variant="base", vocab_size=9, depth=6).stack.depth == 6
    model = vit.build(variant="B/16", image_size=224, width=384, num_heads=6)
    assert model.layer.mlp_dim == 1536


@pytest.mark.parametrize("variant", ["X/16", "B16", "B/x", "B/"])
def test_unknown_vit_variant_lists_the_sizes(variant):
    with pytest.raises(MmflaxError, match="Ti, S, B, L, H"):
        vit.decode_variant(variant)


def test_missing_sizes_are_named():
    with pytest.raises(
        MmflaxError, match=r"variant such as 'B/16' \(--.*=B/16\), or also depth, num_heads"
    ):
        vit.build(image_size=8, patch_size=4, width=8)
    with pytest.raises(MmflaxError, match="or also depth, num_heads"):
        bert.build(vocab_size=9, width=8)
    with pytest.raises(MmflaxError, match="pool is 'max'.*none, cls, gap, map"):
        vit.build(**VIT, pool="max")
    with pytest.raises(MmflaxError, match="BERT variant is 'huge'.*tiny, mini"):
        bert.build(vocab_size=9, variant="huge")


VIT = dict(image_size=8, patch_size=4, width=16, depth=1, num_heads=2)


@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_vit_tokens(zoo, cls_token, position):
    model = vit.build(**VIT, cls_token=cls_token, position=position)
    image = zoo.inputs()["image"]
    params = zoo.params(model, image, train=False)
    tokens = zoo.run(model, params, image, train=False)
    assert tokens.shape == (3, model.num_tokens(), 16)
    assert model.num_tokens() == 4 + cls_token and model.num_tokens((16, 8)) == 8 + cls_token
    assert ("position_embedding" in params) == (position == "learned")
    assert ("cls" in params) == cls_token


def test_vit_patches_are_read_row_by_row(zoo):
    """Only token 2 of 4, the second row's first patch, changes its embedding with that patch."""
    model = vit.build(**{**VIT, "depth": 0}, cls_token=False)
    image = zoo.inputs()["image"]
    params = zoo.params(model, image, train=False)
    before = zoo.run(model, params, image, train=False)
    after = zoo.run(model, params, image.at[:, 4:, :4].add(1.0), train=False)
    np.testing.assert_array_equal((before != after).any((0, 2)), [False, False, True, False])


def test_fixed_positions_are_scaled(zoo):
    """Without layers the tokens before the last norm are the patches' vectors plus the table."""
    fields = {**VIT, "depth": 0, "cls_token": False, "position": "sincos2d"}
    image = zoo.inputs()["image"]
    params = zoo.params(vit.build(**fields), image, train=False)
    params["norm"] = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    kernel = jax.tree.map(jnp.zeros_like, params["patch_embedding"])
    params["patch_embedding"] = {"kernel": kernel["kernel"], "bias": jnp.sin(jnp.arange(16.0))}
    for scale in (1.0, 3.0):
        model = vit.build(**fields, position_scale=scale)
        x = scale * sincos2d((2, 2), 16) + np.sin(np.arange(16))
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        found = zoo.run(model, params, image, train=False)
        np.testing.assert_allclose(found, np.broadcast_to(x, found.shape), rtol=1e-3, atol=1e-4)


def test_a_scale_of_positions_that_are_learned_is_refused():
    with pytest.raises(
        MmflaxError, match="position_scale is 3.0 and position is .learned.; only that of .sincos2d"
    ):
        vit.build(**VIT, position_scale=3.0)


def test_vit_refuses_other_image_sizes(zoo):
    with pytest.raises(MmflaxError, match="8x12 pixels.*8x8"):
        zoo.params(vit.build(**VIT), jnp.ones((1, 8, 12, 3)), train=False)
    with pytest.raises(MmflaxError, match="9x9 does not divide"):
        vit.build(**{**VIT, "image_size": 9}).num_tokens()


def test_resizing_positions():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(1 + 16, 8)).astype(np.float32)
    same = resize_positions(table, (4, 4), (4, 4))
    np.testing.assert_array_equal(same, table)
    wide = resize_positions(table, (4, 4), (8, 6))
    assert wide.shape == (49, 8)
    np.testing.assert_array_equal(wide[0], table[0])
    constant = resize_positions(np.ones((16, 2), np.float32), (4, 4), (7, 5), num_prefix=0)
    np.testing.assert_allclose(constant, 1, rtol=1e-6)
    # A smooth table survives a trip to a finer grid and back.
    smooth = sincos2d((8, 8), 8, temperature=4.0)[:, :] * 0 + np.sin(
        np.add.outer(np.arange(8), np.arange(8)).reshape(64, 1) / 8
    ).astype(np.float32)
    back = resize_positions(
        resize_positions(smooth, (8, 8), (16, 16), num_prefix=0), (16, 16), (8, 8), num_prefix=0
    )
    np.testing.assert_allclose(back, smooth, atol=0.02)
    # Rows stay rows: what varies down only still varies down only.
    down = np.repeat(np.arange(4, dtype=np.float32), 4)[:, None]
    tall = np.asarray(resize_positions(down, (4, 4), (8, 4), num_prefix=0)).reshape(8, 4)
    np.testing.assert_allclose(tall, tall[:, :1].repeat(4, 1), atol=1e-6)
    assert (np.diff(tall[:, 0]) > 0).all()
    with pytest.raises(MmflaxError, match="17 rows.*3x3 grid with 1 prefix rows has 10"):
        resize_positions(table, (3, 3), (4, 4))


def test_sincos_positions_tell_every_patch_apart():
    table = sincos2d((3, 5), 16)
    assert table.shape == (15, 16) and table.dtype == np.float32
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert (distance[~np.eye(15, dtype=bool)] > 0.1).all()
    np.testing.assert_array_equal(table[0, :4], 0)  # sin of x = 0
    np.testing.assert_array_equal(table[3, 8:], table[4, 8:])  # one row, one y
    with pytest.raises(MmflaxError, match="divisible by 4; found 6"):
        sincos2d((2, 2), 6)


BERT = dict(vocab_size=30, max_length=8, width=16, depth=2, num_heads=2)


@pytest.fixture(scope="module", params=["post", "pre"])
def text(zoo, request):
    model, inputs = bert.build(**BERT, norm_style=request.param), zoo.inputs()
    tokens, mask = inputs["tokens"], inputs["text_mask"]
    return model, zoo.params(model, tokens, mask, train=False), tokens, mask


@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_matters_to_text(zoo, text, causal):
    model, params, tokens, mask = text
    expected = zoo.run(model, params, tokens, mask, causal=causal, train=False)[mask]
    # 999 lies outside the vocabulary, where an embedding lookup gives NaN.
    garbage = jnp.where(mask, tokens, 999)
    longer = jnp.pad(garbage, ((0, 0), (0, 2)), constant_values=-7)
    longer_mask = jnp.pad(mask, ((0, 0), (0, 2)))
    for new_tokens, new_mask in ((garbage, mask), (longer, longer_mask)):
        found = zoo.run(model, params, new_tokens, new_mask, causal=causal, train=False)
        assert jnp.isfinite(found).all()
        np.testing.assert_allclose(found[new_mask], expected, atol=1e-5)


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (True, True)])
def test_causal_text_has_no_gradient_from_the_future(text, causal, masked):
    model, params, tokens, _ = text
    mask = jnp.ones(tokens.shape, bool) if masked else None

    def total(table):
        changed = {**params, "position_embedding": {"embedding": table}}
        # The cube, for the sum of normalized features does not move.
        return (
            model.apply({"params": changed}, tokens, mask, causal=causal, train=False)[:, 2] ** 3
        ).sum()

    grads = jax.jit(jax.grad(total))(params["position_embedding"]["embedding"])
    reached = np.asarray((grads != 0).any(-1))[: tokens.shape[1]]
    np.testing.assert_array_equal(reached, [True] * 3 + [not causal] * 3)


def test_text_without_mask_uses_everything(zoo, text):
    model, params, tokens, mask = text
    plain = zoo.run(model, params, tokens, train=False)
    full = zoo.run(model, params, tokens, jnp.ones_like(mask), train=False)
    np.testing.assert_allclose(plain, full, atol=1e-6)
    types = zoo.run(model, params, tokens, None, jnp.ones_like(tokens), train=False)
    assert jnp.abs(types - plain).max() > 1e-3


def test_text_too_long_is_refused(zoo):
    with pytest.raises(MmflaxError, match="9 tokens long.*holds 8"):
        zoo.params(bert.build(**BERT), jnp.ones((1, 9), jnp.int32), train=False)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_half_precision_is_close(zoo, text, param_dtype):
    model, params, tokens, mask = text
    half = bert.build(
        **BERT, norm_style=model.layer.norm_style, dtype="bfloat16", param_dtype=param_dtype
    )
    kinds = {leaf.dtype for leaf in jax.tree.leaves(zoo.params(half, tokens, mask, train=False))}
    assert kinds == {jnp.dtype(param_dtype)}
    exact = zoo.run(model, params, tokens, mask, train=False)
    found = zoo.run(half, params, tokens, mask, train=False)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32)[mask], exact[mask], atol=0.15)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("encoder", ["vit", "bert", "pre"])
def test_last_layers_end_in_the_tokens(encoder, scan_layers, zoo):
    """The layer before the last is what an encoder of one layer less gives, final norm included."""
    sizes = dict(width=16, num_heads=2)

    def build(depth, **fields):
        if encoder == "vit":
            return vit.build(image_size=8, patch_size=4, depth=depth, **sizes, **fields)
        style = "pre" if encoder == "pre" else "post"
        return bert.build(vocab_size=30, depth=depth, norm_style=style, **sizes, **fields)

    inputs = zoo.inputs()
    inputs = (inputs["image"],) if encoder == "vit" else (inputs["tokens"], inputs["text_mask"])
    params = zoo.params(build(2), *inputs, train=False)
    scanned = stack_layers(params) if scan_layers else params
    model = build(2, scan_layers=scan_layers)
    tokens, layers = zoo.run(model, scanned, *inputs, layers=2, train=False)
    assert len(layers) == 2
    np.testing.assert_array_equal(tokens, layers[-1])
    expected = zoo.run(build(2), params, *inputs, train=False)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    first = {"layers_0": params["encoder"]["layers_0"]}
    expected = zoo.run(build(1), {**params, "encoder": first}, *inputs, train=False)
    np.testing.assert_allclose(layers[0], expected, atol=1e-5)
    with pytest.raises(MmflaxError, match="last 3 layers were requested, but there are 2"):
        zoo.run(model, scanned, *inputs, layers=3, train=False)


def test_pre_norm_text_ends_in_a_norm(zoo):
    """Xiong et al. 2020, fig. 1b: x + branch(norm(x)), and a norm of the last sum."""
    inputs = zoo.inputs()
    tokens, mask = inputs["tokens"], inputs["text_mask"]
    model = bert.build(**BERT, norm_style="pre")
    params = zoo.params(model, tokens, mask, train=False)
    plain = dict(scale=jnp.ones(16), bias=jnp.zeros(16))
    params = {**params, "norm": plain, "embedding_norm": plain}
    found = zoo.run(model, params, tokens, mask, train=False)
    np.testing.assert_allclose(found.mean(-1), 0.0, atol=1e-5)
    # Branches that give nothing leave the normalized embeddings.
    idle = jax.tree.map(jnp.zeros_like, params["encoder"])
    x = model.apply({"params": params}, tokens, mask, method="embed")
    for _ in range(2):
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    found = zoo.run(model, {**params, "encoder": idle}, tokens, mask, train=False)
    np.testing.assert_allclose(found[mask], x[mask], atol=1e-4)


def test_positions_count_what_is_no_padding():
    model = bert.build(
        vocab_size=9, width=4, depth=1, num_heads=1, mlp_dim=4, max_length=9, position_offset=2,
        pad_token=1,
    )  # fmt: skip
    tokens = jnp.asarray([[3, 1, 4, 5, 1, 1], [1, 1, 3, 4, 1, 5]])
    rows = jax.jit(lambda x: model.bind({})._positions(x))(tokens)
    assert rows.tolist() == [[2, 1, 3, 4, 1, 1], [1, 1, 2, 3, 1, 4]]  # as fairseq's make_positions
    plain = model.clone(pad_token=None).bind({})._positions(tokens)
    assert plain.tolist() == [[2, 3, 4, 5, 6, 7]]
