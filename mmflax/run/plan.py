"""Planning: the train step compiled for this machine, or a TPU slice that need not be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from mmflax.distributed import mesh as meshes
from mmflax.distributed import plan as plans
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment, example_batch
from mmflax.run.check import check
from mmflax.run.decide import opened
from mmflax.run.finetune.resolve import resolved
from mmflax.run.train import train_step


def plan(
    config: Mapping[str, Any],
    topology: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> plans.Plan:
    """Compiles the train step, without running it; see ``plans.plan``.

    Args:
      config: of the run; what is ``auto`` is decided for the topology.
      topology: of TPUs that need not be there, such as ``v5e:4x4``; None: this machine's devices.
      say: is told a line for each value that the checkpoint or the data decided.
    """
    devices = None if topology is None else plans.topology_devices(topology)
    experiment = Experiment(resolved(config, say=say, accelerated=topology is not None or None))
    mesh = experiment.mesh(devices)
    check(experiment)
    dataset = experiment.dataset()
    experiment, processor, decided = opened(experiment, dataset, mesh=mesh)
    for line in decided:
        say(line)
    experiment = experiment.of_length(len(dataset.source("train")))
    built = assemble(experiment, processor, mesh)
    shapes = jax.eval_shape(lambda: example_batch(processor, experiment.data.batch_size))
    place = meshes.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()
    }
    return plans.plan(train_step(experiment, built), built.abstract, batch, mesh)
