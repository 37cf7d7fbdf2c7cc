"""Exact evaluation of any number of examples on any mesh."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmflax.data.batch import pad_rows
from mmflax.distributed.mesh import data_shard, on_mesh, put_batch
from mmflax.errors import MmflaxError


def make_evaluate(
    eval_step: Callable[[Any, dict], dict], mesh: Mesh
) -> Callable[[Any, Iterable[Mapping[str, np.ndarray]]], dict[str, float]]:
    """``evaluate(params, batches) -> {name: mean}``, compiled once per batch shape.

    ``batches`` yields this process's rows; a batch without ``mask`` counts whole, and one shorter
    than the first is padded. Every process must yield equally many batches. A metric that counted
    nothing is left out.

    Raises:
      MmflaxError: if there is no example at all.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    # No donation: the parameters go on being trained.
    step = on_mesh(jax.jit(eval_step, out_shardings=replicated), mesh)
    _, parts = data_shard(mesh)
    multiple = int(np.prod([mesh.shape[axis] for axis in ("data", "fsdp")])) // parts

    def evaluate(params, batches):
        totals: dict[str, np.ndarray] = {}
        rows = 0
        waiting: list = []
        for batch in batches:
            arrays = {name: np.asarray(value) for name, value in batch.items() if name != "id"}
            count = len(next(iter(arrays.values())))
            rows = rows or -(-count // multiple) * multiple
            arrays.setdefault("mask", np.ones(count, bool))
            waiting.append(step(params, put_batch(pad_rows(arrays, rows), mesh)))
            if len(waiting) > 1:  # one late, so that the device always has work
                _add(totals, waiting.pop(0))
        for sums in waiting:
            _add(totals, sums)
        if "loss" not in totals or not totals["loss"][1]:
            raise MmflaxError("evaluation found no examples: check the split and its filters")
        return {name: float(total / n) for name, (total, n) in sorted(totals.items()) if n}

    return evaluate


def evaluate(
    eval_step: Callable[[Any, dict], dict],
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, float]:
    """``make_evaluate`` for one use; compiles every time."""
    return make_evaluate(eval_step, mesh)(params, batches)


def _add(totals: dict[str, np.ndarray], sums: dict) -> None:
    # Double precision on the host: float32 stops counting at 2**24 examples.
    for name, pair in jax.device_get(sums).items():
        totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
