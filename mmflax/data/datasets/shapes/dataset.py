"""``shapes``: generated scenes, with examples of every task that need the image.

Written to ``data_dir`` on the first use, without a network, once for all tasks. The scenes are
drawn by ``shapes.scenes`` and turned into a task's examples by ``shapes.tasks``; this module reads
them and returns raw examples by index.
"""

import io
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.datasets.cache import Folder, data_root, locked, progress, quiet
from mmflax.data.datasets.shapes import scenes as shapes_scenes
from mmflax.data.datasets.shapes import tasks
from mmflax.data.datasets.shapes.things import Thing
from mmflax.errors import MmflaxError

_KEEP_SCENES = 40_000  # decoded scenes held in memory: 500 MB at 64 x 64

_IMAGES = ("image", "second_image")


def build(
    *,
    task: str = "vqa",
    annotators: int = 0,
    data_dir: Folder = None,
    num_scenes: int = 4000,
    image_size: int = 64,
    seed: int = 0,
) -> Dataset:
    """``num_scenes`` training scenes, an eighth as many for each other split, under one task.

    Args:
      task: vqa, generative_vqa, captioning, matching, retrieval, entailment, nlvr, nlvr2,
        classification or translation; see ``shapes.tasks``.
      annotators: of questions only: how many people's ``answers`` to simulate (VQAv2 has 10), some
        of whom err; 0 = none.
      data_dir: where the files live; by default ``MMFLAX_DATA_DIR`` from the environment, else
        ``~/.cache/mmflax``.
      num_scenes: of the train split.
      image_size: pixels a side.
      seed: of scenes and examples; splits never share a scene.

    Raises:
      MmflaxError: a field out of range, or a folder that cannot be written.
    """
    for name, value, least in (
        ("num_scenes", num_scenes, 1),
        ("image_size", image_size, 16),
        ("seed", seed, 0),
        ("annotators", annotators, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise MmflaxError(f"{name} is {value!r}; it must be a whole number, at least {least}.")
    if task not in tasks.names():
        raise MmflaxError(f"The shapes task is {task!r}; choose one of {', '.join(tasks.names())}.")
    if annotators and task not in tasks.QUESTIONS:
        raise MmflaxError(
            f"annotators is {annotators}, but the examples of {task} have no answers of people; "
            f"it goes with {' and '.join(tasks.QUESTIONS)}."
        )
    digest = shapes_scenes.fingerprint(image_size, seed)
    fields = {"num_scenes": num_scenes, "image_size": image_size, "seed": seed}
    with quiet():
        builder = _prepared(data_dir, digest, **fields)
        splits = {split: _open(builder, split, task, annotators) for split in shapes_scenes.SPLITS}
    info = {"task": task, "version": shapes_scenes.VERSION, "fingerprint": digest}
    # The texts of every split are made by the same rules, so they need no room to be longer.
    more = {"files": str(builder.data_path), "head_room": 0.0}
    return Dataset(name="shapes", splits=splits, info=info | more)


class _Scenes:
    """Scenes by index; decoded ones are kept in memory."""

    def __init__(self, records: Sequence[Any]):
        self._records = records
        self._kept: dict[int, tuple[Raw, list[Raw]]] = {}
        self._lock = threading.Lock()  # ArrayRecord's reader is shared by the pipeline's threads

    def read(self, index: int) -> tuple[Raw, list[Raw]]:
        """The fields that all examples of a scene share, and the scene's questions."""
        return self._kept.get(index) or self._decode(index)

    def _decode(self, index: int) -> tuple[Raw, list[Raw]]:
        with self._lock:
            record = self._records[index]
        asked = record["questions"]
        columns = {key: [value.decode() for value in asked[key]] for key in asked}
        questions = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        with Image.open(io.BytesIO(record["image"])) as png:
            image = png.convert("RGB")
        caption, scene = record["caption"].decode(), record["id"].decode()
        shared = {"image": image, "caption": caption, "scene": scene}
        if len(self._kept) < _KEEP_SCENES:
            self._kept[index] = (shared, questions)
        return shared, questions


class SceneSource:
    """Raw examples over scenes.

    Args:
      scenes: what is on disk.
      owners: the scene of each example, ascending.
      fields: ``(index, which, questions) -> fields`` of an example in addition to its scene's;
        ``which`` counts within the scene.
    """

    def __init__(
        self, scenes: _Scenes, owners: np.ndarray, fields: Callable[[int, int, list[Raw]], Raw]
    ):
        self._scenes = scenes
        self._owners = owners
        self._which = np.arange(len(owners)) - np.searchsorted(owners, owners)
        self._fields = fields

    def __len__(self) -> int:
        return len(self._owners)

    def __getitem__(self, index: int, /) -> Raw:
        raw = self.without_images(index)
        # Copies, because an augmentation may draw on them.
        return raw | {key: raw[key].copy() for key in _IMAGES if key in raw}

    def without_images(self, index: int) -> Raw:
        """For a reader of the texts: the images are those that are kept, not to be changed."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(self._which[index])
        shared, questions = self._scenes.read(int(self._owners[index]))
        added = self._fields(index, which, questions)
        return {**shared, "id": f"{shared['scene']}/{which}", **added}


def _open(builder: Any, split: str, task: str, annotators: int) -> SceneSource:
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}
    scenes = _Scenes(builder.as_data_source(split, decoders=skip))
    metadata, seed = builder.info.metadata, builder.builder_config.seed

    def asked(index: int, which: int, questions: list[Raw]) -> Raw:
        raw, scene = dict(questions[which]), int(owners[index])
        answer, kind = raw["answer"], raw["question_type"]
        if annotators:
            raw["answers"] = tasks.annotators(answer, kind, annotators, seed, split, scene, which)
        if task == "generative_vqa":
            raw |= {"target": answer, "references": [answer]}
        return raw

    if task in tasks.QUESTIONS:
        counts = metadata[shapes_scenes.counts_key(split)]
        owners = np.repeat(np.arange(len(counts)), counts)
        return SceneSource(scenes, owners, asked)

    def made(index: int, which: int, questions: list[Raw]) -> Raw:
        example = examples[index]
        if example.second is None:
            return example.fields
        second, _ = scenes.read(example.second)
        pair = {"second_image": second["image"], "second_scene": second["scene"]}
        return {**example.fields, **pair}

    things = [
        [Thing(*thing) for thing in scene] for scene in metadata[shapes_scenes.things_key(split)]
    ]
    examples = tasks.examples(task, split, seed, things)
    return SceneSource(scenes, np.array([example.scene for example in examples]), made)


def _prepared(data_dir: Folder, digest: str, **fields: int) -> Any:
    """The builder, with its files written by this process or by another one before."""
    from mmflax.data.datasets.shapes.builder import Shapes, ShapesConfig

    root = data_root(data_dir)
    numbers = "scenes{num_scenes}_size{image_size}_seed{seed}".format(**fields)
    name = f"{numbers}_{digest[:12]}"
    total = sum(shapes_scenes.split_sizes(fields["num_scenes"]).values())
    with (
        locked("shapes", root / "shapes", f".{name}.lock"),
        progress("shapes", "drawing {} scenes", "drew {} scenes", total) as on_scene,
    ):
        config = ShapesConfig(name=name, on_scene=on_scene, **fields)
        builder = Shapes(data_dir=str(root), config=config, file_format="array_record")
        if not builder.is_prepared():
            # Nothing is downloaded, but the folder for it is made all the same.
            downloads = str(root / "shapes" / ".downloads")
            builder.download_and_prepare(download_dir=downloads)
        return builder
