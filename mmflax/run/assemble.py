"""A run's parts in their places: a task, its optimizer, and the train state's shapes on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mmflax.data.processor import Processor
from mmflax.run.build import Experiment, example_batch
from mmflax.tasks.task import Task
from mmflax.training.state import abstract_sharded


@dataclasses.dataclass(frozen=True)
class Built:
    """A task with its optimizer and the shapes and shardings of its train state."""

    task: Task
    processor: Processor
    mesh: jax.sharding.Mesh
    tx: Any
    schedule: Any
    abstract: Any
    init: Callable[[jax.Array], Any]


def assemble(experiment: Experiment, processor: Processor, mesh: jax.sharding.Mesh) -> Built:
    """Everything of a run but its data and its arrays."""
    task = experiment.task(processor)
    example = example_batch(processor, 1)

    def init(key: jax.Array) -> Any:
        return task.model.init(key, example, train=False)["params"]

    def whole(key: jax.Array) -> Any:
        # With the loss and the metrics, so that a missing key is an error before training.
        outputs, variables = task.model.init_with_output(key, example, train=False)
        task.loss(outputs, example), task.metrics(outputs, example)
        return variables["params"]

    params = jax.eval_shape(whole, jax.random.key(0))
    tx, schedule = experiment.optimizer(params)
    ema = experiment.train.ema_decay is not None
    key = jax.random.key(experiment.seed)
    abstract = abstract_sharded(init, tx, key, mesh, experiment.rules, ema=ema)
    return Built(task, processor, mesh, tx, schedule, abstract, init)


def apply_fn(task: Task) -> Callable[..., Any]:
    """``(params, batch, key, train) -> outputs`` of the task's model."""

    def apply(params: Any, batch: Any, key: Any, train: bool) -> Any:
        rngs = {} if key is None else {"dropout": key}
        return task.model.apply({"params": params}, batch, train=train, rngs=rngs)

    return apply
