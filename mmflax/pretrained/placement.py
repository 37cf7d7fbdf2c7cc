"""Parameters of a checkpoint onto devices, one at a time, so that no second copy is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmflax import paths
from mmflax.distributed import mesh as meshes
from mmflax.pretrained.inspect import LazyArray


def load_parameters(
    model: Any,
    shapes: Mapping[str, Any],
    lazy: Mapping[str, LazyArray],
    mesh: jax.sharding.Mesh | None,
    mesh_rules: Sequence[Any],
) -> Any:
    """The tree of `shapes`, each parameter straight to its devices; what is lacking at random."""
    shardings: dict[str, Any] = {}
    if mesh is not None:
        # A published model need not have every part that a rule is for.
        optional = [(*rule[:2], True) for rule in mesh_rules]
        tree = paths.nested(dict(shapes))
        shardings = paths.leaves(meshes.param_specs(tree, optional, mesh))
    drawn: Mapping[str, Any] = {}
    if lazy.keys() != shapes.keys():
        drawn = paths.leaves(model.init(jax.random.key(0), model.zeros())["params"])
    placed = {}
    for path, leaf in shapes.items():
        value = lazy[path].read() if path in lazy else np.asarray(drawn[path])
        placed[path] = place(value, leaf.dtype, shardings.get(path))
    return paths.nested(placed)


def place(array: np.ndarray, dtype: Any, sharding: Any) -> jax.Array:
    """One array onto its devices, in this type; without a sharding onto the default device."""
    if sharding is None:
        return jnp.asarray(contiguous(array, dtype))
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: contiguous(array[index], dtype)
    )


def contiguous(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in this type, in one block of memory."""
    # numpy makes a number into a vector here.
    return np.ascontiguousarray(array.astype(dtype, copy=False)).reshape(array.shape)
