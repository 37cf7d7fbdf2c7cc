"""Regions of a detector as arrays of one shape: padded, with a mask that says which are real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmflax.data.batch import Batch
from mmflax.data.dataset import Raw
from mmflax.errors import MmflaxError


def region_arrays(raws: Sequence[Raw], most: int, dim: int, absent: bool, prefix: str) -> Batch:
    """``regions`` [b r f], ``boxes`` [b r 4] and ``region_mask`` [b r] of raw examples.

    Args:
      raws: each with ``regions`` [n f] and ``boxes`` [n 4], n up to ``most``.
      most: regions of a row of the batch, r.
      dim: numbers of a region, f.
      absent: whether an example may come without; not one with an image, though.
      prefix: of the keys; ``second_`` for the other image of a pair.

    Raises:
      MmflaxError: naming the example whose regions are missing or of another shape.
    """
    rows = len(raws)
    regions = np.zeros((rows, most, dim), np.float32)
    boxes = np.zeros((rows, most, 4), np.float32)
    mask = np.zeros((rows, most), bool)
    for row, raw in enumerate(raws):
        shown = any(raw.get(prefix + key) is not None for key in ("regions", "image"))
        if absent and not shown:
            continue
        try:
            found, where = _pair(raw, most, dim, prefix)
        except MmflaxError as error:
            raise MmflaxError(f"Example {raw.get('id', '?')}: {error}") from error
        count = len(found)
        regions[row, :count], boxes[row, :count], mask[row, :count] = found, where, True
    return {f"{prefix}regions": regions, f"{prefix}boxes": boxes, f"{prefix}region_mask": mask}


def _pair(raw: Raw, most: int, dim: int, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    found = raw.get(f"{prefix}regions")
    if found is None:
        raise MmflaxError(
            f"there are no {prefix}regions; give a detector's features [n {dim}] and boxes [n 4] "
            "(a model of regions reads no pixels), or set processor.absent_images=True if they may "
            "be absent."
        )
    found, boxes = np.asarray(found), np.asarray(raw.get(f"{prefix}boxes"))
    if found.ndim != 2 or found.shape[1] != dim or not 0 < len(found) <= most:
        raise MmflaxError(
            f"{prefix}regions is {list(found.shape)}; expected [n {dim}] with n from 1 to {most}."
        )
    if boxes.shape != (len(found), 4):
        raise MmflaxError(
            f"{prefix}boxes is {list(boxes.shape)}; expected [{len(found)} 4], x1 y1 x2 y2 of each "
            "region in shares of the image."
        )
    return found, boxes


def largest(shape: tuple[int, int], raw: Any) -> tuple[int, int]:
    """Regions and their numbers, where ``raw`` may have more than were seen so far."""
    for key in ("regions", "second_regions"):
        if raw.get(key) is not None:
            count, dim = np.shape(raw[key])
            shape = max(shape[0], count), dim
    return shape
