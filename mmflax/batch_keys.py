"""The keys of a batch: dtype, axes and meaning of each, and which of them a model reads.

Axes: ``b`` rows of this process, ``h w`` pixels, ``t`` text tokens, ``n`` image tokens,
``r`` regions of a detector, ``f`` their features, ``k`` its classes, ``c`` caption tokens, ``s``
target tokens, ``a`` answers.

The second image of a pair has the keys of the first with ``second_`` before them. An image is
absent where its ``image_present`` is false, or where its ``image_mask`` or ``region_mask`` is
all-false; a mask that a pair has only once holds for both images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmflax.errors import MmflaxError

SECOND = "second_"
PREFIXES = ("", SECOND)


class Field(NamedTuple):
    """``dtype`` is a numpy name, or ``str`` for numpy text; ``axes`` are one letter each."""

    dtype: str
    axes: tuple[str | int, ...]
    meaning: str
    required: bool = False


_IMAGE = {
    "image": Field("float32", ("b", "h", "w", 3), "pixels in the processor's normalization", True),
    "image_present": Field("bool", ("b",), "false = there is no image"),
    "image_mask": Field("bool", ("b", "n"), "true = use this image token"),
    "regions": Field("float32", ("b", "r", "f"), "a detector's features of each region"),
    "boxes": Field("float32", ("b", "r", 4), "x1 y1 x2 y2 of each region, in 0..1"),
    "region_mask": Field("bool", ("b", "r"), "true = use this region"),
    "region_labels": Field("float32", ("b", "r", "k"), "the detector's class probabilities"),
}
_TEXT = {
    "tokens": Field("int32", ("b", "t"), "token ids, padded", True),
    "text_mask": Field("bool", ("b", "t"), "true = use this token", True),
}
CONTRACT = {
    **_IMAGE,
    **{
        SECOND + key: field._replace(meaning=f"{field.meaning} (second image)", required=False)
        for key, field in _IMAGE.items()
    },
    **_TEXT,
    "image_key": Field("int32", ("b",), "equal where the image is the same one"),
    "caption": Field("int32", ("b", "c"), "token ids of a caption of the image, padded"),
    "caption_mask": Field("bool", ("b", "c"), "true = use this caption token"),
    "target": Field("int32", ("b", "s"), "token ids of the text to be generated, padded"),
    "target_mask": Field("bool", ("b", "s"), "true = use this target token"),
    "answer_scores": Field("float32", ("b", "a"), "each answer's soft score in 0..1"),
    "label": Field("int32", ("b",), "answer index, -1 = not among the answers", True),
    "question_type": Field("int32", ("b",), "question type index, -1 = none", True),
    "mask": Field("bool", ("b",), "false on rows that only fill the batch", True),
    "id": Field("str", ("b",), "names the example; never placed on a device", True),
}
# What encoders read of a batch; the rest is for losses and metrics.
IMAGE_KEYS = tuple(prefix + key for prefix in PREFIXES for key in _IMAGE)
TEXT_KEYS = tuple(_TEXT)

_REMEDIES = {
    "image": "give the examples images and give --config.processor.image_size=PIXELS",
    "regions": "give the examples a detector's region features",
    "region_labels": "give the examples the detector's classes under region_labels",
    "second_image": "give the examples a second image",
    "caption": "give the examples a caption and give --config.processor.caption_length=TOKENS",
    "target": "give the examples a target and give --config.processor.target_length=TOKENS",
    "answer_scores": "give --config.processor.soft_answers=True",
}


def select(batch: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of ``keys`` that the batch holds."""
    return {key: batch[key] for key in keys if batch.get(key) is not None}


def require(batch: Mapping[str, Any], key: str, who: str, otherwise: str) -> Any:
    """``batch[key]``.

    Raises:
      MmflaxError: the batch lacks it: ``who`` needs it, how to get it, and what to do otherwise.
    """
    if batch.get(key) is None:
        raise MmflaxError(
            f"{who} needs {key!r}, which the batch does not hold; {_REMEDIES[key]}, or {otherwise}."
        )
    return batch[key]
