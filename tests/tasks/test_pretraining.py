"""The pretraining task: every objective learns, a mixture is their sum, errors are clear."""

import functools
import importlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmflax.distributed.mesh import compile_step, make_mesh, put_batch
from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert, regions, vit
from mmflax.models.fusion import bridge, co_attention
from mmflax.models.fusion.base import Fused, FusionBase
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import pretraining
from mmflax.training.state import create_sharded
from mmflax.training.step import make_train_step
from tests.toy_backbone import VOCAB, toy_backbone

ROWS, LENGTH = 8, 6
WORDS = dict(vocab_size=VOCAB, pad_id=0, cls_id=2, sep_id=3, mask_id=4)
CONTINUATION = tuple(i > 20 for i in range(VOCAB))


def make_batch(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, VOCAB, (rows, LENGTH)).astype(np.int32)
    tokens[:, 0] = 2
    used = np.arange(LENGTH) < 3 + np.arange(rows)[:, None] % 4
    scores = rng.random((rows, 3, 5)).astype(np.float32)
    return {
        "image": rng.normal(size=(rows, 8, 8, 3)).astype(np.float32),
        "tokens": np.where(used, tokens, 0).astype(np.int32),
        "text_mask": used,
        "label": np.full(rows, -1, np.int32),
        "question_type": np.zeros(rows, np.int32),
        "mask": np.ones(rows, bool),
        "image_key": np.arange(rows, dtype=np.int32) // 2 * 2 + np.arange(rows) % 2 * (rows > 2),
        "target": np.where(used, tokens, 0).astype(np.int32),
        "target_mask": used,
        "regions": rng.normal(size=(rows, 3, 7)).astype(np.float32),
        "boxes": rng.random((rows, 3, 4)).astype(np.float32),
        "region_labels": scores / scores.sum(-1, keepdims=True),
    }


@pytest.fixture(scope="module")
def batch():
    return {name: jnp.asarray(value) for name, value in make_batch().items()}


def build(backbone=None, **objectives):
    backbone = backbone or toy_backbone(one_way="prefix_lm" in objectives)
    return pretraining.build(
        backbone=backbone, objectives=objectives, continuation=CONTINUATION, **WORDS
    )


def init(task, batch):
    """Parameters of the model's shapes, drawn by numpy: initializers take seconds to compile."""
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        center = 1.0 if path[-1].key == "scale" else 0.0
        spread = leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.1
        return jnp.asarray(center + spread * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


REGIONS = regions.build(
    width=16, num_heads=2, form="uniter", feature_dim=7, num_regions=3, mask_embedding=True
)
# objective -> (fields, learning rate, metrics beside the loss)
CASES: dict[str, tuple[dict[str, Any], float, set[str]]] = {
    "itc": (dict(embed_dim=8), 0.3, {"in_batch_recall/i2t", "in_batch_recall/t2i"}),
    "itm": ({}, 0.3, {"itm_accuracy"}),
    "mlm": (dict(whole_word=True), 0.3, {"mlm_accuracy"}),
    "masked_patch": ({}, 3.0, set()),
    "masked_region": ({}, 0.05, {"masked_region_accuracy"}),
    "prefix_lm": ({}, 0.3, set()),
    "captioning": (dict(decoder=dict(depth=1)), 0.3, set()),
    "cycle": (dict(dim=8), 0.3, set()),
    # The discriminator alone; against it the loss need not fall.
    "adversarial": (dict(dim=8, reverse=0.0), 3.0, {"adversarial_accuracy"}),
    "cca": (dict(dim=2), 0.1, {"cca_correlation"}),
}


def test_every_objective_has_a_case():
    assert set(CASES) == set(pretraining.names())


@pytest.mark.parametrize("name", CASES)
def test_each_objective_learns_one_batch(name, batch):
    fields, rate, own = CASES[name]
    backbone = toy_backbone().clone(image_encoder=REGIONS) if name == "masked_region" else None
    task = build(backbone, **{name: fields})
    params = init(task, batch)
    assert f"objectives_{name}" in params

    @jax.jit
    def step(params):
        def mean_loss(params):
            # Evaluation's fixed draw, so that each step sees the same problem.
            outputs = task.model.apply({"params": params}, batch, train=False)
            return task.loss(outputs, batch).mean(), task.metrics(outputs, batch)

        (loss, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), loss, metrics

    losses = []
    for _ in range(15):
        params, loss, metrics = step(params)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0]), losses
    assert set(metrics) == {f"loss/{name}"} | own
    for total, count in metrics.values():
        assert total.shape == count.shape == (ROWS,) and count.sum() > 0


