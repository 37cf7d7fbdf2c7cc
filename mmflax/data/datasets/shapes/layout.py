"""What the files of `shapes` depend on, and the names of what their metadata keep."""

from __future__ import annotations

import hashlib

from mmflax.data.datasets.shapes import scenes

VERSION = "1.1.0"
SPLITS = ("train", "validation", "test")


def split_sizes(num_scenes: int) -> dict[str, int]:
    """Scenes of each split for so many training scenes."""
    others = -(-num_scenes // 8)
    return {"train": num_scenes, "validation": others, "test": others}


def counts_key(split: str) -> str:
    """Where the files' metadata keep each scene's number of questions."""
    return f"questions_per_scene_{split}"


def things_key(split: str) -> str:
    """Where they keep each scene's objects, in ``Thing``'s order of fields."""
    return f"things_{split}"


def fingerprint(image_size: int, seed: int, num_scenes: int = 4) -> str:
    """sha256 over the first scenes of every split: pixels, captions, questions, objects.

    Part of the files' folder name, so that files made by other drawing code are never read.
    """
    digest = hashlib.sha256(VERSION.encode())
    for split in SPLITS:
        for scene in scenes.generate(split, num_scenes, seed, image_size):
            digest.update(scene.image.tobytes())
            texts = (scene.id, scene.caption, scene.questions, [tuple(t) for t in scene.things])
            digest.update(repr(texts).encode())
    return digest.hexdigest()
