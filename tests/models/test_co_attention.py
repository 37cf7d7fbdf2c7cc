"""Co-attention: what each form shares, what it reads, and what a mask keeps out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.fusion import co_attention
from mmflax.models.fusion.co_attention import CoAttentionLayer
from mmflax.models.layers.config import LayerConfig

FORMS = ("meter", "lxmert")
N, T = 5, 4


def streams(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(2, n, 8)), jnp.float32) for n in (N, T))


def layer_of(form, zoo):
    config = LayerConfig(2, 16, norm_style="post", epsilon=1e-12)
    layer = CoAttentionLayer(config, form)
    return layer, zoo.params(layer, streams(), train=False)


def test_lxmert_shares_one_cross_attention_and_meter_has_two(zoo):
    _, lxmert = layer_of("lxmert", zoo)
    assert set(lxmert) == {"cross_attention", "cross_attention_norm", "image", "text"}
    assert set(lxmert["image"]) == {"attention", "attention_norm", "mlp", "mlp_norm"}
    _, meter = layer_of("meter", zoo)
    assert set(meter) == {"image", "text"}
    assert {"cross_attention", "cross_attention_norm"} < set(meter["image"])
    assert jax.tree.structure(meter["image"]) == jax.tree.structure(meter["text"])


def test_lxmert_crosses_both_ways_with_the_same_weights(zoo):
    """With equal self-attention and MLP weights, exchanging the inputs exchanges the outputs."""
    layer, params = layer_of("lxmert", zoo)
    params = {**params, "text": params["image"]}
    image, text = streams()
    there = zoo.run(layer, params, (image, text), train=False)
    back = zoo.run(layer, params, (text, image), train=False)
    for left, right in zip(there, back[::-1], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_both_streams_read_the_previous_layer_of_the_other(form, zoo):
    """Weights that belong to one stream alone do not touch the other within a layer."""
    layer, params = layer_of(form, zoo)

    @jax.jit
    def sides(params):
        def side(i):
            return lambda params: (layer.apply({"params": params}, streams(), train=False)[i]).sum()

        return jax.grad(side(0))(params), jax.grad(side(1))(params)

    for grads, own, other in zip(sides(params), ("image", "text"), ("text", "image"), strict=True):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads[other]))
        assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads[own]))


@pytest.mark.parametrize("form", FORMS)
def test_order_of_the_parts(form, zoo):
    """LXMERT crosses before self-attention, METER after.

    What the second part attends to depends on what the first adds, and not the other way round.
    """
    crossing = ("cross_attention",) if form == "lxmert" else ("text", "cross_attention")
    own = ("text", "attention")
    first, second = (crossing, own) if form == "lxmert" else (own, crossing)
    layer, params = layer_of(form, zoo)

    @jax.jit
    def weights(params):
        _, sown = layer.apply({"params": params}, streams(), train=False, mutable="intermediates")
        return {
            part: descend(sown["intermediates"], part)["attention"][-1] for part in (own, crossing)
        }

    def descend(tree, path):
        return tree if not path else descend(tree[path[0]], path[1:])

    def silence(tree, path):
        if not path:
            return jax.tree.map(jnp.zeros_like, tree)
        return {**tree, path[0]: silence(tree[path[0]], path[1:])}

    expected = weights(params)
    without_first = weights(silence(params, (*first, "out")))
    without_second = weights(silence(params, (*second, "out")))
    assert jnp.abs(without_first[second] - expected[second]).max() > 1e-3
    np.testing.assert_allclose(without_second[first], expected[first], atol=1e-6)


SIZES = dict(width=8, depth=2, num_heads=2, mlp_dim=16)


@pytest.fixture(scope="module", params=FORMS)
def fusion(request, zoo):
    model = co_attention.build(form=request.param, **SIZES)
    image, text = streams()
    params = zoo.params(model, image, text, train=False)
    run = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs, train=False))
    return request.param, run


def test_pooled_vector(fusion):
    form, run = fusion
    fused = run(*streams())
    assert fused.pooled.shape == (2, 16 if form == "meter" else 8)
    assert (jnp.abs(fused.pooled) <= 1).all()


def test_masked_tokens_never_matter(fusion):
    _, run = fusion
    image, text = streams()
    image_mask = jnp.asarray([[True] * N, [True, False, True, True, False]])
    text_mask = jnp.asarray([[True, True, False, False], [True] * T])
    expected = run(image, text, image_mask, text_mask)
    garbage = run(
        jnp.where(image_mask[..., None], image, jnp.nan),
        jnp.where(text_mask[..., None], text, 1e9),
        image_mask,
        text_mask,
    )
    np.testing.assert_array_equal(garbage.pooled, expected.pooled)
    np.testing.assert_array_equal(garbage.image, expected.image)
    np.testing.assert_array_equal(garbage.text, expected.text)
    longer = run(
        jnp.pad(image, ((0, 0), (0, 2), (0, 0)), constant_values=3.0),
        jnp.pad(text, ((0, 0), (0, 1), (0, 0)), constant_values=3.0),
        jnp.pad(image_mask, ((0, 0), (0, 2))),
        jnp.pad(text_mask, ((0, 0), (0, 1))),
    )
    np.testing.assert_allclose(longer.pooled, expected.pooled, atol=1e-5)
    np.testing.assert_allclose(longer.image[:, :N], expected.image, atol=1e-5)
    np.testing.assert_allclose(longer.text[:, :T], expected.text, atol=1e-5)


def test_an_absent_modality_leaks_nothing(fusion):
    """Neither value nor gradient passes; what is present still has both."""
    _, run = fusion

    @jax.jit
    def value_and_grads(image_mask, text_mask):
        def total(image, text):
            fused = run(image, text, image_mask, text_mask)
            return (fused.pooled**2).sum() + (fused.image**3).sum() + (fused.text**3).sum()

        return jax.value_and_grad(total, argnums=(0, 1))(*streams())

    for has_image, has_text in ((False, True), (True, False), (False, False)):
        value, grads = value_and_grads(jnp.full((2, N), has_image), jnp.full((2, T), has_text))
        assert jnp.isfinite(value)
        for grad, present in zip(grads, (has_image, has_text), strict=True):
            assert jnp.isfinite(grad).all()
            assert (grad != 0).any() == present


def test_causal_is_refused(zoo):
    image, text = streams()
    with pytest.raises(MmflaxError, match="causal=True"):
        zoo.params(co_attention.build(**SIZES), image, text, causal=True, train=False)


def test_unknown_form_lists_the_known(zoo):
    with pytest.raises(MmflaxError, match="form is 'vilbert'.*meter, lxmert"):
        zoo.params(co_attention.build(form="vilbert", **SIZES), *streams(), train=False)


@pytest.mark.parametrize("form", FORMS)
def test_projections_join_different_widths(form, zoo):
    image, text = streams()
    model = co_attention.build(form=form, **SIZES)
    wide = jnp.concatenate([image, image], axis=-1)
    names = set(zoo.params(model, wide, text, train=False))
    expected = {"encoder", "image_projection", "text_pooler"}
    if form == "meter":
        expected |= {"text_projection", "type_embedding", "image_pooler"}
    assert names == expected


def test_image_pooling_by_mean_ignores_hidden_tokens(zoo):
    model = co_attention.build(image_pool="gap", **{**SIZES, "depth": 0})
    image, text = streams()
    params = zoo.params(model, image, text, train=False)
    mask = jnp.asarray([[True, True, False, False, False]] * 2)
    found = zoo.run(model, params, image, text, mask, train=False).pooled
    expected = zoo.run(model, params, image[:, :2], text, train=False).pooled
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pre_norm_ends_normalized_and_is_meters_alone():
    fusion = co_attention.build(width=8, depth=2, num_heads=2, norm_style="pre")
    image, text = 100.0 * jnp.ones((1, 5, 8)).at[0, 0].set(3.0), jnp.ones((1, 3, 8))
    params = fusion.init(jax.random.key(0), image, text, train=False)["params"]
    fused = fusion.apply({"params": params}, image, text, train=False)
    assert {"image_norm", "text_norm"} <= params.keys()
    np.testing.assert_allclose(np.asarray(fused.image).mean(-1), 0.0, atol=1e-5)
    lxmert = co_attention.build(width=8, depth=1, num_heads=2, form="lxmert", norm_style="pre")
    with pytest.raises(MmflaxError, match="no norm_style"):
        lxmert.init(jax.random.key(0), image, text, train=False)
