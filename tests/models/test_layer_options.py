"""Norms of queries and keys, layer scale, register tokens, rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.distributed.mesh import RULES, make_mesh, param_specs
from mmflax.errors import MmflaxError
from mmflax.models.encoders import vit
from mmflax.models.encoders.positions import rope2d
from mmflax.models.layers.blocks import Block, MultiHeadAttention
from mmflax.models.layers.config import LayerConfig
from mmflax.models.layers.stack import stack_layers
from mmflax.run.init_meaning import module_differences

SIZES = dict(image_size=8, patch_size=4, width=16, num_heads=4, mlp_dim=32, depth=2)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_normed_queries_and_keys_have_no_size(zoo):
    """Kernels and biases of another size change nothing; without the norm they do."""
    x = normal(2, 3, 16)
    for on in (True, False):
        attention = MultiHeadAttention(LayerConfig(4, qk_norm=on))
        params = zoo.params(attention, x, train=False)
        louder = {**params, "query": jax.tree.map(lambda leaf: 5 * leaf, params["query"])}
        found = [zoo.run(attention, tree, x, train=False) for tree in (params, louder)]
        assert np.allclose(*found, atol=1e-4) == on


def test_layer_scale_multiplies_every_branch(zoo):
    """At 0 nothing is added; at 1 it is the plain block; in post-norm it lies before the norm."""
    x, context = normal(2, 3, 16), normal(2, 5, 16, seed=1)
    for style in ("pre", "post"):
        block = Block(LayerConfig(4, 32, norm_style=style, layer_scale=0.3), cross_attention=True)
        plain = Block(LayerConfig(4, 32, norm_style=style), cross_attention=True)
        params = zoo.params(block, x, None, context, train=False)
        scales = {name for name in params if name.endswith("_layer_scale")}
        assert scales == {f"{name}_layer_scale" for name in ("attention", "cross_attention", "mlp")}

        def run(module, number, params=params, scales=scales):
            tree = params | {name: {"scale": jnp.full(16, number)} for name in scales}
            names = params.keys() - (set() if module.config.layer_scale else scales)
            return zoo.run(module, {k: tree[k] for k in names}, x, None, context, train=False)

        np.testing.assert_allclose(run(block, 1.0), run(plain, 1.0), atol=1e-6)
        assert np.allclose(run(block, 0.0), x, atol=1e-6) == (style == "pre")
    start = jax.eval_shape(lambda: block.init(jax.random.key(0), x, None, context, train=False))
    assert start["params"]["mlp_layer_scale"]["scale"].shape == (16,)


def test_layer_scale_starts_where_the_field_says():
    x = normal(2, 3, 16)
    block = Block(LayerConfig(4, 32, layer_scale=0.3))
    params = jax.jit(lambda: block.init(jax.random.key(0), x, train=False))()["params"]
    np.testing.assert_array_equal(params["mlp_layer_scale"]["scale"], np.full(16, 0.3, np.float32))


def test_rotary_logits_depend_on_the_difference_of_places():
    grid = (3, 4)
    query, key = (jnp.broadcast_to(normal(1, 1, 2, 8, seed=s), (1, 14, 2, 8)) for s in (0, 1))
    query, key = (np.asarray(rope2d(x, grid, start=1)) for x in (query, key))
    logits = np.einsum("bthk,bshk->hts", query, key)
    place = np.indices(grid).reshape(2, -1).T
    by_difference = {}
    for i, (a, b) in enumerate(place):
        for j, (c, d) in enumerate(place):
            found = by_difference.setdefault((a - c, b - d), logits[:, 1 + i, 1 + j])
            np.testing.assert_allclose(logits[:, 1 + i, 1 + j], found, atol=1e-5)
    values = np.stack(list(by_difference.values()))
    assert len(values) == 5 * 7 == len(np.unique(values[:, 0].round(4)))
    # CLS and what follows the grid are not turned; nothing changes its length.
    np.testing.assert_array_equal(query[0, [0, 13]], np.broadcast_to(query[0, :1], (2, 2, 8)))
    np.testing.assert_allclose(
        np.linalg.norm(query, axis=-1), np.linalg.norm(query[:, :1], axis=-1) * np.ones((1, 14, 1)),
        rtol=1e-5,
    )  # fmt: skip
    with pytest.raises(MmflaxError, match="divisible by 4; found 6"):
        rope2d(normal(1, 12, 2, 6), grid)


OPTIONS = {
    "rope2d": dict(position="rope2d"),
    "all": dict(
        position="rope2d", registers=2, qk_norm=True, layer_scale=0.5, any_size=True, stem="conv"
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_vit_keeps_its_contract_with_every_option(zoo, option):
    fields = OPTIONS[option]
    model, scanned = (
        vit.build(**SIZES, **fields, scan_layers=on, remat="full" if on else "none")
        for on in (False, True)
    )
    image = zoo.inputs()["image"]
    params = zoo.params(model, image, train=False)
    assert ("position_embedding" in params) == ("position" not in fields)

    @jax.jit
    def run(params, image):
        tokens = model.apply({"params": params}, image, train=False)
        same, layers = scanned.apply({"params": stack_layers(params)}, image, layers=2, train=False)
        grads = jax.grad(
            lambda params: (model.apply({"params": params}, image, train=False) ** 3).sum()
        )(params)
        return tokens, same, layers, grads

    tokens, same, layers, grads = run(params, image)
    assert tokens.shape == (3, model.num_tokens(), 16) == (3, 5, 16)
    np.testing.assert_allclose(same, tokens, atol=2e-5)
    assert [y.shape for y in layers] == [tokens.shape] * 2
    for leaf in jax.tree.leaves(grads):
        assert jnp.isfinite(leaf).all()
    if "registers" in fields:
        assert (grads["register_token"] != 0).all()
    # Without positions an image and its transpose have the same tokens in another order.
    turned = image.swapaxes(1, 2) if option == "rope2d" else None
    if turned is not None:
        flat = dict(params, patch_embedding=jax.tree.map(jnp.ones_like, params["patch_embedding"]))
        changed = np.asarray(run(flat, turned)[0])[:, [0, 1, 3, 2, 4]]
        assert np.abs(changed - run(flat, image)[0]).max() > 1e-3
    if fields.get("any_size"):
        assert model.apply({"params": params}, image[:, :4], train=False).shape == (3, 3, 16)
    mesh = make_mesh(2, 2, 2)
    param_specs(params, RULES, mesh)
    param_specs(stack_layers(params), RULES, mesh)


def test_options_change_what_loaded_weights_compute():
    plain = vit.build(**SIZES)
    for field, value in (("qk_norm", True), ("layer_scale", 0.1), ("position", "rope2d"),
                         ("registers", 2), ("stem", "conv")):  # fmt: skip
        found = module_differences("image_encoder", vit.build(**SIZES, **{field: value}), plain)
        assert [one.field for one in found] == [field]
    # Another number than 0.1 only starts its scales elsewhere.
    a, b = (vit.build(**SIZES, layer_scale=number) for number in (0.1, 1e-5))
    assert module_differences("image_encoder", a, b) == []


def test_mistakes_are_one_sentence():
    with pytest.raises(MmflaxError, match="registers is -1; expected at least 0"):
        vit.build(**SIZES, registers=-1)
    with pytest.raises(MmflaxError, match="position is 'rope'; expected one of learned, sincos2d"):
        model = vit.build(**SIZES, position="rope")
        jax.eval_shape(lambda: model.init(jax.random.key(0), normal(1, 8, 8, 3), train=False))
