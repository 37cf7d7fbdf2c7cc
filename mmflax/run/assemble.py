"""A run's parts in their places: a task, its optimizer, and the train state's shapes on a mesh."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mmflax import paths
from mmflax.data.processor import Processor
from mmflax.run.adapters import Adapters, adapters_of
from mmflax.run.build import Experiment, example_batch
from mmflax.run.init_sources import is_new
from mmflax.tasks.task import Task
from mmflax.training.state import abstract_sharded


@dataclasses.dataclass(frozen=True)
class Built:
    """A task with its optimizer and the shapes and shardings of its train state.

    Attributes:
      task: model, loss and metrics.
      processor: makes its batches.
      mesh: where the state is.
      tx: the optimizer, of the trained parameters.
      schedule: of its learning rate.
      abstract: shapes and shardings of the train state, frozen parameters too.
      shapes: of all parameters of the model, which `init` draws from a key.
      init: see `shapes`.
      adapters: what is adapted, and what is frozen; None trains everything.
    """

    task: Task
    processor: Processor
    mesh: jax.sharding.Mesh
    tx: Any
    schedule: Any
    abstract: Any
    shapes: Any
    init: Callable[[jax.Array], Any]
    adapters: Adapters | None = None

    def trained(self, params: Any, key: jax.Array) -> Any:
        """What is trained, as training begins, of all parameters; the key draws adapters."""
        return params if self.adapters is None else self.adapters.trained(params, key)

    def merge(self, params: Any) -> Any:
        """The model's parameters, of these with the adapters among them."""
        return params if self.adapters is None else self.adapters.merge(params)


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

    shapes = jax.eval_shape(whole, jax.random.key(0))
    adapters = adapters_of_run(experiment, init)
    frozen: Any = {} if adapters is None else adapters.frozen
    trained = shapes if adapters is None else adapters.shapes()
    tx, schedule = experiment.optimizer(trained, frozen)
    ema = experiment.train.ema_decay is not None
    key = jax.random.key(experiment.seed)
    draw = init if adapters is None else lambda key: adapters.trained(init(key), key)
    abstract = abstract_sharded(
        draw, tx, key, mesh, experiment.rules, ema=ema, frozen=paths.nested(frozen) or None
    )
    return Built(task, processor, mesh, tx, schedule, abstract, shapes, init, adapters)


def adapters_of_run(experiment: Experiment, init: Callable[[jax.Array], Any]) -> Adapters | None:
    """What ``config.lora`` adapts of what ``config.init`` loads."""
    return adapters_of(experiment, init, is_new(experiment.config.get("init") or {}))


def apply_fn(task: Task, adapters: Adapters | None = None) -> Callable[..., Any]:
    """``(params, batch, key, train) -> outputs`` of the task's model, with its adapters if any."""

    def apply(params: Any, batch: Any, key: Any, train: bool) -> Any:
        rngs = {} if key is None else {"dropout": key}
        with contextlib.nullcontext() if adapters is None else adapters.adapting(train):
            return task.model.apply({"params": params}, batch, train=train, rngs=rngs)

    return apply
