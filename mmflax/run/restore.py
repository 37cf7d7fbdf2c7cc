"""Config, model and parameters of a trained run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from mmflax import paths
from mmflax.data.processor import Processor
from mmflax.distributed import mesh as meshes
from mmflax.distributed import processes
from mmflax.errors import MmflaxError
from mmflax.evaluation.tables import percent, scale
from mmflax.run import base, init_sources
from mmflax.run.assemble import Built, assemble
from mmflax.run.build import Experiment
from mmflax.run.workdir import read_config


def which(experiment: Experiment, root: pathlib.Path, step: int) -> str:
    """A checkpoint in words, such as ``step 1200, the best by validation/accuracy (93.1 %)``."""
    store = experiment.store(root)
    metric = experiment.checkpoint.best_metric
    if metric is not None and step == store.best_step():
        value = store.metrics(step)[metric]
        shown = percent(value) if scale(metric) == 100 else f"{value:.4g}"
        return f"step {step}, the best by {metric} ({shown})"
    return f"step {step}, the last" if step == max(store.steps(), default=step) else f"step {step}"


def restore(
    root: pathlib.Path,
    step: int | str | None = None,
    devices: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Experiment, Built, Any, int]:
    """Config, model and (averaged) parameters of a trained run; optimizer state stays on disk.

    ``step`` is a checkpoint's; None or "best" is the best where the run ranked them (the newest
    where not), "last" the newest. ``config`` stands in place of the workdir's, with another path of
    the data.
    """
    experiment = Experiment(read_config(root) if config is None else config)
    processor = Processor.load(root)
    if mesh is None:
        sizes = experiment.mesh_sizes(jax.devices()) if devices is None else {}
        mesh = meshes.make_mesh(**sizes, devices=devices)
    built = assemble(experiment, processor, mesh)
    store = experiment.store(root)
    name = "params" if built.abstract.ema is None else "ema"
    state, _, step = store.restore(
        {name: getattr(built.abstract, name)},
        step if isinstance(step, int) else None,
        best=step != "last",
        partial=True,
    )
    params = state[name]
    if built.adapters is not None:
        params = built.merge(paths.union(params, frozen(experiment, built, root)))
    return experiment, built, params, step


def frozen(
    experiment: Experiment, built: Built, root: pathlib.Path, *, begins: bool = False
) -> Any:
    """The frozen parameters of a run with adapters, on its mesh.

    Args:
      begins: the run starts on them, so they are recorded (and kept, if the config says so); else
        they are compared with the record.

    Raises:
      MmflaxError: they are not where they were, or not what they were.
    """
    fields = experiment.config.get("init") or {}
    assert built.adapters is not None
    values = None if begins else base.saved(root)
    if values is None:
        model = init_sources.run_model(built.init, built.processor)
        try:
            values = init_sources.loaded(fields, built.adapters.frozen, model)
        except MmflaxError as error:
            raise MmflaxError(
                f"The adapters in {root} need the weights that they adapt: {error} Where these "
                "were moved, `train` and `evaluate` take --config.init.from=PATH."
            ) from error
    keeps = begins and processes.is_main()
    if keeps and experiment.lora.save_base:
        base.save(root, values, built.abstract.frozen)
        values = base.saved(root) or values
    placed, digest = base.placed(values, built.abstract.frozen)
    if keeps:
        base.record(root, digest, init_sources.sources(fields).values())
    elif not begins:
        base.check(root, digest)
    return placed
