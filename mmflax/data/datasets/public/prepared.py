"""Random access to prepared examples, with or without their images."""

import json
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmflax.data.dataset import Raw

View = Callable[[list[Raw]], list[Raw]]
_PREFIXES = ("", "second_")  # of the keys of each picture
_FLOAT = np.dtype("<f4")


class PreparedSource:
    """The examples of some parts in a row; threads may read at once.

    Args:
      folder: of the prepared dataset.
      splits: their entries in the manifest, joined in this order.
      view: from a record's stored examples to raw ones; by default they are the same.
      one_each: the view gives a single example of each record.
    """

    def __init__(
        self,
        folder: str,
        splits: Sequence[Mapping[str, Any]],
        *,
        view: View | None = None,
        one_each: bool = False,
    ):
        self._folder = pathlib.Path(folder)
        self._parts = [part for split in splits for part in split["parts"]]
        self._pictures = splits[0]["pictures"]
        self._kind = "regions" if "regions" in splits[0] else "images"
        self._unread = self._placeholders(splits[0].get("regions"))
        self._view = view
        sizes = np.concatenate([np.asarray(part["sizes"], np.int64) for part in self._parts])
        self._ends = np.cumsum(np.ones_like(sizes) if one_each else sizes)
        self._record_ends = np.cumsum([len(part["sizes"]) for part in self._parts])
        self._opened: dict[tuple[int, str], Any] = {}
        self._lock = threading.Lock()
        self._last: tuple[int, list[Raw]] = (-1, [])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Raw:
        record, raw = self._example(index)
        part, place = self._place(record)
        for number, prefix in enumerate(_PREFIXES[: self._pictures]):
            stored = self._open(part, self._kind)[place * self._pictures + number]
            for key in ("image",) if self._kind == "images" else ("regions", "boxes"):
                raw[prefix + key] = stored[key]
                if key != "image":
                    array = np.frombuffer(stored[key], _FLOAT)
                    raw[prefix + key] = array.reshape(-1, self._unread[prefix + key].shape[1])
        return raw

    def without_images(self, index: int) -> Raw:
        """The example with ``b""`` for each image, zeros for regions; see ``text_of`` in
        ``mmflax.data.dataset``."""
        return self._example(index)[1]

    def _example(self, index: int) -> tuple[int, Raw]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = int(np.searchsorted(self._ends, index, side="right"))
        last, examples = self._last
        if record != last:
            part, place = self._place(record)
            stored = json.loads(self._open(part, "texts")[place]["examples"])
            examples = self._view(stored) if self._view else stored
            self._last = record, examples
        raw = examples[index - int(self._ends[record])]  # counted from the end
        return record, {**self._unread, **raw}

    def _placeholders(self, regions: Sequence[int] | None) -> dict[str, Any]:
        """Placeholders of images that are not read."""
        empty: dict[str, Any] = {"image": b""}
        if regions is not None:
            shapes = {"regions": tuple(regions), "boxes": (regions[0], 4)}
            empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
        prefixes = _PREFIXES[: self._pictures]
        return {prefix + key: value for prefix in prefixes for key, value in empty.items()}

    def _place(self, record: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._record_ends, record, side="right"))
        start = int(self._record_ends[part - 1]) if part else 0
        return part, record - start

    def _open(self, part: int, kind: str) -> Any:
        """The data source of a part's images or texts, opened on first use."""
        if (part, kind) not in self._opened:
            import tensorflow_datasets as tfds

            from mmflax.data.datasets.public.parts import SPLIT, VERSION

            path = self._folder / f"prepared_{kind}" / self._parts[part][kind] / VERSION
            with self._lock:
                if (part, kind) not in self._opened:
                    skip = {"image": tfds.decode.SkipDecoding()} if kind == "images" else None
                    builder = tfds.builder_from_directory(path)
                    self._opened[part, kind] = builder.as_data_source(SPLIT, decoders=skip)
        return self._opened[part, kind]
