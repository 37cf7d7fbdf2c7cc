"""Opening the data of an experiment: what they decide, and the processor that learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mmflax.config.sections import PARTS
from mmflax.data import sanity
from mmflax.data.dataset import Dataset
from mmflax.data.facts import facts
from mmflax.data.processor import Processor
from mmflax.distributed import processes
from mmflax.run import recipe
from mmflax.run.build import Experiment, example_batch
from mmflax.training import observe


class Opened(NamedTuple):
    """An experiment whose data are open.

    Attributes:
      experiment: without ``auto``; ``of_length`` gives its steps where it has epochs.
      processor: of the run.
      decided: a line for each value that the data decided, with its reason.
    """

    experiment: Experiment
    processor: Processor
    decided: tuple[str, ...] = ()


def opened(
    experiment: Experiment,
    dataset: Dataset,
    processor: Processor | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    say: Callable[[str], None] | None = None,
) -> Opened:
    """What the data decide, the same in every process, and the processor.

    Args:
      experiment: of the config, with or without ``auto``.
      dataset: its data.
      processor: of a run that goes on; None learns one.
      mesh: that trains; by default the experiment's, over all devices.
      say: is told, of a run that begins, what a user should know of answers and pictures.
    """
    begins = processor is None
    decided: dict[str, recipe.Decision] = {}
    if experiment.undecided:
        learned = processor

        def work(config: Mapping[str, Any]) -> float:
            nonlocal learned
            one = Experiment(config)
            if learned is None:
                learned = one.learn_processor(dataset, say)
            return training_flops(one, learned)

        asked = experiment.asked
        mesh = experiment.mesh() if mesh is None else mesh
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        machine = recipe.Machine.of(list(mesh.devices.flat), shards)
        seen = facts(dataset, experiment.evaluation.split)
        found = recipe.decide(seen, asked, machine, work)
        decided = {key: recipe.Decision(*one) for key, one in processes.agreed(found).items()}
        experiment, processor = Experiment(recipe.resolved(asked, decided)), learned
    if processor is None:
        processor = experiment.learn_processor(dataset, say)
    if say is not None and begins:
        for note in sanity.notes(dataset.source("train"), processor.image_size):
            say(note)
    return Opened(experiment, processor, tuple(recipe.lines(decided)))


def training_flops(experiment: Experiment, processor: Processor) -> float:
    """Training FLOPs of one example."""
    # Loops and recomputation do not count as work of the model (Chowdhery et al. 2022, appendix B).
    config = json.loads(json.dumps(experiment.config, default=str))
    for part in PARTS:
        for name in ("scan_layers", "remat"):
            config["model"][part].pop(name, None)
    task = Experiment(config).task(processor)
    batch = example_batch(processor, 1)
    params = jax.eval_shape(
        lambda key: task.model.init(key, batch, train=False)["params"], jax.random.key(0)
    )

    def loss(params: Any) -> Any:
        outputs: Any = task.model.apply({"params": params}, batch, train=False)
        return task.loss(outputs, batch).sum()

    return observe.count_flops(jax.grad(loss), params)
