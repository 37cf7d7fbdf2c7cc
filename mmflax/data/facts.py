"""What a recipe needs to know of the data: counts, sizes of pictures, lengths of texts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmflax.data.dataset import Dataset, Raw, Source, has_image, text_of
from mmflax.data.image.transforms import check_header
from mmflax.errors import MmflaxError

SAMPLED = 256  # pictures whose size is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a data set; the defaults stand for data that are not open yet.

    Attributes:
      task: of the data set, such as "vqa"; "" where it does not say.
      examples: of the train split.
      evaluated: examples of the split that is evaluated during training.
      pictures: different ones in the train split, as far as ids and names tell; 0 = none.
      sizes: (width, height) in pixels, of at most ``SAMPLED`` of them, evenly spaced.
      answers: different ones, as they are written.
      words: of the longest text of the train split, by blanks.
    """

    task: str = ""
    examples: int = 10_000
    evaluated: int = 1_000
    pictures: int = 10_000
    sizes: tuple[tuple[int, int], ...] = ((96, 96),)
    answers: int = 10
    words: int = 10

    @property
    def typical(self) -> tuple[int, int]:
        """(width, height) of the picture with the median longer side; (0, 0) without pictures."""
        return typical_size(self.sizes) if self.sizes else (0, 0)


def facts(dataset: Dataset, evaluated: str = "validation") -> Facts:
    """Of the train split, in one walk over its texts and the headers of some pictures.

    Args:
      dataset: the data.
      evaluated: name of the split that is evaluated during training; it may be absent.
    """
    train = dataset.source("train")
    first: dict[Any, int] = {}  # of each picture, the first example that shows it
    answers, words = set(), 0
    for index in range(len(train)):
        raw = text_of(train, index)
        if has_image(raw):
            first.setdefault(_name(raw, index), index)
        if raw.get("answer") is not None:
            answers.add(raw["answer"])
        for text in (raw.get("question"), raw.get("target")):
            words = max(words, len(text.split()) if text else 0)
    return Facts(
        task=str(dataset.info.get("task", "")),
        examples=len(train),
        evaluated=len(dataset.splits.get(evaluated, ())),
        pictures=len(first),
        sizes=_sizes(train, list(first.values())),
        answers=len(answers),
        words=words,
    )


def typical_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(width, height) of the picture with the median longer side."""
    ordered = sorted(sizes, key=lambda size: (max(size), size))
    return ordered[len(ordered) // 2]


def _name(raw: Raw, index: int) -> Any:
    """Equal for examples of the same picture, where that can be told."""
    if "image_id" in raw:
        return raw["image_id"]
    return raw["image"] if isinstance(raw.get("image"), (str, os.PathLike)) else index


def _sizes(source: Source, places: list[int]) -> tuple[tuple[int, int], ...]:
    count = min(SAMPLED, len(places))
    chosen = np.linspace(0, len(places) - 1, count).round().astype(int).tolist() if count else []
    sizes = (picture_size(source, places[index]) for index in chosen)
    return tuple(size for size in sizes if size is not None)


def picture_size(source: Source, index: int) -> tuple[int, int] | None:
    """Width and height; None where they cannot be read, or a detector's regions stand in place."""
    image = source[index].get("image")
    if isinstance(image, Image.Image):
        return image.size
    if isinstance(image, (str, os.PathLike, bytes)):
        try:
            return check_header(image)
        except MmflaxError:  # training names it, or leaves it out
            return None
    shape = np.shape(image) if image is not None else ()
    return (shape[1], shape[0]) if len(shape) >= 2 else None
