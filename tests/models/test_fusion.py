"""Every kind of fusion keeps the same promises: one dict of cases drives every check."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths, registry
from mmflax.distributed.mesh import RULES, make_mesh, param_specs
from mmflax.errors import MmflaxError
from mmflax.models.layers.stack import stack_layers

PACKAGE = "mmflax.models.fusion"
N, T = 5, 3
QUICK = {"xla_backend_optimization_level": 0}  # to compile, not to run
FIELDS = dict(width=8, depth=1, num_heads=2, mlp_dim=16)
OPERATORS = ("concat", "elementwise", "gated", "low_rank_tensor", "projection", "tensor")
CASES = {
    "additive_attention": {},
    "bridge": dict(depth=2),
    "co_attention": {},
    "co_attention lxmert": dict(form="lxmert", norm_style="post"),
    "co_transformer": dict(inner_width=12, text_depths=(2,)),
    "concat": {},
    "cross_attention": {},
    "cross_attention blip": dict(form="blip"),
    "cross_attention image": dict(direction="image_reads_text"),
    "elementwise": {},
    "elementwise sum": dict(operation="sum"),
    "elementwise early": dict(placement="early"),
    "gated": {},
    "gated hybrid": dict(placement="hybrid"),
    "joint_attention": {},
    "low_rank_tensor": {},
    "merged_attention": {},
    "merged_attention uniter": dict(form="uniter"),
    "merged_attention visual_bert": dict(form="visual_bert"),
    "projection": {},
    "tensor": dict(side=4),
}
# The placements share one module, so the other combinations take their turn with the slow tests.
SLOW = {
    f"{name} {placement}": dict(placement=placement)
    for name in OPERATORS
    for placement in ("early", "hybrid")
    if f"{name} {placement}" not in CASES
}
every_kind = pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]
)


def build(case, **fields):
    own = (CASES | SLOW)[case]
    return registry.build(PACKAGE, "fusion", {"name": case.split()[0], **FIELDS, **own, **fields})


def inputs(seed=0):
    """Four pairs: all there, no image, no text, and one with a token of each hidden."""
    rng = np.random.default_rng(seed)
    image, text = (jnp.asarray(rng.normal(size=(4, *s)), jnp.float32) for s in ((N, 8), (T, 6)))
    image_mask = jnp.ones((4, N), bool).at[1].set(False).at[3, 2].set(False)
    text_mask = jnp.ones((4, T), bool).at[2].set(False).at[3, 2:].set(False)
    return image, text, image_mask, text_mask


def call(module, image, text, *rest, **keywords):
    """The module on these streams; one that reads encoder layers gets some made of them."""
    count = getattr(module, "num_layers_read", 0)
    if count:
        keywords["image_layers"] = tuple(image * (i + 1.0) for i in range(count))
        keywords["text_layers"] = tuple(text * (i + 1.0) for i in range(count))
    return module(image, text, *rest, **keywords)


def bind(module, params, *args, **keywords):
    """`call` with these parameters; jitted by its users."""
    return module.apply({"params": params}, *args, **{"train": False, **keywords}, method=call)


def total(fused):
    parts = (fused.image, fused.text, fused.pooled)
    return sum(jnp.sin(part.astype(jnp.float32)).sum() for part in parts)


class Seen(NamedTuple):
    """A case with random parameters, and what came of the inputs: the fused pair, the weights of
    every attention, and a loss' gradients by (parameters, image, text)."""

    module: Any
    params: Any
    fused: Any
    weights: Any
    grads: Any


def look(module, params, image, text, image_mask, text_mask):
    """Not jitted: the small programs of its steps are the same for all kinds, and compile once."""

    def loss(params, image, text):
        fused, sown = bind(
            module, params, image, text, image_mask, text_mask, mutable="intermediates"
        )
        return total(fused), (fused, jax.tree.leaves(sown))

    grads, (fused, weights) = jax.grad(loss, (0, 1, 2), has_aux=True)(params, image, text)
    return Seen(module, params, fused, weights, grads)


@pytest.fixture(scope="module")
def seen(zoo):
    """`seen(case) -> Seen`, made once."""
    kept = {}

    def make(case):
        if case not in kept:
            module = build(case)
            params = zoo.params(module, *inputs(), train=False, method=call)
            kept[case] = look(module, params, *inputs())
        return kept[case]

    return make


def test_every_kind_has_a_case():
    assert {case.split()[0] for case in CASES} == set(registry.names(PACKAGE))


