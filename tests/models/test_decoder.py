"""The decoder: no future leak, cached equals uncached, masks, sharing of tables, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.decoder.decoder import build
from mmflax.models.decoder.layer import KeyValueAttention
from mmflax.models.decoder.memory import Memory
from mmflax.models.layers.blocks import MultiHeadAttention
from mmflax.models.layers.config import LayerConfig
from mmflax.models.vision_language import Encoded

B, S, M, V, D = 3, 6, 5, 20, 16


def decoder(**fields):
    sizes = dict(vocab_size=V, width=D, depth=2, num_heads=4, max_length=8, mlp_dim=32)
    return build(**sizes | fields)


def inputs(seed=0):
    """Texts of 4, 5, 6 tokens, none twice in a text; memories of 0, 3 and 5 tokens."""
    rng = np.random.default_rng(seed)
    texts = np.stack([rng.permutation(V)[:S] for _ in range(B)])
    return dict(
        tokens=jnp.asarray(texts, jnp.int32),
        memory=jnp.asarray(rng.normal(size=(B, M, D)), jnp.float32),
        tokens_mask=jnp.asarray(np.arange(S) < np.asarray([[4], [5], [6]])),
        memory_mask=jnp.asarray(np.arange(M) < np.asarray([[0], [3], [5]])),
    )


def random_table(seed=3):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(V, D)) * 0.3, jnp.float32)


FORMS = {
    "pre, tied": (dict(), False),
    "post, untied": (dict(norm_style="post", tie="none"), False),
    "pre, norms of heads, layer scale": (dict(qk_norm=True, layer_scale=0.5), False),
    "post, BERT's word head": (dict(norm_style="post", word_head=True), False),
    "pre, shared table": (dict(qk_init="shared", attention_impl="xla"), True),
    "post, shared table, untied": (dict(norm_style="post", tie="none"), True),
}


@pytest.mark.parametrize("form", FORMS)
def test_cached_equals_uncached(zoo, form):
    """Token by token with a cache, two texts to an example, gives the logits of the whole text."""
    fields, shared = FORMS[form]
    model, given = decoder(**fields), inputs()
    table = random_table() if shared else None
    params = zoo.params(model, **given, table=table, train=False)
    other = inputs(1)["tokens"]

    @jax.jit
    def whole(tokens):
        arguments = {**given, "tokens": tokens, "tokens_mask": None}
        return model.apply({"params": params}, **arguments, table=table, train=False)

    @jax.jit
    def stepwise(texts):
        variables = {"params": params}
        context = model.apply(variables, given["memory"], given["memory_mask"], method="prepare")
        cache = model.apply(variables, 2 * B, 7, method="empty")

        def body(cache, column):
            token, position = column
            logits, cache = model.apply(
                variables, context, cache, token, position, table=table, method="step"
            )
            return cache, logits

        return jax.lax.scan(body, cache, (texts.T, jnp.arange(S)))[1].swapaxes(0, 1)

    pairs = jnp.stack([given["tokens"], other], axis=1).reshape(2 * B, S)
    logits = stepwise(pairs).reshape(B, 2, S, V)
    assert logits.dtype == jnp.float32 and float(logits.std()) > 0.1
    np.testing.assert_allclose(logits[:, 0], whole(given["tokens"]), atol=1e-5)
    np.testing.assert_allclose(logits[:, 1], whole(other), atol=1e-5)


@pytest.mark.parametrize("norm_style", ["pre", "post"])
def test_no_future_leak(zoo, norm_style):
    """d logits[:, i] / d embedding of a token after i is exactly 0; up to i it is not."""
    model, given = decoder(norm_style=norm_style, tie="none"), inputs()
    given["tokens_mask"] = None
    table = random_table()
    params = zoo.params(model, **given, table=table, train=False)

    @jax.jit
    def gradient(table, i):
        def total(table):
            logits = model.apply({"params": params}, **given, table=table, train=False)
            return (logits[2, i] * jnp.cos(jnp.arange(V, dtype=jnp.float32))).sum()

        return jax.grad(total)(table)

    text = given["tokens"][2]
    for i in range(S):
        size = jnp.abs(gradient(table, i)).sum(axis=1)[text]
        assert (size[: i + 1] > 0).all() and (size[i + 1 :] == 0).all()


def test_what_masks_hide_never_matters(zoo):
    model, given = decoder(), inputs()
    params = zoo.params(model, **given, train=False)
    run = jax.jit(
        lambda tokens, memory: model.apply(
            {"params": params}, **{**given, "tokens": tokens, "memory": memory}, train=False
        )
    )
    hidden = ~given["memory_mask"][..., None]
    words = jnp.where(given["tokens_mask"], given["tokens"], V + 99)
    memory = jnp.where(hidden, 1e3, given["memory"])
    before, after = run(given["tokens"], given["memory"]), run(words, memory)
    used = np.asarray(given["tokens_mask"])
    np.testing.assert_array_equal(np.asarray(before)[used], np.asarray(after)[used])
    seen = run(given["tokens"], jnp.where(hidden, given["memory"], 0.5))
    assert (seen[1:] != before[1:]).any() and (seen[0] == before[0]).all()
    grad = jax.jit(jax.grad(lambda memory: (run(given["tokens"], memory) ** 2).sum()))(
        given["memory"]
    )
    assert ((grad == 0) == jnp.broadcast_to(hidden, grad.shape)).all()


def test_remat_changes_no_result_and_does_recompute(zoo):
    given = inputs()
    params = zoo.params(decoder(depth=1), **given, train=False)

    def gradient(remat):
        model = decoder(remat=remat, depth=1, dropout_rate=0.1)

        def total(params):
            rngs = {"dropout": jax.random.key(1)}
            return (model.apply({"params": params}, **given, train=True, rngs=rngs) ** 2).sum()

        return jax.grad(total)

    plain, again = jax.jit(gradient("none"))(params), jax.jit(gradient("full"))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), plain, again)
    for remat, recomputes in (("none", False), ("full", True), ("dots", True)):
        assert ("remat" in str(jax.make_jaxpr(gradient(remat))(params))) == recomputes


@pytest.mark.parametrize("field", ["dropout_rate", "attention_dropout_rate", "drop_path_rate"])
def test_training_draws_and_evaluation_does_not(zoo, field):
    given, model = inputs(), decoder(**{field: 0.5})
    params = zoo.params(model, **given, train=False)

    @jax.jit
    def run(params, key):
        def apply(model, train):
            rngs = {"dropout": key}
            return model.apply({"params": params}, **given, train=train, rngs=rngs)

        return apply(model, True), apply(model, False), apply(decoder(), False)

    (one, still, plain), (two, *_) = (run(params, jax.random.key(i)) for i in range(2))
    assert (one != two).any() and (still == plain).all()


def test_parameters(zoo):
    def names(table=None, **fields):
        shapes = jax.eval_shape(
            lambda: decoder(**fields).init(jax.random.key(0), **inputs(), table=table, train=False)
        )["params"]
        paths = jax.tree_util.tree_leaves_with_path(shapes)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in paths
        }

    own, table = names(), random_table()
    assert own["layers_1/cross_attention/key/kernel"] == (D, 4, 4)
    assert own["position_embedding/embedding"] == (8, D) and own["output/bias"] == (V,)
    assert "output/kernel" not in own and "norm/scale" in own
    assert set(own) - set(names(table)) == {"word_embedding/embedding"}
    assert set(names(tie="none")) - set(own) == {"output/kernel"}
    assert set(own) - set(names(norm_style="post")) == {"norm/scale", "norm/bias"}


def test_attention_in_halves_is_multi_head_attention(zoo):
    """Same parameters, same result, the rows with nothing to look at included."""
    rng = np.random.default_rng(0)
    x, context = (jnp.asarray(rng.normal(size=(B, n, D)), jnp.float32) for n in (S, M))
    mask = inputs()["memory_mask"][:, None, None]
    config = LayerConfig(4, qk_norm=True)
    whole = MultiHeadAttention(config)
    params = zoo.params(whole, x, context, mask=mask, train=False)
    halves = KeyValueAttention(config, D)

    @jax.jit
    def both(params):
        kept = halves.apply({"params": params}, context, method="key_value")
        return (
            halves.apply({"params": params}, x, kept, mask=mask, train=False),
            whole.apply({"params": params}, x, context, mask=mask, train=False),
        )

    np.testing.assert_array_equal(*both(params))
    assert (both(params)[0][0] == 0).all()


def test_shared_start_of_query_and_key():
    model = decoder(qk_init="shared", depth=1)
    init = jax.jit(lambda key: model.init(key, **inputs(), train=False)["params"]["layers_0"])
    layer = init(jax.random.key(0))
    for name in ("attention", "cross_attention"):
        kernels = {part: layer[name][part]["kernel"] for part in ("query", "key", "value")}
        assert (kernels["query"] == kernels["key"]).all()
        assert (kernels["query"] != kernels["value"]).any()


def test_half_precision_is_close_and_scores_in_full(zoo):
    given = inputs()
    params = zoo.params(decoder(), **given, train=False)
    full = zoo.run(decoder(), params, train=False, **given)
    half = zoo.run(decoder(dtype="bfloat16"), params, train=False, **given)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.1)
    assert (half != full).any()
    cache = decoder(dtype="bfloat16").apply({"params": params}, 2, 3, method="empty")
    assert cache[0][0].dtype == jnp.bfloat16 and cache[0][0].shape == (2, 3, 4, 4)


def test_mistakes_are_one_sentence():
    def start(model, **changes):
        jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs() | changes, train=False))

    with pytest.raises(MmflaxError, match="6 tokens long.*holds 5.*decoder.max_length"):
        start(decoder(max_length=5))
    with pytest.raises(MmflaxError, match=r"table is \[20, 8\].*words are \[20, 16\]"):
        start(decoder(), table=jnp.zeros((V, 8)))
    with pytest.raises(MmflaxError, match="tie is 'all'; expected one of own, none"):
        start(decoder(tie="all"))
    with pytest.raises(MmflaxError, match="norm_style is 'mid'"):
        start(decoder(norm_style="mid"))
    with pytest.raises(MmflaxError, match="16 does not divide into 3 heads"):
        start(decoder(num_heads=3))


def encoded(seed=0):
    """Streams of 3 image and 4 text tokens; example 0 has no image, example 1 no text."""
    rng = np.random.default_rng(seed)

    def stream(length, width):
        return jnp.asarray(rng.normal(size=(B, length, width)), jnp.float32)

    return Encoded(
        image=stream(3, 8),
        text=stream(4, 8),
        pooled=jnp.zeros((B, 2)),
        image_mask=jnp.asarray([[0, 0, 0], [1, 1, 1], [1, 0, 1]], bool),
        text_mask=jnp.asarray([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool),
        image_tokens=stream(3, 12),
        text_tokens=stream(4, 10),
    )


SOURCES = {
    ("image",): ["image_tokens"],
    ("text",): ["text_tokens"],
    ("fused",): ["image", "text"],
    ("image", "text", "fused"): ["image_tokens", "text_tokens", "image", "text"],
}


@pytest.mark.parametrize("sources", SOURCES)
def test_memory_holds_its_sources_and_nothing_masked(zoo, sources):
    module, given = Memory(width=D, sources=sources), encoded()
    params = zoo.params(module, given)
    memory, mask = zoo.run(module, params, given)
    masks = dict(
        image_tokens="image_mask", image="image_mask", text_tokens="text_mask", text="text_mask"
    )
    expected = jnp.concatenate([getattr(given, masks[name]) for name in SOURCES[sources]], axis=1)
    np.testing.assert_array_equal(mask, expected)
    assert memory.shape == (*mask.shape, D)

    @jax.jit
    def gradient(streams):
        def total(streams):
            return (module.apply({"params": params}, given._replace(**streams))[0] ** 3).sum()

        return jax.grad(total)(streams)

    for name, grad in gradient({name: getattr(given, name) for name in masks}).items():
        used = getattr(given, masks[name])[..., None] & (name in SOURCES[sources])
        assert ((grad != 0) == jnp.broadcast_to(used, grad.shape)).all()


def test_memory_tells_its_streams_apart(zoo):
    """With equal projections the streams differ by their type alone."""
    module, given = Memory(width=D, sources=("fused",)), encoded()
    given = given._replace(text=given.image, text_mask=given.image_mask)
    params = zoo.params(module, given)
    params["fused_text_projection"] = params["fused_image_projection"]
    memory, _ = zoo.run(module, params, given)
    types = params["type_embedding"]["embedding"]
    gap = jnp.broadcast_to((types[1] - types[0])[None, None], (B, 3, D))
    np.testing.assert_allclose(memory[:, 3:] - memory[:, :3], gap, atol=1e-6)


@pytest.mark.parametrize("sources", [(), ("image", "image"), ("picture",)])
def test_unknown_sources_are_named(sources):
    with pytest.raises(
        MmflaxError, match="expected one or more of image, text, fused, fused_text, each once"
    ):
        Memory(width=D, sources=sources).init(jax.random.key(0), encoded())
