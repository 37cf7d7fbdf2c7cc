"""Files of a detector's regions, one ``.npz`` for each picture, as extraction programs write them.

========  =========================================  ===========================================
features  ``features`` or ``x``                      [n f], or [f n] as MCAN's authors publish it
boxes     ``boxes``, ``bbox`` or ``norm_bb``         [n 4]: x1 y1 x2 y2, in pixels or, where none
                                                     is above 1, in shares of the image
width     ``image_w``, ``image_width``, ``img_w``    of the image, in pixels; needed where the
          or ``width``                               boxes are in pixels
height    ``image_h``, ``image_height``, ``img_h``
          or ``height``
number    ``num_boxes`` or ``num_bbox``              optional: later rows are padding
========  =========================================  ===========================================

``x``, ``bbox``, ``num_bbox``, ``image_w`` and ``image_h`` are the names that MILVLG's
bottom-up-attention.pytorch writes (the detector is of Anderson et al., "Bottom-Up and Top-Down
Attention", 2018, arXiv 1707.07998). ``norm_bb``, UNITER's, has more of each box after its corners.
Other arrays stay unread, and none is unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib import format as npy

from mmflax.data.dataset import Raw
from mmflax.errors import MmflaxError

FEATURES = ("features", "x")
BOXES = ("boxes", "bbox", "norm_bb")
_WIDTH = ("image_w", "image_width", "img_w", "width")
_HEIGHT = ("image_h", "image_height", "img_h", "height")
_NUMBER = ("num_boxes", "num_bbox")
_SLACK = 0.01  # detectors' boxes reach a little beyond the image
_SHARE = 1 + 1e-3  # in shares of the image no box reaches further, but for rounding


@dataclasses.dataclass(frozen=True)
class RegionFile:
    """A file whose header and boxes were checked.

    Attributes:
      path: of the file.
      count: regions, n.
      dim: numbers of each, f.
    """

    path: str
    count: int
    dim: int

    def unread(self) -> Raw:
        """``regions`` and ``boxes`` of zeros, which take no memory."""
        shapes = {"regions": (self.count, self.dim), "boxes": (self.count, 4)}
        return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def check_regions(path: str | os.PathLike[str]) -> RegionFile:
    """The file, of which all but the features themselves is read.

    Raises:
      MmflaxError: naming the file, for one that is no ``.npz``, lacks an array, or has one of
        another shape or boxes outside their image.
    """
    with _opened(path) as archive:
        boxes = _boxes(path, archive)
        shape = _features(path, archive, len(boxes))[1]
    return RegionFile(os.fspath(path), *shape)


def read_regions(path: str | os.PathLike[str]) -> Raw:
    """``regions`` float32 [n f] and ``boxes`` float32 [n 4] in shares of the image.

    Raises:
      MmflaxError: as `check_regions`.
    """
    with _opened(path) as archive:
        boxes = _boxes(path, archive)
        name, (count, dim) = _features(path, archive, len(boxes))
        features = _array(archive, name)
    if features.shape[-1] != dim:
        features = features.T
    return {"regions": np.ascontiguousarray(features[:count], np.float32), "boxes": boxes}


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """The archive; what goes wrong while it is read is one sentence."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except MmflaxError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise MmflaxError(
            f"{os.fspath(path)} is no .npz file of plain arrays that can be read "
            f"({str(error).rstrip('.')}); write it with numpy.savez(FILE, features=…, boxes=…, "
            "image_w=…, image_h=…)."
        ) from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _first(archive: zipfile.ZipFile, names: Sequence[str]) -> str | None:
    there = set(_names(archive))
    return next((name for name in names if name in there), None)


