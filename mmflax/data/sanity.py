"""Sentences on training data that are probably not as they were meant, said before training.

None of them stops a run: a few examples may be a test, and equal pictures a baseline.
"""

from __future__ import annotations

import os

import numpy as np

from mmflax.data.contents import fingerprint
from mmflax.data.dataset import Source
from mmflax.data.facts import SAMPLED, picture_size, typical_size
from mmflax.data.image.transforms import open_image
from mmflax.errors import MmflaxError

FEWEST = 20  # examples
FAR = 4.0  # times smaller or larger than the typical picture
FAR_SHARE = 0.05  # of the pictures, from which on it is said


def notes(train: Source, image_size: int) -> list[str]:
    """On a train split whose pictures become `image_size` pixels a side."""
    places = np.linspace(0, len(train) - 1, min(SAMPLED, len(train))).round().astype(int).tolist()
    found = (few_examples(train), equal_pictures(train, places), sizes(train, places, image_size))
    return [note for note in found if note is not None]


def few_examples(train: Source) -> str | None:
    """Fewer than can be learned from."""
    if len(train) >= FEWEST:
        return None
    return (
        f"the train split has {len(train)} example{'s' * (len(train) != 1)}, too few to learn "
        "anything that holds for others: the run shows only that everything works; add examples, "
        "hundreds at least"
    )


def equal_pictures(train: Source, places: list[int]) -> str | None:
    """All of these examples show the same picture, by name, bytes or pixels."""
    first, same = None, 0
    for place in places:
        image = train[place].get("image")
        if image is None:
            continue
        try:
            mark = fingerprint(image) if isinstance(image, (str, os.PathLike)) else image
            if first is None:
                first = mark, np.asarray(open_image(image))
            elif not (mark is first[0] or (isinstance(mark, (str, bytes)) and mark == first[0])):
                if not np.array_equal(first[1], np.asarray(open_image(image))):
                    return None
        except (MmflaxError, OSError):  # training names it, or leaves it out
            continue
        same += 1
    if same < 2:
        return None
    return (
        f"the pictures of all {same} training examples that were compared are the same, so nothing "
        "can be learned from them; check that each row names its own picture"
    )


def sizes(train: Source, places: list[int], image_size: int) -> str | None:
    """Many pictures are far smaller or larger than the typical one."""
    seen = tuple(size for place in places if (size := picture_size(train, place)) is not None)
    if not seen or not image_size:
        return None
    width, height = typical_size(seen)
    ratios = [max(size) / max(width, height) for size in seen]
    small, large = sum(r < 1 / FAR for r in ratios), sum(r > FAR for r in ratios)
    if small + large < FAR_SHARE * len(seen):
        return None
    least, most = min(seen, key=max), max(seen, key=max)
    return (
        f"the pictures differ in size, from {least[0]}x{least[1]} to {most[0]}x{most[1]} pixels: "
        f"of {len(seen)} that were looked at, {small} are more than {FAR:g} times smaller and "
        f"{large} more than {FAR:g} times larger than the typical {width}x{height}, and all become "
        f"{image_size}x{image_size}; cut what is asked about out of large ones, or give another "
        "--config.processor.image_size=PIXELS"
    )
