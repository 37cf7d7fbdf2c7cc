"""Where each parameter lies on a mesh, as a table."""

import math
from typing import Any

import jax

from mmflax import paths

HEADER = ("parameter", "shape", "split over", "bytes of a chip")


def layout_table(params: Any, shardings: Any) -> str:
    """One parameter a line: path, shape, mesh axes of each dimension, and bytes on each chip.

    A dimension that is whole has ``-``, and ``whole`` stands for a parameter without any split. The
    last line is the sum over parameters.

    Args:
      params: tree of arrays or shapes.
      shardings: tree of their NamedShardings, as of `mmflax.distributed.mesh.param_specs`.
    """
    rows: list[tuple[str, str, str, str]] = []
    total = 0
    for (path, leaf), sharding in zip(
        paths.leaves(params).items(), jax.tree.leaves(shardings), strict=True
    ):
        part = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += part
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append((path, shape, _axes(sharding, len(leaf.shape)), f"{part:,}"))
    rows.append(("all parameters", "", "", f"{total:,}"))
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=True)][:-1])
        + "  "
        + row[-1].rjust(widths[-1])
        for row in (HEADER, *rows)
    ]
    return "\n".join(lines) + "\n"


def _axes(sharding: jax.sharding.NamedSharding, ndim: int) -> str:
    """Such as ``fsdp, tensor, -``; axes of one device split nothing."""
    found = []
    for axis in (*sharding.spec, *(None,) * (ndim - len(sharding.spec))):
        names = () if axis is None else (axis,) if isinstance(axis, str) else axis
        found.append("x".join(name for name in names if sharding.mesh.shape[name] > 1) or "-")
    return "whole" if set(found) <= {"-"} else ", ".join(found)
