"""A data set in memory, of pixels or of a detector's regions, where either side may be absent."""

from typing import Any

import numpy as np

from mmflax.data.dataset import Dataset, Raw, in_memory

WORDS = ("red", "green", "blue", "circle", "square", "left")


def build(*, regions: bool = False, pairs: bool = False, drop: str = "") -> Dataset:
    """Of each six examples one has no image, one has no text and, of pairs, one no second image.

    `drop` names a key that no example has.
    """
    sizes = {"train": 12, "validation": 6, "test": 6}
    return in_memory(
        {
            split: [example(number, split, regions, pairs, drop) for number in range(size)]
            for split, size in sizes.items()
        },
        name="mixed",
    )


def example(number: int, split: str, regions: bool, pairs: bool, drop: str) -> Raw:
    rng = np.random.default_rng([len(split), number])
    text = " ".join(rng.choice(WORDS, 3))
    answer = "yes" if number % 2 else "no"
    raw: dict[str, Any] = {
        "question": None if number % 6 == 2 else text,
        "answer": answer,
        "answers": [answer] * 3,
        "target": text,
        "references": [text],
        "caption": text,
        "image_id": f"{split}{number // 2}",
        "group": number // 2,
        "id": f"{split}:{number}",
        "image": None,
    }
    for prefix, absent in (("", 1), ("second_", 3))[: 1 + pairs]:
        if number % 6 != absent:
            raw |= {prefix + key: value for key, value in shown(rng, regions).items()}
    return {key: value for key, value in raw.items() if not drop or not key.startswith(drop)}


def shown(rng: np.random.Generator, regions: bool) -> dict[str, Any]:
    """An image in pixels, or two or three regions with the detector's class probabilities."""
    if not regions:
        return {"image": rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)}
    count = int(rng.integers(2, 4))
    labels = rng.random((count, 4)).astype(np.float32)
    return {
        "regions": rng.normal(size=(count, 5)).astype(np.float32),
        "boxes": np.sort(rng.random((count, 4)), axis=1).astype(np.float32),
        "region_labels": labels / labels.sum(axis=1, keepdims=True),
    }
