"""Config, model and parameters of a trained run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from mmflax.config.sections import AXES
from mmflax.data.processor import Processor
from mmflax.distributed import mesh as meshes
from mmflax.run.assemble import Built, assemble
from mmflax.run.build import Experiment
from mmflax.run.workdir import read_config


def restore(
    root: pathlib.Path,
    step: int | None = None,
    devices: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Experiment, Built, Any, int]:
    """Config, model and (averaged) parameters of a trained run; optimizer state stays on disk.

    ``config`` stands in place of the workdir's, with another path of the data.
    """
    experiment = Experiment(read_config(root) if config is None else config)
    processor = Processor.load(root)
    if mesh is None:
        sizes = {axis: getattr(experiment.mesh_config, axis) for axis in AXES}
        mesh = meshes.make_mesh(**sizes) if devices is None else meshes.make_mesh(devices=devices)
    built = assemble(experiment, processor, mesh)
    store = experiment.store(root)
    name = "params" if built.abstract.ema is None else "ema"
    state, _, step = store.restore(
        {name: getattr(built.abstract, name)}, step, best=True, partial=True
    )
    return experiment, built, state[name], step