def test_hidden_regions_are_those_of_the_encoders_own_mask_embedding(batch):
    """What hidden regions hold does not matter, the encoder's row for them does."""
    task = build(toy_backbone().clone(image_encoder=REGIONS), masked_region=dict(rate=0.5))
    params = init(task, batch)

    @jax.jit
    def run(params, batch):
        outputs = task.model.apply({"params": params}, batch, train=False)
        return outputs["masked_region"]

    found = run(params, batch)
    chosen = found["chosen"][..., None]
    assert (found["chosen"].sum(axis=1) >= 1).all() and not found["chosen"].all()
    other = {**batch, "regions": jnp.where(chosen, 9.0, batch["regions"])}
    # The clean pass gives no tokens to this objective but the words'.
    np.testing.assert_allclose(run(params, other)["features"], found["features"], rtol=1e-5)
    changed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + float("hidden_embedding" in str(path)), params
    )
    assert (jnp.abs(run(changed, batch)["features"] - found["features"]) > 1e-4).any()


def test_training_draws_anew_and_evaluation_repeats_itself(batch):
    task = build(itm=1.0, mlm=1.0, masked_patch=1.0)
    params = init(task, batch)

    @functools.partial(jax.jit, static_argnums=1)
    def losses(key, train):
        rngs = {"dropout": key} if train else {}
        return task.model.apply({"params": params}, batch, train=train, rngs=rngs)["losses"]

    first, second = losses(jax.random.key(1), True), losses(jax.random.key(2), True)
    for name in first:
        assert (first[name] != second[name]).any(), name
    jax.tree.map(np.testing.assert_array_equal, first, losses(jax.random.key(1), True))


MIX = dict(
    itc=dict(weight=0.5, embed_dim=8), itm=2.0, mlm=dict(weight=1.5), cycle=dict(weight=0.1, dim=8)
)


def test_a_mixture_is_the_weighted_sum(batch):
    task = build(**MIX)
    params = init(task, batch)

    @jax.jit
    def run(params):
        outputs = task.model.apply({"params": params}, batch, train=False)
        return task.loss(outputs, batch), task.metrics(outputs, batch)

    loss, metrics = run(params)
    parts = {name: metrics[f"loss/{name}"] for name in MIX}
    weighted = sum(
        np.float32(w) * np.asarray(parts[name][0])
        for name, w in dict(itc=0.5, itm=2.0, mlm=1.5, cycle=0.1).items()
    )
    np.testing.assert_allclose(loss, weighted, rtol=1e-6)
    for value, count in parts.values():
        assert (np.asarray(value) > 0).all() and (np.asarray(count) == 1).all()


def test_an_objective_is_worth_the_same_alone_and_in_a_mixture(batch):
    """Masks are drawn from fixed keys in evaluation, so parameters alone decide."""
    mix, alone = build(**MIX), build(mlm=1.0)
    params = init(mix, batch)
    own = {name: params[name] for name in ("backbone", "objectives_mlm")}
    first = jax.jit(lambda p: mix.model.apply({"params": p}, batch, train=False)["losses"]["mlm"])
    second = jax.jit(lambda p: alone.model.apply({"params": p}, batch, train=False)["losses"])
    np.testing.assert_allclose(first(params), second(own)["mlm"], rtol=1e-5)


def absent(batch, image=(), text=(), padding=()):
    rows = np.arange(ROWS)
    return {
        **batch,
        "image_present": jnp.asarray(~np.isin(rows, image)),
        "text_mask": batch["text_mask"] & jnp.asarray(~np.isin(rows, text))[:, None],
        "mask": jnp.asarray(~np.isin(rows, padding)),
    }


def test_rows_without_image_or_text_or_only_padding_take_no_part(batch):
    names = dict.fromkeys(("itc", "itm", "cycle", "adversarial"), 1.0) | {"cca": dict(dim=2)}
    task = build(**names)
    params = init(task, batch)
    run = jax.jit(lambda batch: task.model.apply({"params": params}, batch, train=False)["losses"])
    part = absent(batch, image=[0], text=[1], padding=[2])
    found = run(part)
    # What the rows out of use hold must not matter to anyone.
    other = {
        **part,
        "image": part["image"].at[:3].add(jnp.asarray([[[[1.0]]], [[[0.0]]], [[[2.0]]]])),
        "tokens": part["tokens"].at[1].set(7),
    }
    again = run(other)
    for name in names:
        np.testing.assert_array_equal(found[name][:3], 0, err_msg=name)
        assert (found[name][3:] != 0).all(), name
        np.testing.assert_allclose(again[name], found[name], rtol=1e-5, err_msg=name)


