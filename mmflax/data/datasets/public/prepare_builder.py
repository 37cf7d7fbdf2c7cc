"""The tensorflow-datasets builders of prepared data: ArrayRecord files, no TensorFlow.

Images and texts are builders of their own, so that walking over the texts reads no image. A module
of its own because importing tensorflow-datasets takes a while.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

VERSION = "1.0.0"
SPLIT = "part"


@dataclasses.dataclass(eq=False)
class PartConfig(tfds.core.BuilderConfig):
    """``rows()`` yields what is written; ``name`` says which content it is."""

    rows: Callable[[], Iterator[dict[str, Any]]] = lambda: iter(())


class _Part(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version(VERSION)
    builder_config: PartConfig

    def _split_generators(self, download_manager: Any) -> dict[str, Any]:
        del download_manager
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(self.builder_config.rows())

    def _describe(self, description: str, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the order is the annotations' own
        )


class PreparedImages(_Part):
    """One record an image file, its bytes as published."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"id": tfds.features.Text(), "image": tfds.features.Image()}
        return self._describe("Images as published.", features)


class PreparedRegions(_Part):
    """One record an image: what a detector found in it, arrays as their bytes."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {key: tfds.features.Text() for key in ("id", "regions", "boxes")}
        return self._describe("Regions as published, boxes in shares of the image.", features)


class PreparedTexts(_Part):
    """One record for an image (or a pair): its examples as a JSON list."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("What is said about each image.", {"examples": tfds.features.Text()})
