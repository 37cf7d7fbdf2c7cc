"""A part of an enlarged image, without the rest of it.

Pillow's resize with a `box` keeps the box in single precision, so its pixels may differ from those
of the whole; and the whole of an image of 60,000 x 1 pixels whose short side becomes 224 takes
9 GB. This computes what Pillow's resize gives at the wanted columns and rows alone: the horizontal
pass, then the vertical one, each with weights in double precision that are rounded to 22 bits and
sums that are rounded to 8.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

_BITS = 22


class _Kernel(NamedTuple):
    support: float
    weight: Callable[[np.ndarray], np.ndarray]


def resized_part(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], filter: str
) -> Image.Image:
    """`image.resize(size, filter).crop(box)`, pixel by pixel, for a `size` that is no smaller.

    Where `nearest` falls between two pixels it may take the other one.

    Args:
      image: RGB.
      size: width and height of the whole resized image, which is never made.
      box: left, top, right and bottom in it, inside of it.
      filter: `nearest`, `box`, `bilinear`, `bicubic` or `lanczos`.
    """
    left, top, right, bottom = box
    columns, across = _taps(image.width, size[0], left, right, filter)
    rows, down = _taps(image.height, size[1], top, bottom, filter)
    first = columns.min(), rows.min()
    used = image.crop((*first, columns.max() + 1, rows.max() + 1))
    pixels = _weighted(np.asarray(used), columns - first[0], across)
    pixels = _weighted(pixels.swapaxes(0, 1), rows - first[1], down).swapaxes(0, 1)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _taps(
    old: int, new: int, start: int, stop: int, filter: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Places [n k] among `old` pixels that each of `start` to `stop` of `new` is made of, and their
    weights times 2^22; None is one pixel of weight 1."""
    places = np.arange(start, stop)
    scale = old / new
    if new == old or filter == "nearest":
        return ((places + 0.5) * scale).astype(np.int64)[:, None], None
    kernel = _KERNELS[filter]
    stretch = max(scale, 1.0)
    support = kernel.support * stretch
    center = (places + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), old)
    taps = first[:, None] + np.arange(2 * math.ceil(support) + 1)
    used = taps < last[:, None]
    weights = kernel.weight((taps - center[:, None] + 0.5) * (1.0 / stretch)) * used
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=weights, where=total != 0)
    whole = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int64)
    return np.minimum(taps, last[:, None] - 1), whole  # the places past the last have weight 0


def _weighted(pixels: np.ndarray, taps: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """uint8 [h w 3] to [h n 3]."""
    if weights is None:
        return pixels[:, taps[:, 0]]
    out = np.empty((pixels.shape[0], len(taps), 3), np.uint8)
    for place, (tap, weight) in enumerate(zip(taps, weights, strict=True)):
        sums = np.einsum("hkc,k->hc", pixels[:, tap].astype(np.int64), weight)
        out[:, place] = np.clip((sums + (1 << (_BITS - 1))) >> _BITS, 0, 255)
    return out


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS = {
    "box": _Kernel(0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(np.float64)),
    "bilinear": _Kernel(1.0, lambda x: np.maximum(1.0 - np.abs(x), 0.0)),
    "bicubic": _Kernel(2.0, _bicubic),
    "lanczos": _Kernel(3.0, _lanczos),
}
