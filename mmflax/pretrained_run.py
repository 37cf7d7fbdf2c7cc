"""A run of `mmflax train` behind the door of public checkpoints."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError


@dataclasses.dataclass(frozen=True)
class RunModel:
    """A task's model, called as a family is: `apply({"params": params}, batch) -> dict`."""

    module: nn.Module
    processor: Processor

    def apply(self, variables: Any, batch: Mapping[str, Any], **fields: Any) -> Any:
        """`fields` are flax's; `train=True` draws dropout, from `rngs={"dropout": key}`."""
        return self.module.apply(variables, batch, **{"train": False, **fields})

    def init(self, rngs: Any, batch: Mapping[str, Any], **fields: Any) -> Any:
        return self.module.init(rngs, batch, **{"train": False, **fields})

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        """A batch with the shapes of a real one."""
        return {name: jnp.asarray(value) for name, value in self.processor.zeros(rows).items()}


def is_run(source: str | os.PathLike[str]) -> bool:
    """Whether it is a folder that `mmflax train` wrote."""
    return (pathlib.Path(source).expanduser() / "checkpoints").is_dir()


def open_run(
    source: str | os.PathLike[str], *, dtype: Any, param_dtype: Any, mesh: Any
) -> tuple[RunModel, Any, Processor, dict[str, Any]]:
    """Model, parameters, processor and config of a run: its best checkpoint, else the newest.

    Args:
      source: the workdir.
      dtype: of computation; None computes as the run did.
      param_dtype: of the parameters; None keeps the run's.
      mesh: where to put them, by the run's own rules; by default the first device.
    """
    from mmflax import experiment
    from mmflax.pretrained import replaced

    root = pathlib.Path(source).expanduser()
    devices = jax.local_devices()[:1] if mesh is None else None
    run, built, params, step = experiment.restore(root, devices=devices, mesh=mesh)
    module = built.task.model
    if dtype is not None:
        module = replaced(module, {"dtype": jnp.dtype(dtype)})
    if param_dtype is not None:
        kind = jnp.dtype(param_dtype)
        module = replaced(module, {"param_dtype": kind})
        params = jax.tree.map(lambda leaf: leaf.astype(kind), params)
    config = {"fields": None, "original": run.config, "source": str(root), "names": {}, "run": step}
    return RunModel(module, built.processor), params, built.processor, config


def refuse(config: Mapping[str, Any]) -> None:
    """Raises for a run, whose parameters have no names of a public checkpoint."""
    if "run" in config:
        raise MmflaxError(
            f"{config['source']} is a run's folder, which holds its weights already; `mmflax "
            f"convert {config['source']} DST` writes the format of the checkpoint that it started "
            "from."
        )
