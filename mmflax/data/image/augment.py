"""Random image augmentation: each function draws parameters and returns a transformation.

Drawn once, it is applied equally to both images of a pair.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mmflax.data.image.transforms import middle

Change = Callable[[Image.Image], Image.Image]

MAX_MAGNITUDE = 10.0
_GRAY = (128, 128, 128)  # fills what a geometric change uncovers


def random_resized_crop(
    rng: np.random.Generator, scale: Sequence[float], ratio: Sequence[float]
) -> Change:
    """A box of ``scale`` of the area and of width / height in ``ratio`` (Szegedy et al. 2015,
    section 6), left at its own size: the processor resizes it."""
    # Ten draws, of which the first that fits is used; then the largest middle box of a legal ratio.
    area = rng.uniform(scale[0], scale[1], 10)
    shape = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), 10))
    place = rng.random((10, 2))

    def change(image: Image.Image) -> Image.Image:
        full_width, full_height = image.size
        for part, aspect, (u, v) in zip(area, shape, place, strict=True):
            size = part * full_width * full_height
            width, height = round(math.sqrt(size * aspect)), round(math.sqrt(size / aspect))
            if 0 < width <= full_width and 0 < height <= full_height:
                left, top = int(u * (full_width - width + 1)), int(v * (full_height - height + 1))
                return image.crop((left, top, left + width, top + height))
        aspect = min(max(full_width / full_height, ratio[0]), ratio[1])
        width = max(1, min(full_width, round(full_height * aspect)))
        height = max(1, min(full_height, round(full_width / aspect)))
        return middle(image, height, width)

    return change


def color_jitter(
    rng: np.random.Generator, brightness: float, contrast: float, saturation: float, hue: float
) -> Change:
    """Factors in ``1 ± value``, the hue turned by up to ``hue`` of the circle, in random order."""
    changes: list[Change] = []
    for amount, enhance in (
        (brightness, ImageEnhance.Brightness),
        (contrast, ImageEnhance.Contrast),
        (saturation, ImageEnhance.Color),
    ):
        factor = float(rng.uniform(max(0.0, 1 - amount), 1 + amount))
        if amount:
            changes.append(_enhance(enhance, factor))
    turn = int(round(float(rng.uniform(-hue, hue)) * 255))
    if hue:
        changes.append(lambda image: _turn_hue(image, turn))
    return _chain([changes[int(i)] for i in rng.permutation(len(changes))])


def random_erasing(
    rng: np.random.Generator, area: Sequence[float], ratio: Sequence[float]
) -> Change:
    """Noise over a box of ``area`` of the picture and height / width in ``ratio`` (Zhong et al.
    2020, algorithm 1; they draw the ratio evenly, we evenly in its logarithm)."""
    part = float(rng.uniform(area[0], area[1]))
    aspect = math.exp(float(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))))
    u, v = rng.random(2)
    noise_seed = int(rng.integers(1 << 62))

    def change(image: Image.Image) -> Image.Image:
        full_width, full_height = image.size
        size = part * full_width * full_height
        height = min(full_height, max(1, round(math.sqrt(size * aspect))))
        width = min(full_width, max(1, round(math.sqrt(size / aspect))))
        noise = np.random.Generator(np.random.PCG64(noise_seed))
        box = noise.integers(0, 256, (height, width, 3), np.uint8)
        image = image.copy()
        corner = (int(u * (full_width - width + 1)), int(v * (full_height - height + 1)))
        image.paste(Image.fromarray(box), corner)
        return image

    return change


class Operation(NamedTuple):
    """One of RandAugment's: ``make(level)`` with a level in -1..1, the share of the full range.

    ``changes`` names what it may falsify: "color", "light", "place". An operation that ``fades``
    colors is held to half its range where the words name one.
    """

    make: Callable[[float], Change]
    changes: frozenset[str] = frozenset()
    fades: bool = False


def randaugment(
    rng: np.random.Generator, count: int, magnitude: float, *, keep: Collection[str] = ()
) -> Change:
    """``count`` operations drawn evenly, with repeats, at one magnitude (Cubuk et al. 2020,
    section 3; ranges of Cubuk et al. 2019, table 6, whose signs we draw evenly).

    Args:
      rng: draws the operations and their directions.
      count: N of the paper.
      magnitude: M of the paper, 0..10.
      keep: of "color", "light" and "place", what must stay true of the picture.
    """
    allowed = [op for op in OPERATIONS.values() if not op.changes & frozenset(keep)]
    changes = []
    for _ in range(count):
        op = allowed[int(rng.random() * len(allowed))]
        sign = 1.0 if rng.random() < 0.5 else -1.0
        level = magnitude / MAX_MAGNITUDE
        if op.fades and "color" in keep:
            level = min(level, 0.5)
        changes.append(op.make(sign * level))
    return _chain(changes)


def _chain(changes: Sequence[Change]) -> Change:
    def change(image: Image.Image) -> Image.Image:
        for one in changes:
            image = one(image)
        return image

    return change


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance], factor: float) -> Change:
    return lambda image: kind(image).enhance(factor)


def _turn_hue(image: Image.Image, turn: int) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _affine(
    coefficients: Callable[[int, int], tuple[float, float, float, float, float, float]],
) -> Change:
    """``x' = a x + b y + c, y' = d x + e y + f`` from the result's pixels to the source's."""

    def change(image: Image.Image) -> Image.Image:
        return image.transform(
            image.size, Image.Transform.AFFINE, coefficients(*image.size),
            resample=Image.Resampling.BILINEAR, fillcolor=_GRAY,
        )  # fmt: skip

    return change


def _rotate(level: float) -> Change:
    return lambda image: image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=_GRAY)


def _posterize(level: float) -> Change:
    return lambda image: ImageOps.posterize(image, 8 - round(4 * abs(level)))


def _solarize(level: float) -> Change:
    return lambda image: ImageOps.solarize(image, round(256 * (1 - abs(level))))


def _enhanced(
    kind: Callable[[Image.Image], ImageEnhance._Enhance], *changes: str, fades: bool = False
) -> Operation:
    return Operation(lambda level: _enhance(kind, 1 + 0.9 * level), frozenset(changes), fades)


_ALL_LIGHT = frozenset({"color", "light"})
_PLACE = frozenset({"place"})
# Offsets of 150 pixels in images of 331, as a share.
_SHIFT = 150 / 331
OPERATIONS = {
    "identity": Operation(lambda level: lambda image: image),
    "autocontrast": Operation(lambda level: ImageOps.autocontrast, _ALL_LIGHT),
    "equalize": Operation(lambda level: ImageOps.equalize, _ALL_LIGHT),
    "rotate": Operation(_rotate, _PLACE),
    "solarize": Operation(_solarize, _ALL_LIGHT),
    "color": _enhanced(ImageEnhance.Color, "color"),
    "posterize": Operation(_posterize, frozenset({"color"})),
    "contrast": _enhanced(ImageEnhance.Contrast, fades=True),
    "brightness": _enhanced(ImageEnhance.Brightness, "light", fades=True),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": Operation(lambda level: _affine(lambda w, h: (1, 0.3 * level, 0, 0, 1, 0)), _PLACE),
    "shear_y": Operation(lambda level: _affine(lambda w, h: (1, 0, 0, 0.3 * level, 1, 0)), _PLACE),
    "translate_x": Operation(
        lambda level: _affine(lambda w, h: (1, 0, _SHIFT * level * w, 0, 1, 0)), _PLACE
    ),
    "translate_y": Operation(
        lambda level: _affine(lambda w, h: (1, 0, 0, 0, 1, _SHIFT * level * h)), _PLACE
    ),
}
