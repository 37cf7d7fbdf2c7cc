"""Every kind of fusion computes the equation its file opens with, written out in numpy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.models.fusion import (
    additive_attention,
    concat,
    elementwise,
    gated,
    low_rank_tensor,
    merged_attention,
    projection,
    tensor,
)

N, T, D = 5, 3, 8


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
    odds = np.exp(x - x.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(p, x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def multi_head(p, x, context):
    query, key, value = (
        np.einsum("bsd,dhk->bhsk", source, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name, source in (("query", x), ("key", context), ("value", context))
    )
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]))
    return np.einsum("bhtk,hkd->btd", weights @ value, p["out"]["kernel"]) + p["out"]["bias"]


# A formula is (v, u, parameters) -> h, in the words of the file's own equation.


def concatenation(v, u, p):
    return np.concatenate([v, u], axis=-1)


def common_space(v, u, p):
    h = norm(p["norm"], dense(p["image"], v) + dense(p["text"], u))
    return np.asarray(jax.nn.gelu(jnp.asarray(h), approximate=False))


def gated_unit(v, u, p):
    z = sigmoid(np.concatenate([v, u], axis=-1) @ p["gate"]["kernel"])
    h_v, h_l = np.tanh(v @ p["image"]["kernel"]), np.tanh(u @ p["text"]["kernel"])
    return z * h_v + (1 - z) * h_l


def outer_product(v, u, p):
    v, u = (
        np.concatenate([np.ones((*x.shape[:-1], 1)), dense(p[name], x)], axis=-1)
        for name, x in (("image", v), ("text", u))
    )
    rows = [np.outer(a, b).ravel() for a, b in zip(v, u, strict=True)]
    return dense(p["output"], np.stack(rows))


def low_rank_product(v, u, p, rank=3):
    """By the weight tensor itself, built from its factors: h_e = Σ_ij W_ije [1; v]_i [1; u]_j."""

    def factors(q):  # [rank, 1 + d, e]
        kernel = q["kernel"].reshape(D, rank, -1).transpose(1, 0, 2)
        return np.concatenate([q["bias"].reshape(rank, 1, -1), kernel], axis=1)

    weights = np.einsum("r,rie,rje->ije", p["rank_scale"], factors(p["image"]), factors(p["text"]))
    v, u = (np.concatenate([np.ones((len(x), 1)), x], axis=-1) for x in (v, u))
    return np.einsum("bi,bj,ije->be", v, u, weights) + p["bias"]


class Function(nn.Module):
    """The operator of a fusion whose operator has no parameters."""

    fusion: Any

    def __call__(self, image, text):
        return self.fusion.operator("")(image, text)


def function(module, **fields):
    return Function(module.build(width=6, depth=1, num_heads=2, **fields))


OPERATORS = {
    "concat": (function(concat), concatenation),
    "sum": (function(elementwise, operation="sum"), lambda v, u, p: v + u),
    "product": (function(elementwise, operation="product"), lambda v, u, p: v * u),
    "projection": (projection.CommonSpace(6), common_space),
    "gated": (gated.GatedUnit(6), gated_unit),
    "tensor": (tensor.OuterProduct(6, side=4), outer_product),
    "low_rank_tensor": (low_rank_tensor.LowRankProduct(6, rank=3), low_rank_product),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name, zoo):
    module, formula = OPERATORS[name]
    v, u = draw(4, D), draw(4, D, seed=1)
    inputs = jnp.asarray(v), jnp.asarray(u)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    params = zoo.params(module, *inputs) if "params" in shapes else {}
    found = zoo.run(module, params, *inputs)
    expected = formula(v, u, jax.tree.map(np.asarray, params))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # Tokens [b s d] are fused one by one.
    tokens = zoo.run(module, params, inputs[0][:, None], inputs[1][:, None])
    np.testing.assert_allclose(tokens[:, 0], found, atol=1e-6)


def test_tensor_needs_room_for_a_feature():
    with pytest.raises(MmflaxError, match="side is 1"):
        x = jnp.ones((2, D))
        jax.eval_shape(lambda: tensor.OuterProduct(6, side=1).init(jax.random.key(0), x, x))


def test_additive_attention(zoo):
    module = additive_attention.AdditiveAttention(attention_dim=6)
    x, context = draw(2, T, D), draw(2, N, 4, seed=1)
    mask = np.asarray([[True] * N, [True, True, False, True, False]])
    inputs = jnp.asarray(x), jnp.asarray(context)
    keywords = dict(mask=jnp.asarray(mask)[:, None, None], train=False)
    params = zoo.params(module, *inputs, **keywords)
    found = zoo.run(module, params, *inputs, **keywords)
    p = {name: np.asarray(leaf["kernel"]) for name, leaf in params.items()}
    expected = np.empty((2, T, D))
    for b in range(2):
        for t in range(T):
            query = x[b, t] @ p["query_projection"]
            energy = np.tanh(query + context[b] @ p["key_projection"]) @ p["score"][:, 0]
            weights = softmax(energy[mask[b]])
            expected[b, t] = (weights @ context[b][mask[b]]) @ p["output"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def made(zoo, name, **fields):
    """A fusion of two streams: what it gives, its parameters and the streams as they enter."""
    sizes = dict(width=D, depth=0, num_heads=2)
    module = registry.build("mmflax.models.fusion", "fusion", {"name": name, **sizes, **fields})
    image, text = draw(2, N, 6), draw(2, T, 4, seed=1)
    inputs = jnp.asarray(image), jnp.asarray(text)
    params = zoo.params(module, *inputs, train=False)
    fused = zoo.run(module, params, *inputs, train=False)
    p = jax.tree.map(np.asarray, params)
    entered = dense(p["image_projection"], image), dense(p["text_projection"], text)
    return fused, p, *entered


def test_joint_attention(zoo):
    """Without layers V and L are the streams as they enter."""
    fused, p, v, u = made(zoo, "joint_attention", image_pool="gap")
    types = p["type_embedding"]["embedding"]
    v, u = v + types[1], u + types[0]
    v_to_l, l_to_v = multi_head(p["image_reads"], v, u), multi_head(p["text_reads"], u, v)
    four = np.concatenate([v_to_l.mean(1), l_to_v[:, 0], v.mean(1), u[:, 0]], axis=-1)
    np.testing.assert_allclose(fused.pooled, dense(p["joint"], four), atol=1e-5)
    image = dense(p["image_joint"], np.concatenate([v, v_to_l], axis=-1))
    text = dense(p["text_joint"], np.concatenate([u, l_to_v], axis=-1))
    np.testing.assert_allclose(fused.image, image, atol=1e-5)
    np.testing.assert_allclose(fused.text, text, atol=1e-5)


def test_placements(zoo):
    """Without layers: late fuses the two summaries, early every token with the other's summary, and
    hybrid projects both results side by side."""
    fused, p, v, u = made(zoo, "gated", placement="hybrid", image_pool="gap")
    types = p["type_embedding"]["embedding"]
    late = gated_unit((v + types[1]).mean(1), (u + types[0])[:, 0], p["late_operator"])
    said, seen = np.broadcast_to(u[:, :1], v.shape), np.broadcast_to(v.mean(1)[:, None], u.shape)
    image = dense(p["early_projection"], gated_unit(v, said, p["early_operator"])) + types[1]
    text = dense(p["early_projection"], gated_unit(seen, u, p["early_operator"])) + types[0]
    early = np.concatenate(
        [
            np.tanh(dense(p["text_pooler"]["dense"], text[:, 0])),
            np.tanh(dense(p["image_pooler"]["dense"], image.mean(1))),
        ],
        axis=-1,
    )
    both = np.concatenate([early, late], axis=-1)
    np.testing.assert_allclose(fused.pooled, dense(p["pooled_hybrid"], both), atol=1e-5)
    streams = np.concatenate([image, v + types[1]], axis=-1)
    np.testing.assert_allclose(fused.image, dense(p["image_hybrid"], streams), atol=1e-5)
    streams = np.concatenate([text, u + types[0]], axis=-1)
    np.testing.assert_allclose(fused.text, dense(p["text_hybrid"], streams), atol=1e-5)


@pytest.mark.parametrize(("placement", "meet"), [("early", True), ("late", False)])
def test_streams_meet_early_and_not_late(zoo, placement, meet):
    sizes = dict(width=D, depth=1, num_heads=2, mlp_dim=8, placement=placement)
    module = concat.build(**sizes)
    image, text = jnp.asarray(draw(2, N, 6)), jnp.asarray(draw(2, T, 4))
    params = zoo.params(module, image, text, train=False)
    first = zoo.run(module, params, image, text, train=False)
    second = zoo.run(module, params, image, text.at[:, 1].add(1.0), train=False)
    assert (jnp.abs(first.image - second.image).max() > 1e-4) == meet
    assert ("early_encoder" in params, "text_encoder" in params) == (meet, not meet)


def test_a_product_with_nothing_leaves_the_other_as_it_is(zoo):
    """Sum and product have the same parameters, and agree where one modality is absent."""
    image, text = jnp.asarray(draw(2, N, 6)), jnp.asarray(draw(2, T, 4))
    masks = jnp.asarray([[False] * N, [True] * N]), jnp.asarray([[True] * T, [False] * T])
    sizes = dict(width=D, depth=1, num_heads=2, mlp_dim=8)
    both = [elementwise.build(operation=name, **sizes) for name in ("sum", "product")]
    params = zoo.params(both[0], image, text, train=False)
    total, product = (
        zoo.run(module, params, image, text, *masks, train=False).pooled for module in both
    )
    np.testing.assert_allclose(total, product, atol=1e-6)
    assert jnp.abs(total).min(axis=1).max() > 0


@pytest.mark.parametrize(("reader", "read"), [("text", "image"), ("image", "text")])
def test_one_way_cross_attention_leaves_the_other_stream_alone(zoo, reader, read):
    fused, p, image, text = made(
        zoo, "cross_attention", direction=f"{reader}_reads_{read}", depth=1, mlp_dim=8
    )
    types = p["type_embedding"]["embedding"]
    entered = {"text": text + types[0], "image": image + types[1]}
    np.testing.assert_allclose(getattr(fused, read), entered[read], atol=1e-5)
    layer = p[f"{reader}_encoder"]["layers_0"]
    x, context = entered[reader], entered[read]
    x = norm(layer["attention_norm"], x + multi_head(layer["attention"], x, x))
    x = norm(layer["cross_attention_norm"], x + multi_head(layer["cross_attention"], x, context))
    hidden = np.asarray(jax.nn.gelu(jnp.asarray(dense(layer["mlp"]["fc1"], x)), approximate=False))
    x = norm(layer["mlp_norm"], x + dense(layer["mlp"]["fc2"], hidden))
    np.testing.assert_allclose(getattr(fused, reader), x, atol=1e-5)


def test_merged_attention_is_one_self_attention_over_all_tokens(zoo):
    fused, p, image, text = made(zoo, "merged_attention", depth=1, mlp_dim=8)
    types, layer = p["type_embedding"]["embedding"], p["encoder"]["layers_0"]
    x = np.concatenate([text + types[0], image + types[1]], axis=1)
    x = norm(layer["attention_norm"], x + multi_head(layer["attention"], x, x))
    hidden = np.asarray(jax.nn.gelu(jnp.asarray(dense(layer["mlp"]["fc1"], x)), approximate=False))
    x = norm(layer["mlp_norm"], x + dense(layer["mlp"]["fc2"], hidden))
    np.testing.assert_allclose(fused.text, x[:, :T], atol=1e-5)
    np.testing.assert_allclose(fused.image, x[:, T:], atol=1e-5)


def test_prefix_mask():
    expected = [[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    found = merged_attention.prefix_mask(2, 2)
    np.testing.assert_array_equal(found, np.asarray(expected, bool)[None, None])
