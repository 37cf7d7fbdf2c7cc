"""Planning: the train step compiled for this machine, or a TPU slice that need not be there."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mmflax import paths
from mmflax.config.sections import PARTS
from mmflax.data.dataset import Dataset
from mmflax.distributed import mesh as meshes
from mmflax.distributed import plan as plans
from mmflax.distributed.chips import chip_of
from mmflax.distributed.flops import count_flops
from mmflax.distributed.layout import layout_table
from mmflax.run.assemble import Built, apply_fn, assemble
from mmflax.run.build import Experiment, example_batch
from mmflax.run.check import check
from mmflax.run.decide import Opened, decided, opened
from mmflax.run.finetune.resolve import resolved
from mmflax.run.plan_shapes import examples_of, facts_of, processor_of, shapes_of
from mmflax.run.train import train_step

_SCENES = 1000


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What a run needs.

    Attributes:
      step: of one train step.
      steps: of the run.
      price: of one chip for an hour, in any currency; None where it was not given.
    """

    step: plans.Plan
    steps: int
    price: float | None = None

    @property
    def hours(self) -> float | None:
        """Of the whole run at the least: steps at the roofline, without evaluation and start."""
        bound = self.step.roofline
        return None if bound is None else self.steps * bound.step / 3600

    @property
    def chip_hours(self) -> float | None:
        """Hours times chips, of which one may be several devices."""
        chip = chip_of(self.step.kind)
        if self.hours is None or chip is None:
            return None
        return self.hours * self.step.chips / chip.devices

    @property
    def cost(self) -> float | None:
        """Of the chip hours, where there is a price."""
        if self.chip_hours is None or self.price is None:
            return None
        return self.chip_hours * self.price

    @property
    def examples_per_second(self) -> float | None:
        """At the most: at the roofline."""
        bound = self.step.roofline
        return None if bound is None else self.step.batch_size / bound.step


def plan(
    config: Mapping[str, Any],
    topology: str | None = None,
    say: Callable[[str], object] = lambda line: None,
    *,
    price: float | None = None,
    see: Callable[[str], object] = lambda text: None,
) -> RunPlan:
    """Compiles the train step, without running it; see ``plans.plan``.

    Data are read only where their sizes are neither published nor given as ``plan.shapes``.

    Args:
      config: of the run; what is ``auto`` is decided for the topology.
      topology: of TPUs that need not be there, such as ``v5e:4x4``; None: this machine's devices.
      say: is told a line for each value that the checkpoint or the data decided.
      price: of one chip for an hour.
      see: is given the compiled program's text.
    """
    devices = None if topology is None else plans.topology_devices(topology)
    experiment = Experiment(resolved(config, say=say, accelerated=topology is not None or None))
    mesh = experiment.mesh(devices)
    check(experiment, mesh=mesh)
    found = opened_or_planned(experiment, mesh)
    for line in found.decided:
        say(line)
    return RunPlan(compiled(found, mesh, see), found.experiment.steps, price)


def layout(config: Mapping[str, Any], topology: str | None = None) -> str:
    """Where each parameter lies, as a table; nothing is compiled. Arguments are ``plan``'s."""
    devices = None if topology is None else plans.topology_devices(topology)
    experiment = Experiment(resolved(config, accelerated=topology is not None or None))
    mesh = experiment.mesh(devices)
    check(experiment, mesh=mesh)
    found = opened_or_planned(experiment, mesh)
    state = assemble(found.experiment, found.processor, mesh).abstract
    params = state.params if state.frozen is None else paths.union(state.params, state.frozen)
    return layout_table(params, jax.tree.map(lambda leaf: leaf.sharding, params))


def opened_or_planned(experiment: Experiment, mesh: jax.sharding.Mesh) -> Opened:
    """What the data, or their sizes, decide; with the number of steps."""
    shapes = shapes_of(experiment.config)
    if shapes is None:
        dataset, times = _dataset(experiment)
        found = opened(experiment, dataset, mesh=mesh)
        examples = round(times * len(dataset.source("train")))
        return found._replace(experiment=found.experiment.of_length(examples))
    found = decided(
        experiment,
        lambda: facts_of(experiment, shapes),
        lambda one: processor_of(one, shapes),
        mesh=mesh,
    )
    if found.experiment.train.steps is not None:
        return found
    examples = examples_of(shapes, "the steps of train.epochs")
    return found._replace(experiment=found.experiment.of_length(examples))


def _dataset(experiment: Experiment) -> tuple[Dataset, float]:
    """The data, and how many times as many there are in training: of the embedded scenes a few have
    all words and answers, and drawing the others would take a minute."""
    data = experiment.config["data"]
    scenes = data.get("num_scenes")
    if data.get("name") != "shapes" or not isinstance(scenes, int) or scenes <= _SCENES:
        return experiment.dataset(), 1.0
    few = Experiment({**experiment.asked, "data": {**data, "num_scenes": _SCENES}})
    return few.dataset(), scenes / _SCENES


def compiled(
    found: Opened, mesh: jax.sharding.Mesh, see: Callable[[str], object] = lambda text: None
) -> plans.Plan:
    """The plan of one step on this mesh.

    Args:
      found: an experiment without ``auto``, with its steps, and its processor.
      mesh: of the devices.
      see: is given the compiled program's text.

    Raises:
      TooLarge: it does not fit.
    """
    experiment, processor = found.experiment, found.processor
    built = assemble(experiment, processor, mesh)
    shapes = jax.eval_shape(lambda: example_batch(processor, experiment.data.batch_size))
    place = meshes.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()
    }
    rows = experiment.data.batch_size // experiment.train.accumulate
    return plans.plan(
        train_step(experiment, built),
        built.abstract,
        batch,
        mesh,
        # The tensor axis splits heads and columns, which most of it is.
        kept=_kept(built, -(-rows // (mesh.shape["data"] * mesh.shape["fsdp"])))
        // mesh.shape["tensor"],
        accumulate=experiment.train.accumulate,
        model_flops=_model_flops(found, mesh),
        computed=experiment.config["model"]["fusion"].get("dtype"),
        see=see,
    )


def _kept(built: Built, rows: int) -> int:
    """Bytes that the forward pass of a micro-batch keeps on a chip that has so many rows of it."""
    apply = apply_fn(built.task, built.adapters)

    def loss(params: Any, frozen: Any, rows: int) -> Any:
        whole = params if frozen is None else paths.union(params, frozen)
        batch = example_batch(built.processor, rows)
        outputs = apply(whole, batch, jax.random.key(0), True)
        return built.task.loss(outputs, batch).sum()

    with meshes.activation_rules(one_chip(built.mesh.devices.flat)):
        return plans.kept_bytes(loss, built.abstract.params, built.abstract.frozen, rows)


def one_chip(devices: Iterable[Any]) -> jax.sharding.Mesh:
    """A mesh of the first of these devices, which every batch and every model fits, to trace for
    their kind."""
    return meshes.make_mesh(data=1, fsdp=1, tensor=1, devices=[next(iter(devices))])


def _model_flops(found: Opened, mesh: jax.sharding.Mesh) -> int | None:
    """FLOPs of a step that recomputes nothing; None where the config's does not either."""
    config = copy.deepcopy(dict(found.experiment.config))
    policies = [config["model"][part].pop("remat", "none") for part in PARTS]
    if set(policies) == {"none"}:
        return None
    experiment = Experiment(config)
    built = assemble(experiment, found.processor, mesh)
    batch = jax.eval_shape(lambda: example_batch(found.processor, experiment.data.batch_size))
    with meshes.activation_rules(mesh):
        return count_flops(train_step(experiment, built), built.abstract, batch)
