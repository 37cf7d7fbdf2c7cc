"""Opening the data of an experiment: what they decide, and the processor that learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mmflax.config.sections import PARTS
from mmflax.data import sanity
from mmflax.data.dataset import Dataset
from mmflax.data.facts import Facts, facts
from mmflax.data.processor import Processor
from mmflax.distributed import processes
from mmflax.distributed.flops import count_flops
from mmflax.run import recipe
from mmflax.run.build import Experiment, example_batch


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

    def learn(one: Experiment) -> Processor:
        return one.learn_processor(dataset, say) if processor is None else processor

    def seen() -> Facts:
        return facts(dataset, experiment.evaluation.split)

    found = decided(experiment, seen, learn, mesh=mesh)
    if say is not None and begins:
        for note in sanity.notes(dataset.source("train"), found.processor.image_size):
            say(note)
    return found


def decided(
    experiment: Experiment,
    seen: Callable[[], Facts],
    learn: Callable[[Experiment], Processor],
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Opened:
    """The experiment without ``auto``, and its processor.

    Args:
      experiment: of the config, with or without ``auto``.
      seen: gives what is known of the data; asked only if something is ``auto``.
      learn: gives the processor of an experiment without ``auto``; called once.
      mesh: that trains; by default the experiment's, over all devices.
    """
    if not experiment.undecided:
        return Opened(experiment, learn(experiment))
    learned: Processor | None = None

    def work(config: Mapping[str, Any]) -> float:
        nonlocal learned
        one = Experiment(config)
        if learned is None:
            learned = learn(one)
        return training_flops(one, learned)

    asked = experiment.asked
    mesh = experiment.mesh() if mesh is None else mesh
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    machine = recipe.Machine.of(list(mesh.devices.flat), shards)
    found = recipe.decide(seen(), asked, machine, work)
    made = {key: recipe.Decision(*one) for key, one in processes.agreed(found).items()}
    experiment = Experiment(recipe.resolved(asked, made))
    processor = learn(experiment) if learned is None else learned
    return Opened(experiment, processor, tuple(recipe.lines(made)))


def training_flops(experiment: Experiment, processor: Processor) -> float:
    """Training FLOPs of one example."""
    # Recomputation does not count as work of the model (Chowdhery et al. 2022, appendix B).
    config = json.loads(json.dumps(experiment.config, default=str))
    for part in PARTS:
        config["model"][part].pop("remat", None)
    task = Experiment(config).task(processor)
    batch = example_batch(processor, 1)
    params = jax.eval_shape(
        lambda key: task.model.init(key, batch, train=False)["params"], jax.random.key(0)
    )

    def loss(params: Any) -> Any:
        outputs: Any = task.model.apply({"params": params}, batch, train=False)
        return task.loss(outputs, batch).sum()

    return count_flops(jax.grad(loss), params)
