"""``shapes``: rendered scenes with questions that only the picture answers.

Made on the first use into ``data_dir`` and read from there, without a network. The scenes are drawn
by ``shapes_scenes``; this module keeps them on disk and serves one raw example a question.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.datasets import shapes_scenes
from mmflax.errors import MmflaxError

VERSION = "1.0.0"
SPLITS = ("train", "validation", "test")
_KEEP_SCENES = 20_000  # decoded scenes held in memory: 250 MB at 64 x 64


def build(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_scenes: int = 4000,
    image_size: int = 64,
    seed: int = 0,
) -> Dataset:
    """``num_scenes`` training scenes of 5 or 6 questions; an eighth as many for each other split.

    Args:
      data_dir: where the files live; by default ``MMFLAX_DATA_DIR`` from the environment, else
        ``~/.cache/mmflax``.
      num_scenes: of the train split.
      image_size: pixels a side.
      seed: of scenes and questions; splits never share a scene.

    Raises:
      MmflaxError: a field out of range, or a folder that cannot be written.
    """
    for name, value, least in (
        ("num_scenes", num_scenes, 1),
        ("image_size", image_size, 16),
        ("seed", seed, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise MmflaxError(f"{name} is {value!r}; it must be a whole number, at least {least}.")
    root = pathlib.Path(
        data_dir or os.environ.get("MMFLAX_DATA_DIR") or "~/.cache/mmflax"
    ).expanduser()
    digest = fingerprint(image_size, seed)
    name = f"scenes{num_scenes}_size{image_size}_seed{seed}_{digest[:12]}"
    with _quiet():
        builder = _prepared(root, name, num_scenes, image_size, seed)
        splits = {split: _open(builder, split) for split in SPLITS}
    info = {"version": VERSION, "fingerprint": digest, "files": str(builder.data_path)}
    return Dataset(name="shapes", splits=splits, info=info)


def split_sizes(num_scenes: int) -> dict[str, int]:
    """Scenes of each split for so many training scenes."""
    others = -(-num_scenes // 8)
    return {"train": num_scenes, "validation": others, "test": others}


def counts_key(split: str) -> str:
    """Where the files' metadata keep each scene's number of questions."""
    return f"questions_per_scene_{split}"


def fingerprint(image_size: int, seed: int, num_scenes: int = 4) -> str:
    """sha256 over the first scenes of every split: pixels, captions, questions.

    Part of the files' folder name, so that files made by other drawing code are never read.
    """
    digest = hashlib.sha256(VERSION.encode())
    for split in SPLITS:
        for scene in shapes_scenes.generate(split, num_scenes, seed, image_size):
            digest.update(scene.image.tobytes())
            digest.update(repr((scene.id, scene.caption, scene.questions)).encode())
    return digest.hexdigest()


class ShapesSource:
    """One raw example a question, over one record a scene; decoded scenes are kept in memory."""

    def __init__(self, scenes: Sequence[Any], questions_per_scene: Sequence[int]):
        self._scenes = scenes
        self._ends = np.cumsum(questions_per_scene)
        self._kept: dict[int, tuple[Raw, list[Raw]]] = {}
        self._lock = threading.Lock()  # ArrayRecord's reader is shared by the pipeline's threads

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Raw:
        if not 0 <= index < len(self):
            raise IndexError(index)
        scene_index = int(np.searchsorted(self._ends, index, side="right"))
        scene, questions = self._kept.get(scene_index) or self._read(scene_index)
        which = index - int(self._ends[scene_index]) + len(questions)
        return {
            **scene,
            # A copy, because an augmentation may draw on it.
            "image": scene["image"].copy(),
            "id": f"{scene['scene']}/{which}",
            **questions[which],
        }

    def _read(self, scene_index: int) -> tuple[Raw, list[Raw]]:
        with self._lock:
            record = self._scenes[scene_index]
        asked = record["questions"]
        columns = {key: [value.decode() for value in asked[key]] for key in asked}
        questions = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        with Image.open(io.BytesIO(record["image"])) as png:
            image = png.convert("RGB")
        scene = {
            "image": image,
            "caption": record["caption"].decode(),
            "scene": record["id"].decode(),
        }
        if len(self._kept) < _KEEP_SCENES:
            self._kept[scene_index] = (scene, questions)
        return scene, questions


def _open(builder: Any, split: str) -> ShapesSource:
    import tensorflow_datasets as tfds

    scenes = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return ShapesSource(scenes, builder.info.metadata[counts_key(split)])


def _prepared(root: pathlib.Path, name: str, num_scenes: int, image_size: int, seed: int) -> Any:
    """The builder with its files made, by this process or by another that was first."""
    folder = root / "shapes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        from mmflax.data.datasets.shapes_builder import Shapes, ShapesConfig

        with _progress(sum(split_sizes(num_scenes).values())) as on_scene:
            config = ShapesConfig(
                name=name,
                num_scenes=num_scenes,
                image_size=image_size,
                seed=seed,
                on_scene=on_scene,
            )
            # The lock is released by the system even when its holder is killed.
            with open(folder / f".{name}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                builder = Shapes(data_dir=str(root), config=config, file_format="array_record")
                if not builder.is_prepared():
                    # Nothing is downloaded, but the folder for it is made all the same.
                    builder.download_and_prepare(download_dir=str(folder / ".downloads"))
            return builder
    except OSError as error:
        raise MmflaxError(
            f"The shapes dataset cannot be written to {folder}: {error.strerror or error}; free "
            "some space, or set MMFLAX_DATA_DIR to a folder that can be written."
        ) from error


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, else a line at the start; a line at the end; nothing if not called."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    started = time.monotonic()
    done = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("shapes: drawing scenes", total=total, visible=False)

        def on_scene() -> None:
            nonlocal done
            if not done and not console.is_terminal:
                print(f"shapes: drawing {total} scenes ...", file=sys.stderr)
            done += 1
            progress.update(task, advance=1, visible=True)

        yield on_scene
    if done:
        seconds = time.monotonic() - started
        print(f"shapes: drew {done} scenes in {seconds:.1f} s", file=sys.stderr)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tensorflow-datasets' bars and notes away; its errors still arrive as exceptions."""
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        # It prints to stdout, which belongs to --json.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
