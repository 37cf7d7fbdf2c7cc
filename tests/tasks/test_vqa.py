"""The VQA task: outputs, per-example loss and metrics, and the two published heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.distributed.mesh import RULES, make_mesh, param_specs
from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert, vit
from mmflax.models.encoders.base import TextEncoderBase
from mmflax.models.fusion import co_attention
from mmflax.models.heads import BagOfWords, VQAHead
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import vqa
from mmflax.tasks.task import Task
from tests.tasks import pairs

TYPES = ("colour", "count")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32),
        "tokens": jnp.asarray(rng.integers(5, 20, (4, 5)), jnp.int32),
        "text_mask": jnp.ones((4, 5), bool),
        "label": jnp.asarray([0, 2, -1, 1], jnp.int32),
        "question_type": jnp.asarray([0, 1, 1, 1], jnp.int32),
    }


def build(form="meter", **fields):
    sizes = dict(width=16, num_heads=2, depth=1, mlp_dim=32)
    backbone = VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, **sizes),
        bert.build(vocab_size=20, max_length=8, **sizes),
        co_attention.build(form=form, **sizes),
    )
    return vqa.build(backbone=backbone, num_answers=3, head=dict(form=form), **fields)


@pytest.mark.parametrize("form", ["meter", "lxmert"])
def test_model_gives_logits_and_learns_one_batch(form, batch):
    task = build(form)
    assert isinstance(task, Task)
    params = jax.jit(lambda key: task.model.init(key, batch, train=False))(jax.random.key(0))

    @jax.jit
    def step(params):
        def mean_loss(params):
            outputs = task.model.apply(params, batch, train=True)
            return task.loss(outputs, batch).mean(), outputs

        (loss, outputs), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), loss, outputs

    losses = []
    for _ in range(30):
        params, loss, outputs = step(params)
        losses.append(float(loss))
    assert outputs["logits"].shape == (4, 3) and outputs["logits"].dtype == jnp.float32
    assert losses[-1] < 0.2 * losses[0]


def test_image_mask_in_the_batch_is_honoured(batch):
    task = build()
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
    run = jax.jit(lambda batch: task.model.apply(params, batch, train=False)["logits"])
    blind = {**batch, "image_mask": jnp.zeros((4, 5), bool)}
    other = {**blind, "image": blind["image"] + 1.0}
    np.testing.assert_array_equal(run(blind), run(other))
    assert (run(blind) != run(batch)).any()


def test_metrics_are_sums_and_counts_per_example(batch):
    task = build(question_types=TYPES)
    logits = jnp.asarray([[9.0, 0, 0], [9.0, 0, 0], [9.0, 0, 0], [0, 9.0, 0]])
    metrics = task.metrics({"logits": logits}, batch)
    assert set(metrics) == {"accuracy", "accuracy/colour", "accuracy/count"}
    expected = {
        "accuracy": ([1, 0, 0, 1], [1, 1, 1, 1]),
        "accuracy/colour": ([1, 0, 0, 0], [1, 0, 0, 0]),
        "accuracy/count": ([0, 0, 0, 1], [0, 1, 1, 1]),
    }
    for name, (total, count) in expected.items():
        np.testing.assert_array_equal(metrics[name][0], total)
        np.testing.assert_array_equal(metrics[name][1], count)


def test_without_question_types_none_are_read(batch):
    batch = {name: value for name, value in batch.items() if name != "question_type"}
    assert set(build().metrics({"logits": jnp.zeros((4, 3))}, batch)) == {"accuracy"}


def test_loss_smooths_and_skips_unknown_answers(batch):
    logits = jnp.asarray([[3.0, 0, 0]] * 4)
    plain = build().loss({"logits": logits}, batch)
    smooth = build(label_smoothing=0.2).loss({"logits": logits}, batch)
    assert plain.shape == (4,) and plain[2] == smooth[2] == 0
    assert smooth[0] > plain[0] and smooth[1] < plain[1]


def test_head_forms():
    pooled = jnp.ones((2, 8))

    def shapes(head):
        variables = jax.eval_shape(lambda: head.init(jax.random.key(0), pooled))
        return jax.tree.map(lambda leaf: leaf.shape, variables["params"])

    # METER: 1536 -> 1536 -> n; LXMERT: 768 -> 1536 -> n.
    assert shapes(VQAHead(3, form="meter"))["fc1"]["kernel"] == (8, 8)
    assert shapes(VQAHead(3, form="lxmert"))["fc1"]["kernel"] == (8, 16)
    assert shapes(VQAHead(3, hidden_dim=5))["norm"]["scale"] == (5,)
    with pytest.raises(MmflaxError, match="form is 'mlp'.*meter, lxmert"):
        shapes(VQAHead(3, form="mlp"))


@pytest.mark.parametrize("form", ["meter", "lxmert"])
def test_head_order_of_norm_and_activation(form):
    """METER: norm, then GELU, so a constant hidden layer is 0 at the end; LXMERT the same by norm.

    With scale 0 and bias 1 in the norm, METER's output is GELU(1) and LXMERT's 1.
    """
    head = VQAHead(1, form=form, hidden_dim=4)
    params = {
        "fc1": {"kernel": jnp.ones((2, 4)), "bias": jnp.arange(4.0)},
        "norm": {"scale": jnp.zeros(4), "bias": jnp.ones(4)},
        "fc2": {"kernel": jnp.full((4, 1), 0.25), "bias": jnp.zeros(1)},
    }
    out = head.apply({"params": params}, jnp.ones((1, 2)))
    np.testing.assert_allclose(out, 0.8413447 if form == "meter" else 1.0, rtol=1e-6)


def test_caption_words_reach_encoder_and_word_table_alone(batch):
    """The extra loss trains what grounds words: the image encoder and the table, not the fusion.

    Also as compiled here, where a number computed twice may differ in its last digit.
    """
    task = build(caption_words=1.0)
    batch = {
        **batch,
        "caption": jnp.asarray([[6, 7], [8, 8], [9, 5], [5, 0]], jnp.int32),
        "caption_mask": jnp.asarray([[1, 1], [1, 1], [1, 1], [1, 0]], bool),
        "label": jnp.full(4, -1, jnp.int32),  # no answer, so no other gradient
    }
    params = pairs.init(task, batch)

    @jax.jit
    @jax.grad
    def gradient(params):
        outputs = task.model.apply({"params": params}, batch, train=False)
        return task.loss(outputs, batch).sum()

    grads = gradient(params)

    def size(tree):
        return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    assert size(grads["backbone"]["image_encoder"]) > 0
    assert size(grads["backbone"]["text_encoder"]["word_embedding"]) > 0
    assert size(grads["backbone"]["fusion"]) == 0 and size(grads["head"]) == 0


def test_caption_words_without_captions_is_one_sentence(batch):
    task = build(caption_words=1.0)
    outputs = {"words": jnp.zeros((4, 4, 20)), "image_mask": jnp.ones((4, 5), bool)}
    with pytest.raises(MmflaxError, match="give --config.processor.caption_length=TOKENS"):
        task.loss({"logits": jnp.zeros((4, 3)), **outputs}, batch)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_words_are_not_sought_in_an_image_that_is_not_there(loss, batch):
    """Absent by the batch, or dropped by the model: both stand in `image_mask` of the outputs."""
    plain, task = build(loss=loss), build(loss=loss, caption_words=1.0)
    batch = pairs.captioned(batch) | {
        "answer_scores": jnp.full((4, 3), 0.3),
        "image_present": jnp.asarray([True, False, True, True]),
    }
    params = pairs.init(task, batch)
    outputs = task.model.apply({"params": params}, batch, train=False)
    np.testing.assert_array_equal(outputs["image_mask"].any(axis=1), batch["image_present"])
    extra = task.loss(outputs, batch) - plain.loss(outputs, batch)
    assert extra[1] == 0 and (extra[jnp.asarray([0, 2, 3])] > 0).all()


SCORES = jnp.asarray([[1.0, 0.3, 0], [0, 0.6, 0.9], [0, 0, 0], [0.3, 0.3, 0]])


def test_sigmoid_learns_soft_answers(batch):
    task = build(loss="sigmoid", question_types=TYPES)
    batch = {**batch, "answer_scores": SCORES}
    logits = jnp.asarray([[2.0, -1, 0], [0, 1, 3], [-5, -5, -4], [0, 1, 0]])
    p = jax.nn.sigmoid(logits)
    expected = -(SCORES * jnp.log(p) + (1 - SCORES) * jnp.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(task.loss({"logits": logits}, batch), expected, rtol=1e-5)
    metrics = task.metrics({"logits": logits}, batch)
    np.testing.assert_allclose(metrics["vqa_score"][0], [1.0, 0.9, 0, 0.3])
    np.testing.assert_allclose(metrics["vqa_score/count"][0], [0, 0.9, 0, 0.3])
    np.testing.assert_array_equal(metrics["vqa_score/count"][1], [0, 1, 1, 1])
    small = vqa.build(backbone=pairs.backbone(), num_answers=3, loss="sigmoid")
    learned = pairs.losses(small, batch, steps=60, rate=0.1)
    floor = -(SCORES * jnp.log(SCORES + 1e-9) + (1 - SCORES) * jnp.log(1 - SCORES + 1e-9)).sum(1)
    assert learned[-1] - floor.mean() < 0.2 * (learned[0] - floor.mean())


def test_sigmoid_without_soft_answers_is_one_sentence(batch):
    with pytest.raises(MmflaxError, match="give --config.processor.soft_answers=True"):
        build(loss="sigmoid").loss({"logits": jnp.zeros((4, 3))}, batch)
    with pytest.raises(MmflaxError, match="task.loss is 'bce'; known: softmax, sigmoid"):
        build(loss="bce")
    with pytest.raises(
        MmflaxError, match="give --config.task.label_smoothing=0.0 or --config.task.l"
    ):
        build(loss="sigmoid", label_smoothing=0.1)


def test_a_split_is_scored_by_the_official_accuracy():
    answers = ("2", "cat")
    rows = pairs.records(
        ["2", "cat"], [[1, 0], [1, 0]], answers,
        answers=[["two"] * 4 + ["2 cats"] * 6, ["a cat"] * 9 + ["2"]],
        question_type=["count", "what"],
    )  # fmt: skip
    task = build()
    assert task.score(rows) == pytest.approx(
        {"vqa_accuracy": 0.65, "vqa_accuracy/count": 1.0, "vqa_accuracy/what": 0.3}
    )
    assert task.score([{**rows[0], "answers": None}, rows[1]]) == {}


def test_predict_gives_the_logits(batch):
    task = build()
    params = pairs.init(task, batch)
    found = jax.jit(task.predict)(params, batch)
    outputs = task.model.apply({"params": params}, batch, train=False)
    assert set(found) == {"logits"}
    np.testing.assert_allclose(found["logits"], outputs["logits"], rtol=1e-5, atol=1e-6)


def test_a_bag_of_words_is_read_beside_the_pair(batch):
    task = build(bag_of_words=6)
    params = task.model.init(jax.random.key(0), batch, train=False)["params"]
    outputs = task.model.apply({"params": params}, batch, train=False)
    assert outputs["logits"].shape == (4, 3)
    assert params["bag"]["word_embedding"].shape == (20, 6)
    assert params["bag"]["places"]["kernel"].shape == (5 * 16, 6)  # CLS and 4 patches
    assert params["head"]["fc1"]["kernel"].shape[0] == 2 * 16 + 3 * 6


def test_the_bag_is_the_sum_of_words_times_a_map_of_all_places():
    tokens = jnp.asarray([[5, 7, 7, 0]])
    mask, image_mask = jnp.asarray([[True, True, True, False]]), jnp.asarray([[True, True, False]])
    image = jax.random.normal(jax.random.key(1), (1, 3, 4))
    bag = BagOfWords(6, 20)
    variables = bag.init(jax.random.key(0), tokens, mask, image, image_mask)
    words, places = variables["params"]["word_embedding"], variables["params"]["places"]
    text = np.asarray(words[5] + 2 * words[7])
    seen = np.asarray(jnp.where(image_mask[..., None], image, 0)).reshape(1, -1)
    picture = (seen @ np.asarray(places["kernel"]) + np.asarray(places["bias"]))[0]
    expected = np.concatenate([np.maximum(picture, 0), np.maximum(text, 0), picture * text])
    given = bag.apply(variables, tokens, mask, image, image_mask)[0]
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("absent", ["image", "text"])
def test_nothing_of_an_absent_modality_reaches_the_bag(batch, absent):
    task = build(bag_of_words=6)
    params = task.model.init(jax.random.key(0), batch, train=False)["params"]
    if absent == "image":
        rows = {"image_present": jnp.zeros(4, bool)}
        other = {"image": batch["image"] + 1}
    else:
        rows = {"text_mask": jnp.zeros((4, 5), bool)}
        other = {"tokens": jnp.full((4, 5), 10**6, jnp.int32)}

    def logits(**changes):
        return task.model.apply({"params": params}, batch | rows | changes, train=False)["logits"]

    np.testing.assert_array_equal(logits(), logits(**other))
    assert np.isfinite(logits()).all()


def test_a_bag_needs_the_size_of_the_vocabulary():
    class Words(TextEncoderBase):
        pass

    class Backbone(nn.Module):
        text_encoder: nn.Module

    with pytest.raises(MmflaxError, match="Words does not say its num_words.*bag_of_words=0"):
        vqa.build(backbone=Backbone(Words()), num_answers=3, bag_of_words=6)


def test_a_negative_width_of_the_bag_is_named():
    with pytest.raises(MmflaxError, match="task.bag_of_words is -3; expected a width, or 0"):
        build(bag_of_words=-3)


def test_the_bag_has_a_place_on_every_mesh(batch):
    task = build(bag_of_words=6)
    shapes = jax.eval_shape(lambda k: task.model.init(k, batch, train=False), jax.random.key(0))
    placed = param_specs(shapes["params"], RULES, make_mesh(1, 2, 2, jax.devices()[:4]))
    assert placed["bag"]["places"]["kernel"].spec[0] == "fsdp"
    assert placed["bag"]["word_embedding"].is_fully_replicated
