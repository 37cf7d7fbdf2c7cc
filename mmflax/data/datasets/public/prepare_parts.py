"""One part of a prepared split: named by what it holds, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from mmflax.data.datasets.public.published import Record
from mmflax.data.datasets.public.published_regions import Pictures


class Part:
    """Some records in a row: a folder of images, or of their regions, and one of texts."""

    def __init__(self, split: str, index: int, records: list[Record], images: Pictures):
        self.split = split
        self.names = [image for record in records for image in record.images]
        self._records = records
        self._images = images
        sizes = [[image, images.size(image)] for image in self.names]
        stem = f"{split}-{index:05d}"
        self._pictures = f"Prepared{images.kind.capitalize()}"
        self._folders = {
            self._pictures: f"{stem}-{_digest(json.dumps(sizes))}",
            "PreparedTexts": f"{stem}-{_digest(*(record.content for record in records))}",
        }

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            self._images.kind: self._folders[self._pictures],
            "texts": self._folders["PreparedTexts"],
            "sizes": [len(record.ids) for record in self._records],
        }

    def written(self, folder: pathlib.Path) -> bool:
        """Whether the images, which take the time, are there."""
        return self._builder(folder, self._pictures, lambda: iter(())).is_prepared()

    def write(self, folder: pathlib.Path, advance: Callable[[int], None]) -> None:
        """Writes what is not there yet; each half is renamed into place when it is whole."""

        def images() -> Iterator[dict[str, Any]]:
            for name in self.names:
                yield self._images.row(name)
                advance(1)

        def texts() -> Iterator[dict[str, Any]]:
            for record in self._records:
                yield {"examples": record.content}

        for kind, rows in ((self._pictures, images), ("PreparedTexts", texts)):
            builder = self._builder(folder, kind, rows)
            if not builder.is_prepared():
                for left in pathlib.Path(builder.data_path).parent.glob("*incomplete*"):
                    shutil.rmtree(left, ignore_errors=True)
                # Nothing is downloaded, but the folder for it is made all the same.
                builder.download_and_prepare(download_dir=str(folder / ".downloads"))

    def _builder(
        self, folder: pathlib.Path, kind: str, rows: Callable[[], Iterator[dict[str, Any]]]
    ) -> Any:
        from mmflax.data.datasets.public import prepare_builder

        config = prepare_builder.PartConfig(name=self._folders[kind], rows=rows)
        builder = getattr(prepare_builder, kind)
        return builder(data_dir=str(folder), config=config, file_format="array_record")


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
