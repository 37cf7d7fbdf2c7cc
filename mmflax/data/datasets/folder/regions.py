"""Rows of a folder that name files of regions, which are read when their turn comes."""

from collections.abc import Sequence
from typing import Any

from mmflax.batch_keys import PREFIXES
from mmflax.data.dataset import Raw, Source
from mmflax.data.datasets.folder.splits import line_of
from mmflax.data.region_files import RegionFile, check_regions, read_regions
from mmflax.errors import MmflaxError


class Checked:
    """Files of regions that were looked into, each once; all have features of one length."""

    def __init__(self) -> None:
        self._files: dict[str, RegionFile] = {}

    def file(self, where: str, path: str) -> RegionFile:
        """The file that the row at `where` names.

        Raises:
          MmflaxError: naming the row and the file.
        """
        if path in self._files:
            return self._files[path]
        try:
            found = check_regions(path)
        except MmflaxError as error:
            raise MmflaxError(f"{where}: {error}") from error
        first = next(iter(self._files.values()), found)
        if found.dim != first.dim:
            raise MmflaxError(
                f"{where}: {path} has features of {found.dim} numbers, and {first.path} of "
                f"{first.dim}; expected those of one detector, of one length."
            )
        self._files[path] = found
        return found


class RegionSource:
    """A split's examples, of which some show their images by a file of regions.

    Args:
      rows: raw examples with a `RegionFile` under ``regions`` or ``second_regions``.
    """

    def __init__(self, rows: Sequence[Raw]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Raw:
        row = self._rows[index]
        try:
            return row | _shown(row, lambda file: read_regions(file.path))
        except MmflaxError as error:  # it changed since it was checked, or its features are damaged
            raise MmflaxError(f"{line_of(row['id'])}: {error}") from error

    def without_images(self, index: int) -> Raw:
        """The example with zeros for regions; see ``text_of`` in ``mmflax.data.dataset``."""
        row = self._rows[index]
        return row | _shown(row, RegionFile.unread)


def lazily(rows: list[Raw]) -> Source:
    """The rows as they are, or as a `RegionSource` where one of them names a file of regions."""
    keys = [f"{prefix}regions" for prefix in PREFIXES]
    return RegionSource(rows) if any(key in row for row in rows for key in keys) else rows


def _shown(row: Raw, arrays: Any) -> Raw:
    return {
        prefix + key: value
        for prefix in PREFIXES
        if f"{prefix}regions" in row
        for key, value in arrays(row[f"{prefix}regions"]).items()
    }