@every_kind
def test_both_modalities_count_and_streams_keep_their_tokens(seen, case):
    module, params, fused, _, grads = seen(case)
    image, text, *masks = inputs()
    assert fused.image.shape == (4, N, 8) and fused.text.shape == (4, T, 8)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((fused, grads)))

    def other(x):  # what a norm does not undo
        return x + jnp.sin(jnp.arange(x.shape[-1], dtype=x.dtype))[None, None]

    others = (other(image), text), (image, other(text))
    for name, changed, there in zip(("image", "text"), others, masks, strict=True):
        pooled = bind(module, params, *changed, *masks).pooled
        moved = jnp.abs(pooled - fused.pooled).max(axis=1) > 1e-4
        np.testing.assert_array_equal(moved, there.any(axis=1), name)


@every_kind
def test_what_is_not_there_leaks_neither_value_nor_gradient(seen, case):
    module, params, fused, _, grads = seen(case)
    image, text, image_mask, text_mask = inputs()
    image = jnp.where(image_mask[..., None], image, jnp.nan)
    text = jnp.where(text_mask[..., None], text, -1e9)
    garbage = look(module, params, image, text, image_mask, text_mask)
    jax.tree.map(np.testing.assert_array_equal, (garbage.fused, garbage.grads), (fused, grads))
    for grad, mask in zip(grads[1:], (image_mask, text_mask), strict=True):
        np.testing.assert_array_equal((grad != 0).any(axis=-1), mask)


@every_kind
def test_attention_is_shared_out_among_what_is_there(seen, case):
    _, _, image_mask, text_mask = inputs()
    joined = jnp.concatenate([text_mask, image_mask], axis=1)
    used = {mask.shape[1]: np.asarray(mask) for mask in (image_mask, text_mask, joined)}
    weights = seen(case).weights
    assert weights
    for found in weights:  # [b h queries keys]
        mask = used[found.shape[-1]][:, None, None]
        assert (np.where(mask, 0.0, found) == 0).all()
        there = np.broadcast_to(mask.any(axis=-1), found.shape[:-1])
        np.testing.assert_allclose(found.sum(axis=-1), there.astype(np.float32), atol=1e-6)


@every_kind
def test_an_absent_modality_does_not_blow_up_gradients(seen, case):
    """Fresh biases are zero, and a layer norm's slope at zero is 1 / sqrt(1e-12)."""

    def fresh(path, leaf):
        bias, table = (path[-1].key == name for name in ("bias", "embedding"))
        return leaf * (0.0 if bias else 0.1 if table else 1.0)

    params = jax.tree_util.tree_map_with_path(fresh, seen(case).params)
    absent = (x[jnp.asarray([1, 2, 1, 2])] for x in inputs())
    grads = look(seen(case).module, params, *absent).grads[0]
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e4


@every_kind
def test_scan_and_more_padding_change_nothing(seen, case):
    _, params, fused, _, _ = seen(case)
    image, text, image_mask, text_mask = inputs()
    scanned = build(case, scan_layers=True, remat="full")

    def pad(x, by, value):
        return jnp.pad(x, ((0, 0), (0, by), (0, 0))[: x.ndim], constant_values=value)

    longer = jax.jit(lambda params, *args: bind(scanned, params, *args), compiler_options=QUICK)(
        stack_layers(params),
        pad(image, 2, 3.0), pad(text, 1, 3.0), pad(image_mask, 2, False), pad(text_mask, 1, False),
    )  # fmt: skip
    np.testing.assert_allclose(longer.pooled, fused.pooled, atol=2e-5)
    np.testing.assert_allclose(longer.image[:, :N], fused.image, atol=2e-5)
    np.testing.assert_allclose(longer.text[:, :T], fused.text, atol=2e-5)


@pytest.mark.parametrize("field", ["image_pool", "text_pool"])
def test_an_unknown_pooling_is_named(field):
    with pytest.raises(MmflaxError, match=f"{field} is 'mean'; expected one of cls, gap"):
        build("concat", **{field: "mean"}).init(jax.random.key(0), *inputs(), train=False)


# Pooled by the text alone: there is no other image token to pool.
TEXT_ALONE = (
    "co_attention lxmert", "cross_attention blip", "merged_attention uniter",
    "merged_attention visual_bert",
)  # fmt: skip


@pytest.mark.parametrize("modality", ["image", "text"])
@every_kind
def test_the_mean_is_the_first_token_where_that_is_the_only_one(seen, case, modality):
    params = seen(case).params
    image, text, *_ = inputs()
    masks = {"image": jnp.ones((4, N), bool), "text": jnp.ones((4, T), bool)}
    # The second example has this one token, the others all.
    masks[modality] = masks[modality].at[1, 1:].set(False)
    first, mean = (
        bind(build(case, **{f"{modality}_pool": pool}), params, image, text, *masks.values())
        for pool in ("cls", "gap")
    )
    np.testing.assert_allclose(mean.pooled[1], first.pooled[1], atol=1e-5)
    moved = jnp.abs(mean.pooled[0] - first.pooled[0]).max() > 1e-4
    assert moved == (modality == "text" or case not in TEXT_ALONE)


