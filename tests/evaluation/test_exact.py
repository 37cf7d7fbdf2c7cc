"""Evaluation equals numpy for every size of data and mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.distributed.mesh import make_mesh
from mmflax.errors import MmflaxError
from mmflax.evaluation.exact import make_evaluate
from mmflax.training.step import make_eval_step

B = 8


def apply(params, batch, key, train):
    assert key is None and not train
    return batch["x"] @ params["w"]


def loss(outputs, batch):
    return jnp.sum((outputs - 1.0) ** 2, axis=-1) / batch["scale"]


def metrics(outputs, batch):
    positive = (outputs[:, 0] > 0).astype(jnp.float32)
    even = (batch["kind"] == 0).astype(jnp.float32)
    none = jnp.zeros(even.shape)
    return {"positive": (positive, jnp.ones(even.shape)), "even": (positive * even, even),
            "never": (none, none)}  # fmt: skip


def examples(count):
    draw = np.random.default_rng(count)
    return {
        "x": draw.normal(size=(count, 4)).astype(np.float32),
        "scale": draw.uniform(1, 2, size=count).astype(np.float32),
        "kind": np.arange(count, dtype=np.int32) % 2,
        "id": np.array([f"e{i}" for i in range(count)]),
    }


W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_evaluation_is_exact(devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    evaluate = make_evaluate(make_eval_step(apply, loss, metrics), mesh)
    params = jax.device_put({"w": W})
    for count in (1, B - 1, B, B + 1, 3 * B + 7):
        data = examples(count)
        outputs = data["x"] @ W
        positive = (outputs[:, 0] > 0).astype(np.float64)
        expected = {
            "loss": (((outputs - 1) ** 2).sum(-1) / data["scale"]).mean(),
            "positive": positive.mean(),
            "even": positive[data["kind"] == 0].mean(),
        }
        short = [{k: v[i : i + B] for k, v in data.items()} for i in range(0, count, B)]
        # As the pipeline does it: padded rows of zeros (0 / 0 here) under a false mask.
        padded = [
            {
                **{
                    name: np.concatenate(
                        [part[name], np.zeros((B - len(part["x"]), *v.shape[1:]), v.dtype)]
                    )
                    for name, v in data.items()
                    if name != "id"
                },
                "mask": np.arange(B) < len(part["x"]),
            }
            for part in short
        ]
        for batches in (short, padded):
            found = evaluate(params, batches)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, rel=2e-6), (count, name)


def test_no_examples_is_an_error(one_device):
    evaluate = make_evaluate(make_eval_step(apply, loss, metrics), one_device)
    params = jax.device_put({"w": W})
    with pytest.raises(MmflaxError, match="no examples"):
        evaluate(params, [])
    with pytest.raises(MmflaxError, match="no examples"):
        evaluate(params, [{**examples(B), "mask": np.zeros(B, bool)}])


def test_batches_of_one_shape_compile_once(one_device):
    traced = []

    def counted(params, batch, key, train):
        traced.append(1)
        return apply(params, batch, key, train)

    evaluate = make_evaluate(make_eval_step(counted, loss, metrics), one_device)
    params = jax.device_put({"w": W})
    for _ in range(3):
        data = examples(3 * B + 7)
        evaluate(
            params, [{k: v[i : i + B] for k, v in data.items()} for i in range(0, 3 * B + 7, B)]
        )
    assert len(traced) == 1
