"""Random changes of training examples that keep their words true.

A change of the image alone teaches falsehoods: a mirrored image answers "is it
on the left?" the other way round. So each change is applied only where the example's own words
allow it (``augment_words`` says which words speak of sides, colors, light and places):

==================  ===============================================================================
flip                ``safe`` leaves out examples whose words name a side; ``swap`` mirrors them too
                    and trades the words (left for right) in every text
hue, saturation     left out where a text names a color
brightness          left out where a text speaks of light
RandAugment         draws among the operations that falsify none of these
crop, erasing       applied whatever the words, for no list tells whether what they hide was asked
                    about: where texts count or place things, leave them off
==================  ===============================================================================

The pipeline hands every example a generator of its own, keyed by its place in the order, so the
changes depend on neither threads nor processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import ImageOps

from mmflax.data.dataset import IMAGES, Raw
from mmflax.data.image import augment as images
from mmflax.data.image.transforms import open_image
from mmflax.data.text import augment as vocabulary
from mmflax.errors import MmflaxError

Augment = Callable[[Raw, np.random.Generator], Raw]

FLIPS = ("off", "safe", "swap")
_MASKABLE = re.compile(r"\w+(?:['’]\w+)*")


def build(
    *,
    crop_scale: Sequence[float] | None = None,
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip: str = "off",
    flip_rate: float = 0.5,
    randaugment_ops: int = 0,
    randaugment_magnitude: float = 5.0,
    randaugment_geometric: bool = True,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    erase_rate: float = 0.0,
    erase_area: Sequence[float] = (0.02, 0.33),
    erase_ratio: Sequence[float] = (0.3, 1 / 0.3),
    mask_rate: float = 0.0,
    mask_token: str = "[MASK]",
    decode_size: int | None = None,
    color_words: Sequence[str] = (),
    side_words: Sequence[Sequence[str]] = (),
) -> Augment:
    """``(raw, generator) -> raw``; the raw example handed in is left as it was.

    The order is crop, flip, RandAugment, color jitter, erasing, masking. The two images of a
    pair go through the same changes; as a mirror also trades their places, ``swap`` does, and
    leaves pairs whose words say "first" or "second" alone.

    Args:
      crop_scale: least and greatest share of the area to keep; None = no cropping.
      crop_ratio: least and greatest width / height of the kept box.
      flip: off, safe or swap.
      flip_rate: how many of the examples that may be mirrored are.
      randaugment_ops: operations an example (N in the paper); 0 = none.
      randaugment_magnitude: their strength, 0..10 (M in the paper).
      randaugment_geometric: whether rotating, shearing and shifting are among them.
      brightness: factors are drawn from ``1 ± value``.
      contrast: likewise.
      saturation: likewise.
      hue: greatest turn, as a share of the color circle, at most 0.5.
      erase_rate: how many examples get a box of noise.
      erase_area: least and greatest share of the image under it.
      erase_ratio: least and greatest height / width of it.
      mask_rate: chance of each word of the question to become ``mask_token``; one word stays.
      mask_token: a tokenizer reads ``[MASK]`` as its special token.
      decode_size: large JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size as long as both sides
        keep this many pixels; allow for cropping. None decodes every pixel.
      color_words: more words that name colors, in another language say.
      side_words: more pairs that trade places in a mirror, such as ``("links", "rechts")``.

    Raises:
      MmflaxError: a field out of range; when called, an image that cannot be read.
    """
    _check_ranges(crop_scale, crop_ratio, erase_area, erase_ratio, side_words)
    for name, value, most in (
        ("flip_rate", flip_rate, 1.0),
        ("erase_rate", erase_rate, 1.0),
        ("mask_rate", mask_rate, 1.0),
        ("hue", hue, 0.5),
        ("brightness", brightness, 1.0),
        ("contrast", contrast, 1.0),
        ("saturation", saturation, 1.0),
        ("randaugment_magnitude", randaugment_magnitude, images.MAX_MAGNITUDE),
    ):
        if not 0 <= value <= most:
            raise MmflaxError(f"augment.{name} is {value}; it must lie in 0..{most:g}.")
    if flip not in FLIPS:
        raise MmflaxError(f"augment.flip is {flip!r}; choose one of {', '.join(FLIPS)}.")
    if randaugment_ops < 0:
        raise MmflaxError(f"augment.randaugment_ops is {randaugment_ops}; it must be 0 or more.")
    if not mask_token:
        raise MmflaxError("augment.mask_token is empty; give the text that hides a word.")
    if decode_size is not None and decode_size < 1:
        raise MmflaxError(f"augment.decode_size is {decode_size}; it must be at least 1 pixel.")
    sides = vocabulary.mirror_table((*vocabulary.SIDES, *side_words))
    colors = vocabulary.COLORS | {word.lower() for word in color_words}
    jitter = any((brightness, contrast, saturation, hue))
    draws = bool(crop_scale or flip != "off" or randaugment_ops or jitter or erase_rate)

    def spoken_of(words: frozenset[str]) -> set[str]:
        named = {"color": colors, "light": vocabulary.LIGHT}
        named["place"] = vocabulary.PLACES | sides.keys()
        return {what for what, list_ in named.items() if words & list_}

    def mirror(raw: Raw, words: frozenset[str]) -> Raw:
        """The example in a mirror, or as it was where that would make its words untrue."""
        first, second = IMAGES
        pair = raw.get(second) is not None
        named = bool(words & sides.keys())
        if words & vocabulary.WRITING or (named and flip == "safe"):
            return raw
        if raw.get("regions") is not None:  # a detector's features have no mirror
            return raw
        if not named:
            return _each_image(raw, ImageOps.mirror)
        if not pair:
            return vocabulary.mirrored(_each_image(raw, ImageOps.mirror), sides)
        if words & vocabulary.ORDINALS:
            return raw
        traded = {**raw, first: raw[second], second: raw[first]}
        return vocabulary.mirrored(_each_image(traded, ImageOps.mirror), sides)

    def augment(raw: Raw, rng: np.random.Generator) -> Raw:
        words = vocabulary.words(raw)
        if draws:
            raw = _opened(raw, decode_size)
            keep = spoken_of(words)
            if crop_scale:
                raw = _each_image(raw, images.random_resized_crop(rng, crop_scale, crop_ratio))
            if flip != "off" and rng.random() < flip_rate:
                raw = mirror(raw, words)
            if randaugment_ops:
                held = keep | (set() if randaugment_geometric else {"place"})
                change = images.randaugment(rng, randaugment_ops, randaugment_magnitude, keep=held)
                raw = _each_image(raw, change)
            if jitter:
                tint = 0.0 if "color" in keep else 1.0
                light = 0.0 if "light" in keep else brightness
                change = images.color_jitter(rng, light, contrast, saturation * tint, hue * tint)
                raw = _each_image(raw, change)
            if erase_rate and rng.random() < erase_rate:
                raw = _each_image(raw, images.random_erasing(rng, erase_area, erase_ratio))
        if mask_rate and raw.get("question"):
            raw = {**raw, "question": _masked(raw["question"], rng, mask_rate, mask_token)}
        return raw

    return augment


def _opened(raw: Raw, at_least: int | None) -> Raw:
    """With its images decoded, so that every change sees upright RGB."""
    opened = {
        key: open_image(raw[key], at_least=at_least) for key in IMAGES if raw.get(key) is not None
    }
    return {**raw, **opened}


def _each_image(raw: Raw, change: images.Change) -> Raw:
    return {**raw, **{key: change(raw[key]) for key in IMAGES if raw.get(key) is not None}}


def _masked(text: str, rng: np.random.Generator, rate: float, token: str) -> str:
    """Each word hidden with chance ``rate``; a text always keeps one."""
    spans = [match.span() for match in _MASKABLE.finditer(text)]
    if not spans:
        return text
    hidden = rng.random(len(spans)) < rate
    spared = int(rng.random() * len(spans))
    if hidden.all():
        hidden[spared] = False
    for (start, end), hide in reversed(list(zip(spans, hidden, strict=True))):
        if hide:
            text = text[:start] + token + text[end:]
    return text


def _check_ranges(
    crop_scale: Any, crop_ratio: Any, erase_area: Any, erase_ratio: Any, side_words: Any
) -> None:
    for name, value, most in (
        ("crop_scale", crop_scale, 1.0),
        ("crop_ratio", crop_ratio, float("inf")),
        ("erase_area", erase_area, 1.0),
        ("erase_ratio", erase_ratio, float("inf")),
    ):
        if value is None and name == "crop_scale":
            continue
        good = (
            isinstance(value, Sequence)
            and len(value) == 2
            and all(isinstance(x, (int, float)) for x in value)
            and 0 < value[0] <= value[1] <= most
        )
        if not good:
            limit = " at most 1" if most == 1.0 else " in ascending order"
            raise MmflaxError(f"augment.{name} is {value!r}; expected two numbers above 0,{limit}.")
    for pair in side_words:
        if isinstance(pair, str) or len(pair) != 2:
            raise MmflaxError(
                f"augment.side_words holds {pair!r}; expected pairs such as ('links', 'rechts')."
            )
