"""What a data set holds, in a form that can be kept beside a run and compared with later.

Identity is an image's name inside the data set's folder and its bytes, and a row's texts: neither
where the folder lies nor how its path is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping

_ENDS = 1 << 16  # bytes at a file's beginning and at its end that tell it from others


@dataclasses.dataclass(frozen=True)
class Contents:
    """Of a split.

    Attributes:
      rows: a digest of each row's names and texts, and how often it occurs.
      images: name inside the folder -> `fingerprint`.
    """

    rows: Counter[str]
    images: Mapping[str, str]

    def changes_from(self, old: Contents) -> list[str]:
        """What is different from ``old``, in words such as "3 rows added"."""
        added, removed = self.rows - old.rows, old.rows - self.rows
        images = sum(old.images.get(name, mark) != mark for name, mark in self.images.items())
        found = (
            (added.total(), "row", "added"),
            (removed.total(), "row", "removed"),
            (images, "image", "changed"),
        )
        return [f"{n} {what}{'s' * (n != 1)} {how}" for n, what, how in found if n]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the splits of a data set come from.

    Attributes:
      contents: reads what every split holds, as it is stored: ``train`` with what is held out.
      held_out: names of the images (or of the rows without one) that were taken out of train to
        make the validation split; none where nothing was held out.
    """

    contents: Callable[[], Mapping[str, Contents]]
    held_out: tuple[str, ...] = ()


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Size and SHA-256 of the first and the last 64 KiB: all of most files, and quick for any."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(file.read(_ENDS))
        if size > 2 * _ENDS:
            file.seek(-_ENDS, os.SEEK_END)
        digest.update(file.read(_ENDS))
    return f"{size}:{digest.hexdigest()[:24]}"
