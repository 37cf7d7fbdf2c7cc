"""Trees of arrays as Orbax wants them: typed PRNG keys as numbers, and tables of what was saved."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def table(flat: Mapping[str, Any]) -> dict[str, list[Any]]:
    """path -> [shape, dtype], as it is written beside the arrays."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flat.items()}


def differences(
    saved: Mapping[str, list[Any]], wanted: Mapping[str, Any], partial: bool
) -> list[str]:
    """One sentence for every array that a checkpoint and the config's model do not share."""
    expected = table({name: target(leaf) for name, leaf in wanted.items()})
    lines = []
    for name in sorted({**saved, **expected}):
        if name not in expected:
            if not partial:
                lines.append(f"{name} is only in the checkpoint")
        elif name not in saved:
            lines.append(f"{name} is only in the config's model")
        elif saved[name] != expected[name]:
            (old, old_type), (new, new_type) = saved[name], expected[name]
            lines.append(
                f"{name} is {old_type}{old} in the checkpoint and {new_type}{new} in the config's "
                "model"
            )
    # Parameters first: their moments repeat the same difference.
    return sorted(lines, key=lambda line: not line.startswith("params/"))


def is_key(leaf: Any) -> bool:
    """Whether it is a typed PRNG key."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_key_data(leaf: Any) -> Any:
    """A typed PRNG key as its uint32 numbers; other arrays as they are."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def from_key_data(array: jax.Array, leaf: Any) -> jax.Array:
    """A typed PRNG key where ``leaf`` is one; other arrays as they are."""
    if not is_key(leaf):
        return array
    impls: list[Any] = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), leaf)
    key: jax.Array = jax.random.wrap_key_data(array, impl=impls[0])
    return key


def target(leaf: Any) -> jax.ShapeDtypeStruct:
    """What Orbax restores; arrays without a sharding go to the first local device."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
