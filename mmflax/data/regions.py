"""Regions of a detector as arrays of one shape: padded, with a mask that says which are real."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmflax.data.batch import Batch
from mmflax.data.dataset import Raw, has_image
from mmflax.errors import MmflaxError

_SLACK = 0.01  # detectors' boxes reach a little beyond the image


def region_arrays(
    raws: Sequence[Raw], most: int, dim: int, classes: int, absent: bool, prefix: str
) -> Batch:
    """``regions`` [b r f], ``boxes`` [b r 4], ``region_mask`` [b r] and, with ``classes`` above 0,
    ``region_labels`` [b r k] of raw examples.

    Args:
      raws: each with ``regions`` [n f] and ``boxes`` [n 4], n up to ``most``, and with ``classes``
        ``region_labels``: probabilities [n k], or one class a region, int [n].
      most: regions of a row of the batch, r.
      dim: numbers of a region, f.
      classes: of the detector, k.
      absent: whether an example may come without regions; not one with an image, though.
      prefix: of the keys; ``second_`` for the second image of a pair.

    Raises:
      MmflaxError: naming the example whose regions are missing or of another shape.
    """
    widths = {"regions": dim, "boxes": 4} | ({"region_labels": classes} if classes else {})
    arrays: Batch = {key: np.zeros((len(raws), most, n), np.float32) for key, n in widths.items()}
    mask = np.zeros((len(raws), most), bool)
    for row, raw in enumerate(raws):
        if absent and not has_image(raw, prefix):
            continue
        try:
            values = _checked(raw, most, widths, prefix)
        except MmflaxError as error:
            raise MmflaxError(f"Example {raw.get('id', '?')}: {error}") from error
        for key, value in values.items():
            arrays[key][row, : len(value)] = value
        mask[row, : len(values["regions"])] = True
    arrays["region_mask"] = mask
    return {prefix + key: array for key, array in arrays.items()}


def _checked(raw: Raw, most: int, widths: dict[str, int], prefix: str) -> dict[str, np.ndarray]:
    if raw.get(f"{prefix}regions") is None:
        raise MmflaxError(
            f"there are no {prefix}regions; give a detector's features [n {widths['regions']}] and "
            "boxes [n 4] (a model of regions reads no pixels), or "
            "--config.processor.absent_images=True if they may be absent."
        )
    values: dict[str, np.ndarray] = {}
    for key, width in widths.items():
        value = np.asarray(raw.get(prefix + key))
        if key == "region_labels" and value.ndim == 1 and value.dtype.kind in "iu":
            if value.size and not 0 <= value.min() <= value.max() < width:
                raise MmflaxError(
                    f"{prefix}region_labels has classes {value.min()} to {value.max()}; expected "
                    f"0 to {width - 1}, since the training data has {width}."
                )
            value = (value[:, None] == np.arange(width)).astype(np.float32)
        expected, remark = "n", f" with n from 1 to {most}"
        good = value.ndim == 2 and value.shape[1] == width and 0 < len(value) <= most
        if values:
            rows = len(values["regions"])
            expected, remark = str(rows), ", a row for each region"
            good = good and len(value) == rows
        if not good:
            raise MmflaxError(
                f"{prefix}{key} is {list(value.shape)}; expected [{expected} {width}]{remark}."
            )
        values[key] = value
        _check_numbers(prefix + key, key, value)
    return values


def _check_numbers(name: str, key: str, value: np.ndarray) -> None:
    """Raises for numbers that no detector gives: they would become NaN or another place."""
    if not np.isfinite(value).all():
        row = int(np.argmin(np.isfinite(value).all(axis=1)))
        raise MmflaxError(f"{name} has a NaN or an infinity in row {row}; expected finite numbers.")
    if key == "boxes":
        good = (value >= -_SLACK) & (value <= 1 + _SLACK)
        good = good.all(axis=1) & (value[:, 0] <= value[:, 2]) & (value[:, 1] <= value[:, 3])
        if not good.all():
            row = int(np.argmin(good))
            raise MmflaxError(
                f"{name} has {np.round(value[row], 4).tolist()} in row {row}; expected x1 y1 x2 y2 "
                "from 0 to 1 with x1 <= x2 and y1 <= y2: divide pixels by the image's width and "
                "height."
            )
    if key == "region_labels" and not ((value >= 0) & (value <= 1 + _SLACK)).all():
        raise MmflaxError(
            f"{name} has numbers from {value.min():.3g} to {value.max():.3g}; expected "
            "probabilities, from 0 to 1."
        )
