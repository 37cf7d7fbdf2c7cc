"""A trained run, or a published checkpoint, for inference."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmflax.data.processor import Processor
from mmflax.inference.predict import Predictor
from mmflax.pretrained.checkpoint import Pretrained, replaced
from mmflax.pretrained.checkpoint import from_pretrained as load_published
from mmflax.run.former import is_run
from mmflax.run.restore import restore, which


def load(workdir: str, *, step: int | str | None = None, batch_size: int = 8) -> Predictor:
    """The trained model in ``workdir``, for prediction.

    Args:
      step: a checkpoint's step; by default ("best") the best one if the run ranked them, else the
        newest; "last" is the newest. The predictor's ``checkpoint`` says which it is.
      batch_size: examples that one call of the compiled model holds; fewer are padded.
    """
    root = pathlib.Path(workdir)
    experiment, built, params, step = restore(root, step, devices=jax.local_devices()[:1])
    predictor = Predictor(built.task, params, built.processor, batch_size=batch_size)
    predictor.checkpoint = which(experiment, root, step)
    return predictor


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = None,
    param_dtype: Any = "float32",
    **fields: Any,
) -> Pretrained:
    """A published checkpoint, or a run of `mmflax train`, as a model.

    Args:
      source: what `mmflax.pretrained.checkpoint.from_pretrained` takes, or a workdir of `mmflax
        train` (its best checkpoint, else the newest).
      mesh: where to put the parameters; each device is given its part only.
      dtype: of computation; None computes in the parameters' type (a run: as it was trained).
      param_dtype: of the parameters; None keeps the file's.
      fields: the other keywords of `mmflax.pretrained.checkpoint.from_pretrained`; a run has none.

    Raises:
      MmflaxError: what is missing or does not fit, in one sentence.
    """
    if is_run(source):
        return Pretrained(*_open_run(source, dtype=dtype, param_dtype=param_dtype, mesh=mesh))
    return load_published(source, dtype=dtype, param_dtype=param_dtype, mesh=mesh, **fields)


@dataclasses.dataclass(frozen=True)
class RunModel:
    """A task's model, called as a family is: `apply({"params": params}, batch) -> dict`."""

    module: Any
    processor: Processor

    def apply(self, variables: Any, batch: Mapping[str, Any], **fields: Any) -> Any:
        """`fields` are flax's; `train=True` draws dropout, from `rngs={"dropout": key}`."""
        return self.module.apply(variables, batch, **{"train": False, **fields})

    def init(self, rngs: Any, batch: Mapping[str, Any], **fields: Any) -> Any:
        return self.module.init(rngs, batch, **{"train": False, **fields})

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        """A batch with the shapes of a real one."""
        return {name: jnp.asarray(value) for name, value in self.processor.zeros(rows).items()}


def _open_run(
    source: str | os.PathLike[str], *, dtype: Any, param_dtype: Any, mesh: Any
) -> tuple[RunModel, Any, Processor, dict[str, Any]]:
    """Model, parameters, processor and config of a run: its best checkpoint, else the newest.

    Args:
      source: the workdir.
      dtype: of computation; None computes as the run did.
      param_dtype: of the parameters; None keeps the run's.
      mesh: where to put them, by the run's own rules; by default the first device.
    """

    root = pathlib.Path(source).expanduser()
    devices = jax.local_devices()[:1] if mesh is None else None
    run, built, params, step = restore(root, devices=devices, mesh=mesh)
    module = built.task.model
    if dtype is not None:
        module = replaced(module, {"dtype": jnp.dtype(dtype)})
    if param_dtype is not None:
        kind = jnp.dtype(param_dtype)
        module = replaced(module, {"param_dtype": kind})
        params = jax.tree.map(lambda leaf: leaf.astype(kind), params)
    config = {"fields": None, "original": run.config, "source": str(root), "names": {}, "run": step}
    return RunModel(module, built.processor), params, built.processor, config
