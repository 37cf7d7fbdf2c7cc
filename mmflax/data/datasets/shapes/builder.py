"""The tensorflow-datasets builder of ``shapes``: ArrayRecord files, no TensorFlow.

A module of its own because importing tensorflow-datasets takes a while and only preparing and
opening need it.
"""

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from mmflax.data.datasets.local_info import LocalInfo
from mmflax.data.datasets.shapes import scenes


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
    """The parameters of the files; ``name`` has them all, so that caches never mix."""

    num_scenes: int = 0
    image_size: int = 0
    seed: int = 0
    on_scene: Callable[[int], None] = lambda count: None


class Shapes(tfds.core.GeneratorBasedBuilder):
    """One record a scene, with its questions, so that an image is stored and decoded once."""

    VERSION = tfds.core.Version(scenes.VERSION)
    builder_config: ShapesConfig

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.image_size
        text = tfds.features.Text
        return LocalInfo(
            builder=self,
            description="Rendered scenes of coloured shapes with balanced questions.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                    "caption": text(),
                    "questions": tfds.features.Sequence(
                        {"question": text(), "answer": text(), "question_type": text()}
                    ),
                }
            ),
            # Scene order is already random, and a fixed order lets a digest cover the files.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, download_manager: Any) -> dict[str, Any]:
        del download_manager
        sizes = scenes.split_sizes(self.builder_config.num_scenes)
        return {split: self._generate_examples(split, size) for split, size in sizes.items()}

    def _generate_examples(self, split: str, num_scenes: int) -> Iterator[tuple[int, Any]]:
        config = self.builder_config
        counts, things = [], []
        examples = scenes.generate(split, num_scenes, config.seed, config.image_size)
        for index, scene in enumerate(examples):
            buffer = io.BytesIO()
            Image.fromarray(scene.image).save(buffer, "PNG", compress_level=1)
            questions = [
                {"question": question, "answer": answer, "question_type": question_type}
                for question, answer, question_type in scene.questions
            ]
            yield (
                index,
                {
                    "id": scene.id,
                    "image": buffer.getvalue(),
                    "caption": scene.caption,
                    "questions": questions,
                },
            )
            counts.append(len(questions))
            things.append([list(thing) for thing in scene.things])
            config.on_scene(1)
        # An index, so that questions and examples of tasks need no pass over the scenes.
        self.info.metadata[scenes.counts_key(split)] = counts
        self.info.metadata[scenes.things_key(split)] = things
