"""Evaluation equals numpy for every size of data and mesh, in the loop and row by row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.data.dataset import Subset, in_memory
from mmflax.data.processor import Processor
from mmflax.distributed.mesh import make_mesh
from mmflax.errors import MmflaxError
from mmflax.evaluation.engine import Evaluator
from mmflax.tasks.task import Task
from tests.toy_backbone import toy_backbone

B = 8
ANSWERS = ("yes", "no", "two")


def examples(count):
    draw = np.random.default_rng(count)
    return [
        {
            "image": draw.integers(0, 255, (4, 4, 3), dtype=np.uint8),
            "question": "is it red?",
            "answer": ANSWERS[i % 3],
            "question_type": "even" if i % 2 == 0 else "odd",
            "image_id": i // 2,
            "id": f"e{i}",
        }
        for i in range(count)
    ]


class Model(nn.Module):
    """Logits are linear in the mean color."""

    answers: int = 3
    backbone: nn.Module | None = None

    @nn.compact
    def __call__(self, batch, *, train):
        assert not train
        return {"logits": nn.Dense(self.answers)(batch["image"].mean(axis=(1, 2)))}


def loss(outputs, batch):
    # A row of padding would divide by zero if it were zeros.
    return jnp.sum(outputs["logits"] ** 2, axis=-1) / jnp.abs(batch["image"]).mean(axis=(1, 2, 3))


def metrics(outputs, batch):
    right = (jnp.argmax(outputs["logits"], axis=-1) == batch["label"]).astype(jnp.float32)
    even = (batch["question_type"] == 0).astype(jnp.float32)
    return {
        "accuracy": (right, jnp.ones(right.shape)),
        "accuracy/even": (right * even, even),
        "never": (jnp.zeros(right.shape), jnp.zeros(right.shape)),
    }


def predict(params, batch):
    return {"logits": Model().apply({"params": params}, batch, train=False)["logits"]}


TASK = Task(Model(), loss, metrics, predict)


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def processor():
    return Processor.learn(
        in_memory({"train": examples(30)}), image_size=4, vocab_size=40, max_length=8
    )


@pytest.fixture(scope="module")
def params(processor):
    example = jax.tree.map(jnp.asarray, processor.zeros(1))
    return Model().init(jax.random.key(0), example, train=False)["params"]


def by_numpy(processor, params, source):
    """The means in double precision, from all examples as one batch."""
    batch = processor.batch([source[i] for i in range(len(source))])
    image = batch["image"].astype(np.float64)
    dense = jax.tree.map(np.asarray, params)["Dense_0"]
    logits = image.mean(axis=(1, 2)) @ dense["kernel"] + dense["bias"]
    right = logits.argmax(axis=1) == batch["label"]
    return {
        "loss": ((logits**2).sum(axis=1) / np.abs(image).mean(axis=(1, 2, 3))).mean(),
        "accuracy": right.mean(),
        "accuracy/even": right[batch["question_type"] == 0].mean(),
        "majority/accuracy": (batch["label"] == 0).mean(),
        "majority/accuracy/even": (batch["label"] == 0)[batch["question_type"] == 0].mean(),
    }


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_evaluation_is_exact(devices, processor, params):
    mesh = make_mesh(devices=jax.devices()[:devices])
    evaluator = Evaluator(TASK, processor, mesh, batch_size=B, views=("full",), num_threads=0)
    for count in (1, B - 1, B, B + 1, 3 * B + 7):
        source = in_memory({"test": examples(count)}).source("test")
        expected = by_numpy(processor, params, source)
        found = evaluator.means(params, source)
        assert found == pytest.approx(expected, rel=2e-6), count
        scores = evaluator.score(params, source, bootstrap=20)
        views = {f"majority/{k}": v for k, v in scores.metrics["majority"].items()}
        assert scores.metrics["full"] | views == pytest.approx(expected, rel=2e-6), count
        low, high = scores.intervals["loss"]
        assert low <= expected["loss"] * (1 + 1e-6) and expected["loss"] * (1 - 1e-6) <= high


def test_rows_hold_each_example_and_what_was_predicted(processor, params, one_device):
    evaluator = Evaluator(TASK, processor, one_device, batch_size=B, views=("full",))
    source = in_memory({"test": examples(B + 3)}).source("test")
    rows = evaluator.rows(params, source)["full"]
    assert [record["id"] for record in rows.records] == [f"e{i}" for i in range(B + 3)]
    assert all("image" not in record and "logits" in record for record in rows.records)
    right = [record["predicted_answer"] == record["answer"] for record in rows.records]
    np.testing.assert_array_equal(rows.metrics["accuracy"][0], right)


def test_one_compile_each_for_sums_and_rows(processor, params, one_device):
    traced = []

    def counted(outputs, batch):
        traced.append(1)
        return metrics(outputs, batch)

    task = TASK._replace(metrics=counted)
    evaluator = Evaluator(task, processor, one_device, batch_size=B, views=("full",))
    source = in_memory({"test": examples(2 * B + 3)}).source("test")
    for _ in range(3):
        evaluator.means(params, source)
    # Once for the model's outputs and once for the commonest answer's.
    assert len(traced) == 2
    evaluator.rows(params, source)
    evaluator.rows(params, source)
    assert len(traced) == 4


def test_views_cost_a_forward_pass_each_and_may_be_left_out(processor, params, one_device):
    source = in_memory({"test": examples(3)}).source("test")
    for views in (("full",), ("full", "text_only"), ("full", "text_only", "image_only")):
        task = TASK._replace(model=Model(backbone=toy_backbone()))
        evaluator = Evaluator(task, processor, one_device, batch_size=B, views=views)
        assert evaluator.rows(params, source).keys() == {*views, "majority"}
        found = evaluator.means(params, source)
        assert {f"{view}/accuracy" for view in views[1:]} <= found.keys()
        assert "text_only/loss" not in found


@pytest.mark.parametrize("views", [("full", "blind"), ("text_only",), (), "text_only"])
def test_a_wrong_view_is_one_sentence(views, processor, one_device):
    with pytest.raises(MmflaxError, match=r"evaluation.views is .*; expected 'full', and any of"):
        Evaluator(TASK, processor, one_device, batch_size=B, views=views)


def test_no_examples_is_an_error(processor, params, one_device):
    evaluator = Evaluator(TASK, processor, one_device, batch_size=B, views=("full",))
    batch = processor.batch(examples(B))
    for batches in ([], [{**batch, "mask": np.zeros(B, bool)}]):
        with pytest.raises(MmflaxError, match="no examples"):
            evaluator.means_of_batches(params, batches)


def test_an_unreadable_image_counts_nowhere_and_is_named(processor, params, one_device):
    rows = examples(B + 4)
    bad = {"e2", "e9"}
    broken = [{**raw, "image": b""} if raw["id"] in bad else raw for raw in rows]
    clean = [raw for raw in rows if raw["id"] not in bad]
    named = []
    fields = dict(batch_size=B, views=("full",))
    evaluator = Evaluator(
        TASK, processor, one_device, **fields, max_bad_fraction=0.2,
        on_bad=lambda *pair: named.append(pair),
    )  # fmt: skip
    expected = Evaluator(TASK, processor, one_device, **fields)
    assert evaluator.means(params, broken) == pytest.approx(expected.means(params, clean))
    scores = evaluator.score(params, broken, bootstrap=0)
    assert scores.metrics["full"] == pytest.approx(
        expected.score(params, clean, bootstrap=0).metrics["full"]
    )
    assert set(evaluator.bad) == bad
    # Reading threads name them, in whichever order they come to them.
    assert sorted(id for id, _ in named) == sorted(bad)
    with pytest.raises(MmflaxError, match="Example e2: The image is not an image"):
        expected.means(params, broken)


def test_a_sample_may_have_what_the_whole_may_have(processor, params, one_device):
    """One of four is bad, and 2 % of two hundred may be."""
    rows = examples(4)
    rows[1] = {**rows[1], "image": b""}
    evaluator = Evaluator(
        TASK, processor, one_device, batch_size=B, views=("full",), max_bad_fraction=0.02
    )
    evaluator.means(params, Subset(rows, range(4), whole=200))
    assert list(evaluator.bad) == ["e1"]
    with pytest.raises(MmflaxError, match="1 of the 4 examples .*max_bad_fraction = 0.02"):
        evaluator.means(params, Subset(rows, range(4)))
