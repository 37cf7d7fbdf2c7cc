"""The batch contract: every key's dtype and axes, in one table, checked where batches leave the
pipeline.

Axes: ``b`` rows of this process, ``h w`` pixels, ``t`` text tokens, ``n`` image tokens,
``r`` regions of a detector, ``f`` their features, ``c`` caption tokens, ``s`` target tokens, ``a``
answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mmflax.errors import MmflaxError

Batch = dict[str, Any]


class Field(NamedTuple):
    """``kind`` is a numpy dtype name, or ``str`` for numpy text; ``axes`` one letter each."""

    kind: str
    axes: tuple[str | int, ...]
    required: bool
    meaning: str


CONTRACT = {
    "image": Field("float32", ("b", "h", "w", 3), True, "pixels in the processor's normalisation"),
    "tokens": Field("int32", ("b", "t"), True, "token ids, padded"),
    "text_mask": Field("bool", ("b", "t"), True, "true = use this token"),
    "image_mask": Field("bool", ("b", "n"), False, "true = use this image token"),
    "image_present": Field("bool", ("b",), False, "false = the example has no image"),
    "second_image": Field("float32", ("b", "h", "w", 3), False, "the other image of a pair"),
    "regions": Field("float32", ("b", "r", "f"), False, "a detector's features of each region"),
    "boxes": Field("float32", ("b", "r", 4), False, "x1 y1 x2 y2 of each region, in 0..1"),
    "region_mask": Field("bool", ("b", "r"), False, "true = use this region"),
    "second_regions": Field("float32", ("b", "r", "f"), False, "of the other image of a pair"),
    "second_boxes": Field("float32", ("b", "r", 4), False, "of the other image of a pair"),
    "second_region_mask": Field("bool", ("b", "r"), False, "of the other image of a pair"),
    "image_key": Field("int32", ("b",), False, "equal where the image is the same one"),
    "caption": Field("int32", ("b", "c"), False, "token ids of the picture's caption, padded"),
    "caption_mask": Field("bool", ("b", "c"), False, "true = use this caption token"),
    "target": Field("int32", ("b", "s"), False, "token ids of the text to be generated, padded"),
    "target_mask": Field("bool", ("b", "s"), False, "true = use this target token"),
    "answer_scores": Field("float32", ("b", "a"), False, "each answer's soft score in 0..1"),
    "label": Field("int32", ("b",), True, "answer index, -1 = not among the answers"),
    "question_type": Field("int32", ("b",), True, "question type index, -1 = none"),
    "mask": Field("bool", ("b",), True, "false on rows that only fill the batch"),
    "id": Field("str", ("b",), True, "names the example; never placed on a device"),
}


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
        kind = "str" if getattr(dtype, "kind", "") in ("U", "O") else str(dtype)
        shape = np.shape(value)
        good = kind == field.kind and len(shape) == len(field.axes)
        if good:
            for axis, size in zip(field.axes, shape, strict=True):
                expected = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
                good = good and size == expected
        if not good:
            axes = " ".join(
                f"{axis}={sizes[axis]}" if axis in sizes else str(axis) for axis in field.axes
            )
            raise MmflaxError(
                f"The batch's {key!r} is {kind} {list(shape)}; expected {field.kind} [{axes}] "
                f"({field.meaning})."
            )