def test_the_adversary_turns_the_gradient_of_the_encoders_alone(batch):
    tasks = [build(adversarial=dict(dim=8, reverse=r)) for r in (1.0, -1.0)]
    params = init(tasks[0], batch)

    def grads(task):
        def total(params):
            return task.loss(task.model.apply({"params": params}, batch, train=False), batch).sum()

        return jax.jit(jax.grad(total))(params)

    turned, plain = map(grads, tasks)
    opposite = lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(opposite, turned["backbone"], plain["backbone"])
    ours = [g["objectives_adversarial"] for g in (turned, plain)]
    jax.tree.map(opposite, *[g["pair"] for g in ours])
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(same, *[g["discriminator"] for g in ours])
    assert np.abs(plain["backbone"]["image_encoder"]["patches"]["kernel"]).max() > 0


@pytest.mark.parametrize("fusion", ["toy", "cross_attention", "merged_attention"])
def test_prefix_lm_sees_no_later_word(batch, fusion):
    """A changed word changes no score before it, not by way of the image either."""
    backbone = None
    if fusion != "toy":
        sizes = dict(width=16, num_heads=2, depth=2)
        text = bert.build(vocab_size=VOCAB, max_length=8, **sizes | {"depth": 1})
        kind = importlib.import_module(f"mmflax.models.fusion.{fusion}")
        backbone = toy_backbone().clone(text_encoder=text, fusion=kind.build(**sizes))
    task = build(backbone, prefix_lm=1.0)
    params = init(task, batch)

    def scores(tokens):
        other = {**batch, "tokens": tokens, "text_mask": jnp.ones_like(batch["text_mask"])}
        return task.model.apply({"params": params}, other, train=False)["prefix_lm"]["logits"]

    run = jax.jit(scores)
    plain, changed = run(batch["tokens"]), run(batch["tokens"].at[:, 3].set(9))
    np.testing.assert_array_equal(plain[:, :3], changed[:, :3])
    assert (plain[:, 3:] != changed[:, 3:]).any()


def test_captioning_does_not_see_the_text_it_is_to_write(batch):
    task = build(captioning=dict(decoder=dict(depth=1)))
    params = init(task, batch)
    run = jax.jit(lambda b: task.model.apply({"params": params}, b, train=False)["losses"])
    plain = run(batch)["captioning"]
    other_text = run({**batch, "tokens": batch["tokens"] + 1})["captioning"]
    np.testing.assert_array_equal(plain, other_text)
    assert (plain != run({**batch, "image": batch["image"] * 2})["captioning"]).all()


def check(task, batch, match):
    with pytest.raises(MmflaxError, match=match) as error:
        jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    assert str(error.value).count(". ") == 0


def test_what_cannot_be_fed_is_one_sentence_before_training(batch):
    bare = {k: v for k, v in batch.items() if not k.startswith(("region", "target"))}
    check(build(captioning=1.0), bare, "needs 'target'.*processor.target_length")
    toy = toy_backbone()
    check(build(masked_region=1.0), batch, "masked_region.*ToyImage reads pixels")
    check(build(toy.clone(image_encoder=REGIONS), itc=1.0), bare, "needs 'regions'.*detector")
    check(build(toy.clone(image_encoder=REGIONS), masked_patch=1.0), batch, "lie on no grid")
    two_way = co_attention.build(width=16, depth=1, num_heads=2)
    check(build(toy.clone(fusion=two_way), prefix_lm=1.0), bare, "CoAttention does not have.*cross")
    plain = build(toy.clone(fusion=NotCausal()), prefix_lm=1.0)
    check(plain, bare, "NotCausal does not have.*merged_attention")


def test_a_fusion_that_reads_the_encoders_layers_is_refused_where_it_runs_again(batch):
    sizes = dict(width=16, num_heads=2, depth=1)
    deep = toy_backbone().clone(
        image_encoder=vit.build(image_size=8, patch_size=4, **sizes),
        text_encoder=bert.build(vocab_size=VOCAB, max_length=8, **sizes),
        fusion=bridge.build(**sizes),
    )
    check(build(deep, mlm=1.0), batch, "Bridge.* reads layers inside the encoders.*another fusion")
    task = build(deep, itc=1.0)  # no second pass
    jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))


class NotCausal(FusionBase):
    def __call__(self, image, text, image_mask, text_mask, *, train):
        return Fused(image, text, text[:, 0])


@pytest.mark.parametrize(
    ("objectives", "match"),
    [
        ({}, "task.objectives is empty; name one or more of adversarial, .*prefix_lm"),
        (dict(itmm=1.0), "itmm.name is 'itmm', which does not exist, did you mean 'itm'"),
        (
            dict(mlm=dict(wholeword=True)),
            "mlm.wholeword is not a known key, did you mean 'whole_word'",
        ),
        (dict(mlm=-1.0), "weight -1.0; expected a number, 0 or above"),
        (dict(mlm=True), "weight True"),
        (dict(itc=dict(kind="triplet")), "kind is 'triplet'; expected one of clip, nt_xent"),
        (dict(itc=dict(bias=1.0)), "kind 'clip' has no bias"),
        (dict(masked_patch=dict(norm="l3")), "expected l1 or l2"),
        (dict(masked_patch=dict(ratio=1.5)), "ratio is 1.5"),
        (dict(mlm=dict(rate=0.0)), "rate is 0.0"),
        (dict(cycle=dict(kind="l3")), "kind is 'l3'"),
    ],
)
def test_mistakes_are_one_sentence(objectives, match):
    with pytest.raises(MmflaxError, match=match):
        build(**objectives)


