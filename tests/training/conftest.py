"""A toy model with the parameter names of a real one, its data, and everything to train it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.distributed.mesh import on_mesh, put_batch
from mmflax.training import optim
from mmflax.training.state import abstract_sharded, create_sharded
from mmflax.training.step import make_train_step

RULES = (
    (r"fc1/kernel", ("fsdp", "tensor")),
    (r"fc2/kernel", ("tensor", "fsdp")),
    (r"bias|scale", ()),
)


class ToyModel(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.with_logical_constraint(x, ("batch", None))
        x = nn.gelu(nn.LayerNorm(name="norm")(nn.Dense(16, name="fc1")(x)))
        return nn.Dense(8, name="fc2")(x)


@dataclasses.dataclass
class Toy:
    """Fields of the optimizer and the step are set per test."""

    mesh: Any
    optim: dict = dataclasses.field(default_factory=lambda: dict(name="sgd"))
    step: dict = dataclasses.field(default_factory=dict)
    ema: bool = False
    rate: float = 0.1

    def __post_init__(self):
        self._jitted = None
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        fields = {"schedule": dict(name="constant", peak=self.rate), **self.optim}
        self.tx, self.schedule = optim.build(shapes, **fields)
        self.train_step = make_train_step(self.apply, self.loss, self.metrics, self.tx, **self.step)

    def init(self, key):
        return ToyModel().init(key, jnp.zeros((1, 8)))["params"]

    def apply(self, params, batch, key, train):
        return ToyModel().apply({"params": params}, batch["x"], train)

    def loss(self, outputs, batch):
        return jnp.sum((outputs - batch["y"]) ** 2, axis=-1)

    def metrics(self, outputs, batch):
        right = outputs.argmax(-1) == batch["y"].argmax(-1)
        return {"accuracy": (right.astype(jnp.float32), jnp.ones(right.shape))}

    def batch(self, index, rows=16):
        draw = np.random.default_rng(index)
        x, y = draw.normal(size=(2, rows, 8)).astype(np.float32)
        return {"x": x, "y": y}

    def parts(self):
        return (self.init, self.tx, jax.random.key(1), self.mesh, RULES)

    def abstract(self):
        return abstract_sharded(*self.parts(), ema=self.ema)

    def create(self):
        return create_sharded(*self.parts(), ema=self.ema)

    def run(self, batches, state=None):
        """The state and the metrics of the last step."""
        state = self.create() if state is None else state
        if self._jitted is None:
            self._jitted = on_mesh(jax.jit(self.train_step), self.mesh)
        sums = None
        for batch in batches:
            state, sums = self._jitted(state, put_batch(batch, self.mesh))
        return state, jax.device_get(sums)


class ToyBatches:
    """Batch i is a function of i; ``spoil`` maps a position to what happens there."""

    def __init__(self, toy, spoil=None):
        self.toy, self.spoil = toy, spoil or {}
        self.position = 0
        self.seen: list[int] = []
        self.closed = False

    def __next__(self):
        index = self.position
        self.position += 1
        self.seen.append(index)
        batch = self.toy.batch(index)
        if index in self.spoil:
            batch = self.spoil[index](batch)
        return {**batch, "id": np.array([f"b{index}r{row}" for row in range(16)])}

    def set_position(self, position):
        self.position = position

    def close(self):
        self.closed = True


@pytest.fixture
def toy(one_device):
    """``toy(**fields) -> Toy``; on one device unless a mesh is given."""
    return lambda mesh=one_device, **fields: Toy(mesh, **fields)


@pytest.fixture
def toy_batches():
    return ToyBatches
