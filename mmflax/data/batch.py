"""The batch contract of ``mmflax.batch_keys``, checked where batches leave the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmflax.batch_keys import CONTRACT
from mmflax.errors import MmflaxError

Batch = dict[str, Any]


def pad_rows(batch: Mapping[str, Any], rows: int) -> Batch:
    """Arrays [b …] as arrays [rows …]: the last row is repeated, under a false ``mask`` if any.

    Repeated rows are computed with and then ignored; zeros could divide into NaN, which no mask
    removes.
    """
    arrays = {key: np.asarray(value) for key, value in batch.items()}
    count = len(next(iter(arrays.values())))
    if count > rows:
        raise MmflaxError(f"The batch has {count} rows; expected at most {rows}.")
    if count == rows:
        return arrays
    padded = {
        key: np.concatenate([value, value[-1:].repeat(rows - count, axis=0)])
        for key, value in arrays.items()
    }
    if "mask" in padded:
        padded["mask"][count:] = False
    return padded


def check_batch(batch: Mapping[str, Any]) -> None:
    """Raises MmflaxError naming the first key that is missing, unknown or of another form."""
    missing = [
        key
        for key, field in CONTRACT.items()
        if field.required and key not in batch and not (key == "image" and "regions" in batch)
    ]
    unknown = [key for key in batch if key not in CONTRACT]
    if missing or unknown:
        raise MmflaxError(
            f"The batch lacks {missing or 'nothing'} and has unknown keys {unknown or 'none'}; "
            f"the keys are {', '.join(CONTRACT)}."
        )
    sizes: dict[str, int] = {}
    for key, value in batch.items():
        field = CONTRACT[key]
        dtype = getattr(value, "dtype", None)
        name = "str" if getattr(dtype, "kind", "") in ("U", "O") else str(dtype)
        shape = np.shape(value)
        good = name == field.dtype and len(shape) == len(field.axes)
        if good:
            for axis, size in zip(field.axes, shape, strict=True):
                expected = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
                good = good and size == expected
        if not good:
            axes = " ".join(
                f"{axis}={sizes[axis]}" if axis in sizes else str(axis) for axis in field.axes
            )
            raise MmflaxError(
                f"The batch's {key!r} is {name} {list(shape)}; expected {field.dtype} [{axes}] "
                f"({field.meaning})."
            )