def _needed(path: str | os.PathLike[str], archive: zipfile.ZipFile, names: Sequence[str]) -> str:
    name = _first(archive, names)
    if name is None:
        found = ", ".join(_names(archive)) or "none"
        raise MmflaxError(
            f"{os.fspath(path)} has no array of {names[0]} (its arrays: {found}); expected one "
            f"named {', '.join(names[:-1])} or {names[-1]}."
        )
    return name


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        array: np.ndarray = npy.read_array(file, allow_pickle=False)
    return array


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and kind of an array, from its header."""
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    return tuple(shape), dtype


def _number(
    path: str | os.PathLike[str], archive: zipfile.ZipFile, names: Sequence[str]
) -> float | None:
    """The one number of an array; None where there is no such array."""
    name = _first(archive, names)
    if name is None:
        return None
    array = _array(archive, name)
    if array.size != 1 or array.dtype.kind not in "iuf" or not array.item() > 0:
        raise MmflaxError(
            f"{os.fspath(path)}: {name} is {array.dtype} {list(array.shape)}; expected one number "
            "above 0."
        )
    return float(array.item())


def _features(
    path: str | os.PathLike[str], archive: zipfile.ZipFile, boxes: int
) -> tuple[str, tuple[int, int]]:
    """Name, and regions and numbers of each, of the features of this many boxes."""
    name = _needed(path, archive, FEATURES)
    shape, dtype = _shape(archive, name)
    padded = _first(archive, _NUMBER) is not None
    if len(shape) == 2 and dtype.kind == "f" and shape[0] and shape[1]:
        if shape[0] == boxes or (padded and shape[0] > boxes and shape[1] != boxes):
            return name, (boxes, shape[1])
        if shape[1] == boxes:
            return name, (boxes, shape[0])
    raise MmflaxError(
        f"{os.fspath(path)}: {name} is {dtype} {list(shape)}; expected floating-point numbers "
        f"[{boxes} f], a row for each of the {boxes} boxes."
    )


def _boxes(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> np.ndarray:
    """float32 [n 4] in shares of the image."""
    name = _needed(path, archive, BOXES)
    boxes = _array(archive, name)
    extra = name == "norm_bb" and boxes.ndim == 2 and boxes.shape[1] > 4
    boxes = boxes[:, :4] if extra else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or boxes.dtype.kind not in "iuf":
        raise MmflaxError(
            f"{os.fspath(path)}: {name} is {boxes.dtype} {list(boxes.shape)}; expected numbers "
            "[n 4], x1 y1 x2 y2 of at least one region."
        )
    number = _number(path, archive, _NUMBER)
    if number is not None:
        if number > len(boxes):
            raise MmflaxError(
                f"{os.fspath(path)}: {name} has {len(boxes)} rows, and the file says that there "
                f"are {number:g} boxes; expected a row for each."
            )
        boxes = boxes[: int(number)]
    boxes = boxes.astype(np.float32)
    if not np.isfinite(boxes).all():
        raise MmflaxError(f"{os.fspath(path)}: {name} has a NaN or an infinity.")
    of, size = "the image", np.ones(4, np.float32)
    if boxes.max() > _SHARE:
        width, height = _number(path, archive, _WIDTH), _number(path, archive, _HEIGHT)
        if width is None or height is None:
            raise MmflaxError(
                f"{os.fspath(path)}: {name} is in pixels (up to {boxes.max():g}), and the file has "
                f"no {'width' if width is None else 'height'} of the image to divide them by; add "
                "the arrays image_w and image_h, or give shares of the image, from 0 to 1."
            )
        of, size = (
            f"the image of {width:g} x {height:g} pixels",
            np.array([width, height, width, height], np.float32),
        )
    shares = boxes / size
    inside = ((shares >= -_SLACK) & (shares <= 1 + _SLACK)).all(axis=1)
    ordered = (shares[:, 0] <= shares[:, 2]) & (shares[:, 1] <= shares[:, 3])
    for good, what in (
        (inside, f"beyond {of}"),
        (ordered, "which are no corners x1 y1 x2 y2 with x1 <= x2 and y1 <= y2"),
    ):
        if not good.all():
            row = int(np.argmin(good))
            raise MmflaxError(
                f"{os.fspath(path)}: {name} has {np.round(boxes[row], 4).tolist()} in row {row}, "
                f"{what}; expected corners inside the image that the detector saw."
            )
    return shares
