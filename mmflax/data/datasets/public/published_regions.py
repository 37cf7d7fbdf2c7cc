"""Bottom-up attention: detected regions of each image, as LXMERT's authors publish them.

One row an image and no header, columns by tabs (src/utils.py of github.com/airsplay/lxmert):
``img_id`` (the file's name without its ending), ``img_h``, ``img_w``, ``objects_id``,
``objects_conf``, ``attrs_id``, ``attrs_conf``, ``num_boxes``, ``boxes`` (corners x1 y1 x2 y2 in
pixels, float32) and ``features`` (float32), the last two and the objects' columns in base64.

Files have tens of gigabytes: they are walked through once, to note where each row begins, and a row
is read when its turn comes.
"""

import base64
import binascii
import pathlib
from collections.abc import Iterable
from typing import IO, NamedTuple

import numpy as np

from mmflax.data.datasets.cache import progress
from mmflax.data.datasets.public.published import File, Images
from mmflax.errors import MmflaxError

COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf",
    "num_boxes", "boxes", "features",
)  # fmt: skip
PUBLISHED_BOXES = 36
_SITE = "https://nlp.cs.unc.edu/data/lxmert_data"
_LONGEST = 1 << 26  # bytes of a row; one of 36 boxes has 0.4 million
_FLOAT = np.dtype("<f4")


def region_file(stem: str, boxes: int, folder: str) -> File:
    """``<stem>_obj<boxes>.tsv``, also below the folder that the authors keep it in."""
    name = f"{stem}_obj{boxes}"
    origin = f"{_SITE}/{folder}/{name}.zip, unpacked (or see github.com/airsplay/lxmert)"
    if boxes != PUBLISHED_BOXES:
        origin = f"the extraction that github.com/airsplay/lxmert describes, of {boxes} boxes each"
    return File((f"{name}.tsv", f"{folder}/{name}.tsv"), origin)


class _Row(NamedTuple):
    name: str
    height: int
    width: int
    number: int
    boxes: bytes
    features: bytes


class RegionFiles:
    """Rows of some files by the names of their images, with or without an ending.

    Args:
      places: the files; of an image in several the first row counts.
      most: boxes of a row, at most.
      name: of the dataset, for the bar that shows while files are walked through.
    """

    kind = "regions"

    def __init__(self, places: Iterable[pathlib.Path], most: int, name: str):
        places = list(dict.fromkeys(places))
        self.most = most
        self.dim = 0  # numbers of a region's feature
        self._at: dict[str, tuple[pathlib.Path, int, int, int]] = {}
        self._files: dict[pathlib.Path, IO[bytes]] = {}
        total = sum(place.stat().st_size for place in places) >> 20
        passed = 0
        with progress(name, "looking through {} MB of regions", "{} MB of regions", total) as go:
            for place in places:
                for number, start, line in _lines(place):
                    row = self._checked(_where(place, number), line)
                    self._at.setdefault(row.name, (place, number, start, len(line)))
                    passed += len(line)
                    if passed >> 20:
                        go(passed >> 20)
                        passed &= (1 << 20) - 1

    def __contains__(self, name: str) -> bool:
        return _stem(name) in self._at

    def __len__(self) -> int:
        return len(self._at)

    @property
    def shape(self) -> tuple[int, int]:
        """The most regions that an image has here, and the numbers of each."""
        return self.most, self.dim

    def size(self, name: str) -> int:
        """Bytes of the row."""
        return self._at[_stem(name)][-1]

    def row(self, name: str) -> dict[str, bytes | str]:
        """The stored record: ``regions`` [n f] and ``boxes`` [n 4] as little-endian float32 bytes.

        Boxes are in shares of the image's width and height, as LXMERT divides them.
        """
        place, number, start, length = self._at[_stem(name)]
        if place not in self._files:
            self._files[place] = open(place, "rb")
        self._files[place].seek(start)
        where = _where(place, number)
        row = self._checked(where, self._files[place].read(length))
        size = np.array([row.width, row.height] * 2, _FLOAT)
        boxes = _numbers(where, "boxes", row.boxes).reshape(row.number, 4) / size
        if boxes.min() < -1e-5 or boxes.max() > 1 + 1e-5:
            raise MmflaxError(
                f"{where}: a box reaches beyond its image of {row.width} x {row.height} pixels; "
                "download the file again."
            )
        features = _numbers(where, "features", row.features)
        return {"id": name, "regions": features.tobytes(), "boxes": boxes.tobytes()}

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _checked(self, where: str, line: bytes) -> _Row:
        """The row, if it has its columns and each has the bytes that it should."""
        cells = line.rstrip(b"\r\n").split(b"\t")
        if len(cells) != len(COLUMNS):
            raise MmflaxError(
                f"{where}: found {len(cells)} columns; expected {len(COLUMNS)} ({COLUMNS[0]} to "
                f"{COLUMNS[-1]}), so the file is damaged or another one; download it again."
            )
        column = dict(zip(COLUMNS, cells, strict=True))
        height, width, number = (
            _positive(where, key, column[key]) for key in ("img_h", "img_w", "num_boxes")
        )
        name = column["img_id"].decode("utf-8", "replace")
        row = _Row(name, height, width, number, column["boxes"], column["features"])
        if row.number > self.most:
            raise MmflaxError(
                f"{where}: num_boxes is {row.number}; expected at most {self.most}, which "
                "data.regions says."
            )
        self.dim = self.dim or _decoded(row.features) // (4 * row.number)
        for key, cell, dim in (("boxes", row.boxes, 4), ("features", row.features, self.dim)):
            expected = 4 * dim * row.number
            if not dim or _decoded(cell) != expected:
                raise MmflaxError(
                    f"{where}: {key} has {_decoded(cell)} bytes; expected {expected} for "
                    f"{row.number} boxes of {dim} float32; download the file again."
                )
        return row


Pictures = Images | RegionFiles


def _lines(place: pathlib.Path) -> Iterable[tuple[int, int, bytes]]:
    """(number, offset, bytes) of every row, one in memory at a time."""
    start = 0
    with open(place, "rb", buffering=1 << 20) as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), start=1):
            if line.strip():
                yield number, start, line
            start += len(line)


def _where(place: pathlib.Path, number: int) -> str:
    return f"{place}, row {number}"


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _positive(where: str, key: str, cell: bytes) -> int:
    if not cell.isdigit() or not int(cell):
        raise MmflaxError(
            f"{where}: {key} is {cell[:20]!r}; expected a whole number above 0; download the "
            "file again."
        )
    return int(cell)


def _decoded(cell: bytes) -> int:
    """The number of bytes in base64 text."""
    return len(cell) * 3 // 4 - cell[-2:].count(b"=")


def _numbers(where: str, key: str, cell: bytes) -> np.ndarray:
    try:
        numbers = np.frombuffer(base64.b64decode(cell, validate=True), _FLOAT)
    except (binascii.Error, ValueError) as error:
        raise MmflaxError(
            f"{where}: {key} is no base64 of float32 ({error}); download the file again."
        ) from error
    if not np.isfinite(numbers).all():
        raise MmflaxError(f"{where}: {key} has a number that is not finite; download it again.")
    return numbers
