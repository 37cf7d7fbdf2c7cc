"""Run by test_processes.py under launch/local_processes: trains a toy over data x fsdp.

toy_run.py DIR STEPS [SECONDS A BATCH] [PROCESS THAT FAILS]
"""

import json
import pathlib
import sys
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmflax.checkpoints.store import Store
from mmflax.distributed import processes
from mmflax.distributed.mesh import data_shard, make_mesh
from mmflax.errors import MmflaxError
from mmflax.evaluation.engine import Evaluator
from mmflax.tasks.task import Task
from mmflax.training import loop, observe, optim
from mmflax.training.state import abstract_sharded, create_sharded
from mmflax.training.step import make_train_step

RULES = (("kernel", ("fsdp", None)), ("bias", ()))


class Model(nn.Dense):
    features: int = 8

    @nn.compact
    def __call__(self, batch, *, train):
        return super().__call__(batch["x"])


class Batches:
    def __init__(self, mesh, wait, fails):
        self.part, self.parts = data_shard(mesh)
        self.wait, self.fails = wait, fails
        self.position = 0

    def __next__(self):
        if self.fails and self.position == 6:
            raise MmflaxError("this process found a bad record")
        time.sleep(self.wait)
        x = np.random.default_rng(self.position).normal(size=(16, 8)).astype(np.float32)
        self.position += 1
        return self.mine({"x": x, "y": x[:, ::-1].copy()})

    def mine(self, batch):
        rows = len(batch["x"]) // self.parts
        return {k: v[self.part * rows : (self.part + 1) * rows] for k, v in batch.items()}

    def set_position(self, position):
        self.position = position

    def close(self):
        pass


def main(directory, steps, wait=0.0, fails=-1):
    processes.initialize()
    mesh = make_mesh(-1, 2, 1)
    model = Model()
    example = {"x": jnp.zeros((1, 8))}
    shapes = jax.eval_shape(lambda key: model.init(key, example, train=False), jax.random.key(0))
    tx, _ = optim.build(shapes["params"], schedule=dict(peak=0.05))

    def apply(params, batch, key, train):
        return model.apply({"params": params}, batch, train=train)

    def loss(outputs, batch):
        return jnp.sum((outputs - batch["y"]) ** 2, axis=-1)

    def metrics(outputs, batch):
        return {}

    def init(key):
        return model.init(key, example, train=False)["params"]

    batches = Batches(mesh, float(wait), jax.process_index() == int(fails))
    task, processor = Task(Model(), loss, metrics), types.SimpleNamespace(answers=())
    evaluator = Evaluator(task, processor, mesh, batch_size=8, views=("full",))

    def validate(params):
        x = np.random.default_rng(99).normal(size=(24, 8)).astype(np.float32)
        mask = np.arange(24) < 21
        whole = [
            {"x": x[i : i + 8], "y": x[i : i + 8], "mask": mask[i : i + 8]} for i in (0, 8, 16)
        ]
        return evaluator.means_of_batches(params, [batches.mine(batch) for batch in whole])

    parts = (init, tx, jax.random.key(0), mesh, RULES)
    store = Store(directory + "/checkpoints")
    try:
        result = train(apply, loss, metrics, tx, parts, batches, steps, store, validate, directory)
    finally:
        store.close()  # must not wait for processes that go on after an error in this one
    end = {"step": result.step, "preempted": result.preempted, "metrics": result.metrics}
    name = f"end{jax.process_index()}of{jax.process_count()}.json"
    pathlib.Path(directory, name).write_text(json.dumps(end))


def train(apply, loss, metrics, tx, parts, batches, steps, store, validate, directory):
    return loop.run(
        train_step=make_train_step(apply, loss, metrics, tx),
        abstract_state=abstract_sharded(*parts),
        create_state=lambda: create_sharded(*parts),
        batches=batches,
        mesh=parts[3],
        steps=int(steps),
        store=store,
        evals={"val": validate},
        log_every=1,
        eval_every=4,
        checkpoint_every=4,
        observers=observe.observers(directory),
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MmflaxError as error:
        print(f"error: {error}", file=sys.stderr)
        processes.leave(1)
