"""Finding the file that a row names, as it would be found on any file system.

The name may have backslashes, its letters composed or decomposed in Unicode, and another letter
case; what counts as the file's identity is its name on the disk.
"""

import difflib
import functools
import os
import pathlib
import posixpath
import unicodedata
from collections import defaultdict

from mmflax.errors import MmflaxError


class Names:
    """The files below a folder, whose directories are listed once."""

    def __init__(self, root: pathlib.Path):
        self._root = root

    def find(self, where: str, column: str, name: str, folder: str) -> pathlib.Path:
        """The path of a file.

        Args:
          where: file and line, for messages.
          column: of the name, for messages.
          name: relative to ``folder``, or an absolute path inside the root.
          folder: inside the root, with forward slashes.

        Raises:
          MmflaxError: it is not there (the nearest name is said), or leads out of the root.
        """
        if "://" in name:
            raise MmflaxError(
                f"{where}: {column} {name!r} is a web address; download the file and give its name."
            )
        problem = None
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            inside = self._inside(spelled, folder)
            if inside is None:
                raise MmflaxError(
                    f"{where}: {column} {name!r} leads out of {self._root}; it must be a path "
                    "inside it, relative to the metadata file."
                )
            path, missing = self._walk(inside)
            if missing is None:
                return path
            if problem is None or len(str(path)) > len(problem):
                problem = f"{path / missing} does not exist{self._near(path, missing)}"
            above = self._inside(spelled, "")
            if above is not None and self._walk(above)[1] is None:
                right = posixpath.relpath(above, folder)
                problem = (
                    f"{path / missing} does not exist: {column} is relative to the metadata file; "
                    f"write {right!r}."
                )
        what = "file of regions" if column.startswith("regions") else "image"
        raise MmflaxError(f"{where}: The {what} {problem}")

    def _inside(self, name: str, folder: str) -> str | None:
        """The name from the root on; None where it leads out of it.

        By name and not by symbolic link: the Hugging Face cache links its files to outside.
        """
        if "\0" in name:
            return None
        before = os.path.join(self._root, "")
        if posixpath.isabs(name):
            return (
                posixpath.normpath(name.removeprefix(before)) if name.startswith(before) else None
            )
        inside = posixpath.normpath(posixpath.join(folder, name))
        return None if inside.split("/")[0] == ".." else inside

    def _walk(self, inside: str) -> tuple[pathlib.Path, str | None]:
        """The path as it is on the disk, up to the first part that is not there."""
        path = self._root
        for part in inside.split("/"):
            found = self._entry(path, part)
            if found is None:
                return path, part
            path = path / found
        return path, None

    def _entry(self, path: pathlib.Path, part: str) -> str | None:
        if part in self._listed(path):
            return part
        same = self._folded(path)[_fold(part)]
        composed = [name for name in same if _compose(name) == _compose(part)]
        for names in (composed, same):
            if len(names) == 1:
                return names[0]
        return None

    @functools.cache  # noqa: B019, of one reading of the folder
    def _listed(self, path: pathlib.Path) -> frozenset[str]:
        try:
            return frozenset(os.listdir(path))
        except OSError:
            return frozenset()

    @functools.cache  # noqa: B019
    def _folded(self, path: pathlib.Path) -> defaultdict[str, list[str]]:
        folded: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self._listed(path)):
            folded[_fold(name)].append(name)
        return folded

    def _near(self, path: pathlib.Path, part: str) -> str:
        same = self._folded(path).get(_fold(part))
        if same:
            return f"; {' and '.join(map(repr, same))} differ from it by letter case alone."
        names, stem = sorted(self._listed(path)), _fold(part.partition(".")[0])
        near = [name for name in names if _fold(name.partition(".")[0]) == stem]
        near = near or difflib.get_close_matches(part, names, n=1)
        return f"; did you mean {near[0]!r}?" if near else "."


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _fold(name: str) -> str:
    return _compose(_compose(name).casefold())