def test_whole_words_need_to_know_the_pieces():
    with pytest.raises(MmflaxError, match="all 30 words .*knows of 0"):
        pretraining.build(
            backbone=toy_backbone(), objectives=dict(mlm=dict(whole_word=True)), **WORDS
        )


def test_two_of_a_kind_and_a_module_of_ones_own(batch):
    task = build(
        itc=dict(embed_dim=8), siglip=dict(name="itc", kind="sigmoid", embed_dim=8),
        mine=dict(name="mmflax.tasks.objectives.cycle", dim=8, weight=0.5),
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    assert {"objectives_itc", "objectives_siglip", "objectives_mine"} <= set(shapes["params"])
    outputs = jax.eval_shape(lambda: task.model.init_with_output(
        jax.random.key(0), batch, train=False)[0])  # fmt: skip
    assert {"loss/itc", "loss/siglip", "loss/mine", "in_batch_recall/i2t/siglip"} <= set(
        outputs["metrics"]
    )


def one_step(task, mesh, rows):
    """(parameters, metrics) after one SGD step of the trainer on that mesh."""
    host = make_batch(rows)

    params = init(task, {name: jnp.asarray(value[:1]) for name, value in host.items()})

    def apply(params, batch, key, train):
        return task.model.apply({"params": params}, batch, train=train, rngs={"dropout": key})

    tx = optax.sgd(0.1)
    # The toy's dense layers split by their input, like any layer without a rule of its own.
    rules = [(r"(image|text)_projection/kernel$", ("fsdp", None)), ("", ())]
    state = create_sharded(lambda key: params, tx, jax.random.key(0), mesh, rules)
    step = make_train_step(apply, task.loss, task.metrics, tx)
    batch = put_batch(host, mesh)
    compiled = compile_step(step, state, batch, mesh)
    state, metrics = compiled(state, batch)
    return jax.tree.map(np.asarray, (state.params, metrics)), compiled.as_text()


SHARDED = {
    "contrast": dict(
        itc=dict(embed_dim=8), siglip=dict(name="itc", kind="sigmoid", embed_dim=8, weight=0.5)
    ),
    "draws": dict(
        itc=dict(kind="nt_xent", embed_dim=8), itm=dict(negative_group=3), mlm=1.0, masked_patch=1.0
    ),
}


@pytest.mark.parametrize("mixture", ["contrast", pytest.param("draws", marks=pytest.mark.slow)])
def test_a_sharded_step_is_the_step_of_one_device(mixture):
    """Contrast goes round a ring inside the trainer's own compiled step, no features are gathered;
    and draws do not depend on the mesh."""
    rows = 24
    task = build(**SHARDED[mixture])
    alone, _ = one_step(task, make_mesh(1, 1, 1, devices=jax.devices()[:1]), rows)
    parts, text = one_step(task, make_mesh(4, 2, 1), rows)
    assert "collective-permute" in text and not re.search(rf"f32\[{rows},", text)
    compare = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6)
    jax.tree.map(compare, parts, alone)
    assert {f"loss/{name}" for name in SHARDED[mixture]} <= set(alone[1])


@pytest.mark.slow
def test_every_objective_with_the_real_encoders(batch):
    sizes = dict(width=16, num_heads=2, depth=1, mlp_dim=32)
    backbone = VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, **sizes),
        bert.build(vocab_size=VOCAB, max_length=8, **sizes),
        co_attention.build(**sizes),
    )
    fields = {
        name: case[0] for name, case in CASES.items() if name not in ("prefix_lm", "masked_region")
    }
    fields["adversarial"] = dict(dim=8)
    task = build(backbone, **fields)
    params = init(task, batch)

    @jax.jit
    def step(params):
        def mean_loss(params):
            outputs = task.model.apply({"params": params}, batch, train=False)
            return task.loss(outputs, batch).mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, grads), loss, grads

    losses = []
    for _ in range(10):
        params, loss, grads = step(params)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    idle = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not (jnp.abs(grad) > 1e-6).any()
    }
    # Neither keys nor correlations see a constant.
    assert all(re.search("/key/bias|objectives_cca/.*/bias", name) for name in idle), idle
