"""Parts of a prepared split: ArrayRecord files of tensorflow-datasets, without TensorFlow.

A part is a folder of images (or of their regions) and one of texts, so that reading texts opens no
image. Each is named by a digest of its content, and written whole or not at all. Import this module
late: tensorflow-datasets takes a while.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from mmflax.data.datasets.local_info import LocalInfo
from mmflax.data.datasets.public.published import Record
from mmflax.data.datasets.public.published_regions import Pictures

VERSION = "1.0.0"
SPLIT = "part"


@dataclasses.dataclass(eq=False)
class PartConfig(tfds.core.BuilderConfig):
    """``rows()`` yields what is written; ``name`` identifies the content."""

    rows: Callable[[], Iterator[dict[str, Any]]] = lambda: iter(())


class _Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version(VERSION)
    builder_config: PartConfig

    def _split_generators(self, download_manager: Any) -> dict[str, Any]:
        del download_manager
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(self.builder_config.rows())

    def _describe(self, description: str, **features: Any) -> tfds.core.DatasetInfo:
        return LocalInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the order is the annotations' own
        )


class PreparedImages(_Builder):
    """One record an image file, its bytes as published."""

    def _info(self) -> tfds.core.DatasetInfo:
        text, image = tfds.features.Text(), tfds.features.Image()
        return self._describe("Images as published.", id=text, image=image)


class PreparedRegions(_Builder):
    """One record an image: features and boxes of its regions, as bytes."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {key: tfds.features.Text() for key in ("id", "regions", "boxes")}
        return self._describe("Regions as published, boxes in shares of the image.", **features)


class PreparedTexts(_Builder):
    """One record an image (or a pair): its examples as a JSON list."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("What is said about each image.", examples=tfds.features.Text())


class Part:
    """Consecutive records of a split."""

    def __init__(self, split: str, index: int, records: list[Record], images: Pictures):
        self.split = split
        self.names = [image for record in records for image in record.images]
        self._records = records
        self._images = images
        sizes = [[image, images.size(image)] for image in self.names]
        stem = f"{split}-{index:05d}"
        self._pictures = PreparedImages if images.kind == "images" else PreparedRegions
        self._folders = {
            self._pictures: f"{stem}-{_digest(json.dumps(sizes))}",
            PreparedTexts: f"{stem}-{_digest(*(record.content for record in records))}",
        }

    def entry(self) -> dict[str, Any]:
        """The part in the manifest."""
        return {
            self._images.kind: self._folders[self._pictures],
            "texts": self._folders[PreparedTexts],
            "sizes": [len(record.marks) for record in self._records],
        }

    def written(self, folder: pathlib.Path) -> bool:
        """Whether the images, which take the time, are there."""
        return bool(self._builder(folder, self._pictures, lambda: iter(())).is_prepared())

    def write(self, folder: pathlib.Path, advance: Callable[[int], None]) -> None:
        """Writes what is not there yet; each half is renamed into place when it is whole."""

        def images() -> Iterator[dict[str, Any]]:
            for name in self.names:
                yield self._images.row(name)
                advance(1)

        def texts() -> Iterator[dict[str, Any]]:
            for record in self._records:
                yield {"examples": record.content}

        for kind, rows in ((self._pictures, images), (PreparedTexts, texts)):
            builder = self._builder(folder, kind, rows)
            if not builder.is_prepared():
                for left in pathlib.Path(builder.data_path).parent.glob("*incomplete*"):
                    shutil.rmtree(left, ignore_errors=True)
                # Nothing is downloaded, but the folder for it is made all the same.
                builder.download_and_prepare(download_dir=str(folder / ".downloads"))

    def _builder(
        self,
        folder: pathlib.Path,
        kind: type[_Builder],
        rows: Callable[[], Iterator[dict[str, Any]]],
    ) -> _Builder:
        config = PartConfig(name=self._folders[kind], rows=rows)
        return kind(data_dir=str(folder), config=config, file_format="array_record")


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
