"""Statements about one picture or two: the pair form, its order, and consistency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.models.encoders.bert import build as build_bert
from mmflax.models.encoders.vit import build as build_vit
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import reasoning
from mmflax.tasks.inputs import pair_rows
from tests.tasks import pairs


def build(**fields):
    return reasoning.build(backbone=pairs.backbone(), num_answers=2, **fields)


@pytest.fixture(scope="module")
def batch():
    return pairs.batch() | {"label": jnp.asarray([0, 1, 1, 0], jnp.int32)}


@pytest.mark.parametrize("images", [1, 2])
def test_learns_one_batch(images, batch):
    losses = pairs.losses(build(images=images), batch)
    assert losses[-1] < 0.2 * losses[0]


def test_the_head_reads_both_pooled_pairs_in_order(batch):
    """One pass over 2b rows gives what two passes give."""
    task = build()
    params = pairs.init(task, batch)
    found = task.model.apply({"params": params}, batch, train=False)
    backbone = {"params": params["backbone"]}
    pooled = [
        task.model.backbone.apply(
            backbone, batch[name], batch["tokens"], batch["text_mask"], train=False
        ).pooled
        for name in ("image", "second_image")
    ]
    head = {"params": params["head"]}
    expected = task.model.head.apply(head, jnp.concatenate(pooled, axis=-1))
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)
    assert found["image_mask"].shape == (4, pairs.IMAGE_TOKENS)
    swapped = {**batch, "image": batch["second_image"], "second_image": batch["image"]}
    other = task.model.apply({"params": params}, swapped, train=False)["logits"]
    assert (jnp.abs(other - found["logits"]) > 1e-3).any()


@pytest.mark.parametrize("name", ["co_attention", "merged_attention", "bridge"])
def test_with_three_types_each_picture_has_its_own(name, batch):
    """As two passes that are told which picture it is; the same picture twice is then no tie."""
    fields = dict(width=16, depth=1, num_heads=2, num_types=3, mlp_dim=16)
    fusion = registry.build("mmflax.models.fusion", "fusion", {"name": name, **fields})
    image = build_vit(width=16, depth=1, num_heads=2, patch_size=4, image_size=8)
    text = build_bert(width=16, depth=1, num_heads=2, vocab_size=20, max_length=5)
    backbone = VisionLanguageModel(image, text, fusion)
    task = reasoning.build(backbone=backbone, num_answers=2)
    params = pairs.init(task, batch)
    run = jax.jit(lambda b: task.model.apply({"params": params}, b, train=False)["logits"])

    def look(name, image_type):
        inputs = batch[name], batch["tokens"], batch["text_mask"], None
        kind = jnp.full(4, image_type)
        return backbone.apply({"params": params["backbone"]}, *inputs, kind, train=False).pooled

    pooled = jnp.concatenate([look("image", 1), look("second_image", 2)], axis=-1)
    expected = task.model.head.apply({"params": params["head"]}, pooled)
    np.testing.assert_allclose(run(batch), expected, rtol=1e-4, atol=1e-5)
    assert jnp.abs(look("image", 1) - look("image", 2)).max() > 1e-3


def test_examples_do_not_mix(batch):
    task = build()
    params = pairs.init(task, batch)
    run = jax.jit(task.predict)
    changed = {**batch, "second_image": batch["second_image"].at[1].add(1.0)}
    moved = jnp.abs(run(params, batch)["logits"] - run(params, changed)["logits"]).max(axis=1)
    assert moved[1] > 1e-3 and (moved[jnp.asarray([0, 2, 3])] < 1e-5).all()


@pytest.mark.parametrize("absent", ["image_mask", "image_present"])
def test_absent_pictures_are_both_absent(absent, batch):
    task = build()
    params = pairs.init(task, batch)
    run = jax.jit(task.predict)
    shape = (4, pairs.IMAGE_TOKENS) if absent == "image_mask" else (4,)
    blind = {**batch, absent: jnp.zeros(shape, bool)}
    other = {**blind, "image": blind["image"] + 1, "second_image": blind["second_image"] - 1}
    np.testing.assert_array_equal(run(params, blind)["logits"], run(params, other)["logits"])
    assert (run(params, blind)["logits"] != run(params, batch)["logits"]).any()


def test_words_are_grounded_in_the_first_picture(batch):
    task = build(caption_words=1.0)
    batch = pairs.captioned(batch)
    params = pairs.init(task, batch)

    @jax.jit
    def words(batch):
        outputs = task.model.apply({"params": params}, batch, train=False)
        return outputs["words"], task.loss(outputs, batch) - build().loss(outputs, batch)

    found, extra = words(batch)
    assert found.shape == (4, pairs.IMAGE_TOKENS, 20) and (extra > 0).all()
    for name, same in (("second_image", True), ("image", False)):
        other, _ = words({**batch, name: batch[name] + 1})
        assert np.allclose(found, other, atol=1e-5) == same
    _, absent = words({**batch, "image_present": jnp.asarray([True, False, True, True])})
    assert absent[1] == 0 and absent[0] > 0


def test_a_split_is_judged_by_consistency():
    answers = ("false", "true")
    rows = pairs.records(
        ["true", "false", "true"], [[0, 1], [0, 1], [0, 1]], answers, group=["s", "s", "t"]
    )
    assert build().score(rows) == {"accuracy": pytest.approx(2 / 3), "consistency": 0.5}
    assert build().score([{**rows[0], "group": None}]) == {}


def test_one_picture_where_two_are_needed_is_one_sentence(batch):
    batch = {name: value for name, value in batch.items() if name != "second_image"}
    with pytest.raises(MmflaxError, match="give --config.task.images=1"):
        pair_rows(batch)
    with pytest.raises(MmflaxError, match="task.images is 3; expected 1"):
        build(images=3)
