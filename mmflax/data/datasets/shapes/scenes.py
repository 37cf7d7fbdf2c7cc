"""Scenes of colored shapes with their captions and questions.

A scene is 1 to 5 objects (shape, color, size, place) that may overlap in part, on a shaded, noisy
background, with questions. Everything is a pure function of ``(split, index, seed)``.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mmflax.data.datasets.shapes.questions import ask
from mmflax.data.datasets.shapes.things import (
    CELLS,
    COLORS,
    SHAPES,
    SIZES,
    Thing,
    caption,
    pick,
    render,
)

VERSION = "1.1.0"
SPLITS = ("train", "validation", "test")
_JITTER = 0.04  # how far an object is from the middle of its cell, in image sides


class SceneExample(NamedTuple):
    """``image`` is uint8 [h w 3]; ``questions`` are (question, answer, question type)."""

    id: str
    image: np.ndarray
    caption: str
    questions: list[tuple[str, str, str]]
    things: tuple[Thing, ...]


def generate(
    split: str, num_scenes: int, seed: int = 0, image_size: int = 64
) -> Iterator[SceneExample]:
    """Yields ``num_scenes`` scenes of a split, always the same ones.

    No scene of one split stands in another: the (color, shape) multiset, the places and the noise
    are drawn from a continuous stream whose key holds the split's name.
    """
    for index in range(num_scenes):
        yield scene(split, index, seed, image_size)


def scene(split: str, index: int, seed: int, image_size: int) -> SceneExample:
    """The scene of that index: equal arguments give equal bytes."""
    key = hashlib.sha256(f"shapes/{seed}/{split}/{index}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    things = _place(rng)
    image = render(things, rng, image_size)
    return SceneExample(f"{split}-{index:06d}", image, caption(things), ask(things, rng), things)


def _place(rng: np.random.Generator) -> tuple[Thing, ...]:
    """1 to 5 objects near the middles of different cells; neighbors may overlap in part."""
    wanted = 1 + int(np.searchsorted([0.20, 0.45, 0.70, 0.86], rng.random()))
    cells = rng.permutation(CELLS * CELLS)[:wanted]
    things: list[Thing] = []
    for cell in cells:
        row, column = divmod(int(cell), CELLS)
        x, y = (np.array([column, row]) + 0.5) / CELLS + rng.uniform(-_JITTER, _JITTER, 2)
        # Repeating a color or a shape already there makes counts and distractors non-trivial.
        shape = pick(rng, SHAPES)
        color = pick(rng, list(COLORS))
        if things and rng.random() < 0.35:
            other = pick(rng, things)
            if rng.random() < 0.5:
                shape = other.shape
            else:
                color = other.color
        things.append(Thing(shape, color, pick(rng, list(SIZES)), float(x), float(y)))
    return tuple(things)


def split_sizes(num_scenes: int) -> dict[str, int]:
    """Scenes of each split for so many training scenes."""
    others = -(-num_scenes // 8)
    return {"train": num_scenes, "validation": others, "test": others}


def counts_key(split: str) -> str:
    """The key of the number of questions of each scene in the files' metadata."""
    return f"questions_per_scene_{split}"


def things_key(split: str) -> str:
    """The key of the objects of each scene, in ``Thing``'s order of fields."""
    return f"things_{split}"


def fingerprint(image_size: int, seed: int, num_scenes: int = 4) -> str:
    """sha256 over the first scenes of every split: pixels, captions, questions, objects.

    Part of the files' folder name, so that files made by other drawing code are never read.
    """
    digest = hashlib.sha256(VERSION.encode())
    for split in SPLITS:
        for example in generate(split, num_scenes, seed, image_size):
            digest.update(example.image.tobytes())
            texts = (
                example.id,
                example.caption,
                example.questions,
                [tuple(t) for t in example.things],
            )
            digest.update(repr(texts).encode())
    return digest.hexdigest()
