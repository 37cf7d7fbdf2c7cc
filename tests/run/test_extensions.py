"""What a user adds from outside the package by a dotted path: a data set, a task, an encoder."""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.data.dataset import Dataset
from mmflax.errors import MmflaxError
from mmflax.run.evaluate import evaluate
from mmflax.run.restore import restore
from mmflax.run.train import train
from mmflax.tasks.inputs import encode
from mmflax.tasks.task import Task
from tests import tiny


def brightness(*, size: int = 32) -> Dataset:
    """Is the picture bright? Two halves of gray pictures."""
    rows = [
        {"id": str(i), "image": np.full((8, 8, 3), 250 * (i % 2), np.uint8),
         "question": "is it bright?", "answer": ("no", "yes")[i % 2]}
        for i in range(size)
    ]  # fmt: skip
    return Dataset("brightness", {"train": rows, "validation": rows[:16], "test": rows[:16]})


class Judge(nn.Module):
    """One logit of the pooled pair, scaled by a parameter with a name of its own."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, batch, *, train: bool):
        encoded = encode(self.backbone, batch, train=train)
        gamma = self.param("gamma", nn.initializers.ones, (encoded.pooled.shape[-1],))
        return {"logit": nn.Dense(1, name="out_projection")(encoded.pooled * gamma[None])[..., 0]}


def judge(*, backbone: nn.Module, sharpness: float = 1.0) -> Task:
    def loss(outputs, batch):
        sign = jnp.where(batch["label"] == 1, 1.0, -1.0)
        return nn.softplus(-sharpness * sign * outputs["logit"])

    def metrics(outputs, batch):
        right = (outputs["logit"] > 0) == (batch["label"] == 1)
        return {"right": (right.astype(jnp.float32), jnp.ones_like(outputs["logit"]))}

    return Task(Judge(backbone), loss, metrics)


@pytest.fixture
def config(monkeypatch, tmp_path):
    for name, build in (("my_lab.brightness", brightness), ("my_lab.judge", judge)):
        module = types.ModuleType(name)
        module.build = build
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))
    config = tiny.config(tmp_path, steps=2, log_every=1, eval_every=2, checkpoint_every=2)
    config["data"] = {"name": "my_lab.brightness", "size": 32, "batch_size": 16}
    config["task"] = {"name": "my_lab.judge", "sharpness": 2.0}
    config["optim"]["schedule"]["warmup_steps"] = 1
    config["checkpoint"]["best_metric"] = "validation/right"
    config["evaluation"]["bootstrap"] = 0
    return config


def test_a_data_set_and_a_task_of_a_users_own_train_and_are_evaluated(config, tmp_path):
    result = train(config, str(tmp_path / "w"), quiet=True)
    assert result.step == 2 and 0 <= result.metrics["validation/right"] <= 1
    assert 0 <= evaluate(str(tmp_path / "w"))["metrics"]["full"]["right"] <= 1
    config["task"]["sharpnes"] = config["task"].pop("sharpness")
    with pytest.raises(MmflaxError, match="did you mean 'sharpness'"):
        train(config, str(tmp_path / "v"), quiet=True)


def test_a_parameter_of_a_users_own_is_placed_by_mesh_rules(config, tmp_path):
    """No built-in rule knows `gamma`: mesh.rules does, in training and when the run is opened."""
    config["mesh"] = {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(MmflaxError, match=r"no rule matches parameter gamma .*mesh.rules"):
        train(config, str(tmp_path / "v"), quiet=True)
    assert not (tmp_path / "v").exists()
    config["mesh"]["rules"] = ((r"(^|/)gamma$", ("fsdp",)),)
    train(config, str(tmp_path / "w"), quiet=True)
    for devices in (None, jax.devices()[:1]):
        _, _, params, _ = restore(tmp_path / "w", devices=devices)
        parts = 4 if devices is None else 1
        gamma = params["gamma"]
        assert gamma.sharding.shard_shape(gamma.shape) == (gamma.size // parts,)
    config["mesh"]["rules"] = ((r"(^|/)gama$", ()),)
    with pytest.raises(MmflaxError, match="matches no parameter"):
        train(config, str(tmp_path / "w"), quiet=True)
