"""What a config says of the mesh, against the devices and the model that are there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmflax import paths
from mmflax.config.sections import AXES, PARTS, MeshConfig
from mmflax.distributed import presets
from mmflax.distributed.mesh import Rules, param_specs
from mmflax.errors import MmflaxError, option


def sizes(mesh: MeshConfig, model: Mapping[str, Any], devices: Sequence[Any]) -> dict[str, int]:
    """data, fsdp and tensor: those of the section, or its preset's.

    Args:
      mesh: the config's section.
      model: the config's section, whose widths and heads a preset divides; it has them unless a
        named variant decides them.
      devices: of the mesh.
    """
    if mesh.preset is None:
        return {axis: getattr(mesh, axis) for axis in AXES}
    parts = [model[part] for part in PARTS]
    widths, heads = (
        [part[key] for part in parts if isinstance(part.get(key), int)]
        for key in ("width", "num_heads")
    )
    slices = presets.slice_count(devices)
    return presets.preset_sizes(mesh.preset, len(devices), slices, widths, heads)


def check_rows(mesh: jax.sharding.Mesh, rows: Mapping[str, int], accumulate: int) -> None:
    """Raises unless every batch divides over data x fsdp, the training's by micro-batches.

    Args:
      mesh: of the run.
      rows: of the batches whose size is known, by their keys in a config.
      accumulate: micro-batches of a step of training.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for where, size in rows.items():
        if size % shards:
            raise MmflaxError(
                f"{where} is {size}, which does not divide over data x fsdp = {shards} "
                f"devices; give {option(where, -(-size // shards) * shards)}."
            )
    size, least = rows.get("data.batch_size", 0), accumulate * shards
    if size % least:
        raise MmflaxError(
            f"data.batch_size is {size}, which does not divide into train.accumulate = "
            f"{accumulate} micro-batches over {shards} devices; give "
            f"{option('data.batch_size', -(-size // least) * least)}."
        )


def check_heads(params: Any, rules: Rules, mesh: jax.sharding.Mesh) -> None:
    """Raises where ``tensor`` splits attention heads and does not divide them.

    Every other mistake of the rules is told by ``param_specs`` once the data are open, which decide
    some of the shapes.
    """
    try:
        param_specs(params, rules, mesh)
    except MmflaxError as error:
        tensor = mesh.shape["tensor"]
        for path, leaf in paths.leaves(params).items():
            heads = leaf.shape[-2] if re.search(r"(^|/)query/kernel$", path) else tensor
            if heads % tensor:
                fits = max(n for n in range(1, tensor) if heads % n == 0 == mesh.size % n)
                raise MmflaxError(
                    f"mesh tensor = {tensor} does not divide the {heads} attention heads of "
                    f"{path.removesuffix('/query/kernel')}, which it splits; give "
                    f"{option('mesh.tensor', fits)}."
                ) from error