@pytest.mark.slow
@every_kind
def test_half_precision_trains_with_every_help(case):
    """Pre-norm, mean pooling, dropout of all sorts: the fields of every kind at once."""
    helps = dict(
        dtype="bfloat16", norm_style="pre", image_pool="gap", text_pool="gap", dropout_rate=0.1,
        attention_dropout_rate=0.1, drop_path_rate=0.1, qk_init="shared", epsilon=1e-6,
        activation="gelu_tanh", qk_norm=True, layer_scale=0.5,
    )  # fmt: skip
    if "lxmert" in case:
        helps["norm_style"] = "post"
    module = build(case, **helps)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *inputs(), train=False, method=call)
    )["params"]
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), shapes)

    def run(params):
        return bind(module, params, *inputs(), train=True, rngs={"dropout": jax.random.key(0)})

    for leaf in jax.jit(run, compiler_options=QUICK)(params):
        assert leaf.dtype == jnp.bfloat16 and jnp.isfinite(leaf.astype(jnp.float32)).all()
    grads = jax.eval_shape(jax.grad(lambda params: total(run(params))), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


CAUSAL = (
    "cross_attention", "cross_attention blip", "merged_attention", "merged_attention uniter",
    "merged_attention visual_bert",
)  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CASES if case not in CAUSAL])
def test_causal_is_refused_where_later_words_would_leak(case):
    with pytest.raises(MmflaxError, match="causal=True"):
        jax.eval_shape(
            lambda: build(case).init(
                jax.random.key(0), *inputs(), causal=True, train=False, method=call
            )
        )


@pytest.mark.parametrize("case", CAUSAL)
def test_a_causal_word_depends_on_the_image_and_on_words_up_to_itself(seen, case):
    module, params = seen(case)[:2]
    image, text, *masks = inputs()

    @jax.jit
    def slopes(image, text):
        return jax.jacobian(
            lambda image, text: tuple(
                bind(module, params, image, text, *masks, causal=True)[k][0].sum(axis=-1)
                for k in (0, 1)
            ),
            argnums=(0, 1),
        )(image, text)

    (image_image, image_text), (text_image, text_text) = slopes(image, text)
    reads = (text_text[:, 0] != 0).any(axis=-1)  # [word, word]
    np.testing.assert_array_equal(reads, np.tri(T, dtype=bool))
    assert (text_image[:, 0] != 0).any() and (image_image[:, 0] != 0).any()
    assert (image_text == 0).all()


@pytest.mark.parametrize("scan_layers", [False, True])
@every_kind
def test_every_parameter_has_a_place_on_the_mesh(case, scan_layers):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def leaves(**fields):
        module = build(case, scan_layers=scan_layers, **fields)
        shapes = jax.eval_shape(
            lambda: module.init(jax.random.key(0), *inputs(), train=False, method=call)
        )["params"]
        param_specs(shapes, RULES, mesh)
        return {path: leaf.shape for path, leaf in paths.leaves(shapes).items()}

    plain, more = leaves(), leaves(qk_norm=True, layer_scale=0.1)
    assert plain.items() <= more.items()

    def count(pattern, found):
        return sum(re.search(pattern, path) is not None for path in found)

    # A norm of every query and key, a scale of every residual branch.
    added = more.keys() - plain.keys()
    assert count("(query|key)_norm/scale$", added) == count("(query|key)/kernel$", plain)
    branches = count("(attention|mlp|reads)_norm/scale$", plain)
    assert count("_layer_scale/scale$", added) == branches


def test_nothing_changes_but_the_name():
    """One switch: the shipped recipe's fusion, under every name."""
    from configs import shapes_vqa

    fields = shapes_vqa.get_config().model.fusion.to_dict()
    fields.pop("form", None)
    for name in registry.names(PACKAGE):
        registry.build(PACKAGE, "model.fusion", {**fields, "name": name})


def test_a_field_of_another_kind_is_an_error_that_lists_its_own():
    for name, field in (("merged_attention", "placement"), ("gated", "form")):
        with pytest.raises(MmflaxError, match=f"fusion.{field} is not a known key.*num_heads"):
            registry.build(PACKAGE, "fusion", {"name": name, **FIELDS, field: "late"})
    for name, field, known in (
        ("gated", "placement", "early, late, hybrid"),
        ("cross_attention", "direction", "text_reads_image, image_reads_text"),
        ("elementwise", "operation", "sum, product"),
        ("concat", "norm_style", "pre, post"),
    ):
        module = registry.build(PACKAGE, "fusion", {"name": name, **FIELDS, field: "none"})
        with pytest.raises(MmflaxError, match=f"{field} is 'none'.*{known}"):
            jax.eval_shape(lambda m=module: m.init(jax.random.key(0), *inputs(), train=False))
