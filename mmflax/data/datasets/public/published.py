"""The files of a public data set as their authors publish them.

Annotations are JSON or JSON lines, plain, gzipped or still inside the zip that is downloaded.
Images lie in a folder or in the downloaded zip, which is read in place and never unpacked.
"""

import contextlib
import gzip
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple, Self

from mmflax.data.dataset import Raw
from mmflax.data.image.transforms import check_header
from mmflax.errors import MmflaxError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class LocalFile(NamedTuple):
    """A file that is there: ``name`` as published, at ``path`` or inside the zip at ``path``."""

    path: pathlib.Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}/{self.name}" if self.path.suffix == ".zip" else str(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes."""
        if self.path.suffix != ".zip":
            opened: Any = gzip.open if self.path.suffix == ".gz" else open
            with opened(self.path, "rb") as file:
                yield file
            return
        with _open_zip(self.path) as archive:
            for member in archive.namelist():
                if _base(member) == _base(self.name) and not member.startswith("__MACOSX"):
                    with archive.open(member) as file:
                        yield file
                    return
        raise MmflaxError(f"{self.path} holds no {_base(self.name)}; download that zip again.")

    def json(self, hook: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
        """The JSON object; ``hook`` is applied to every object in it as it is read."""
        with self.open() as file:
            try:
                content = json.load(file, object_hook=hook)
            except _BROKEN as error:
                raise MmflaxError(_malformed(self, error)) from error
        if not isinstance(content, dict):
            raise MmflaxError(
                f"{self} holds a {type(content).__name__}; expected a JSON object, as its "
                "authors publish it; docs/data.md names the files."
            )
        return content

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """As ``lines``, of a JSON list, or of JSON lines."""
        with self.open() as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b"["):
            yield from self.lines()
            return
        with self.open() as file:
            try:
                content = json.load(file)
            except _BROKEN as error:
                raise MmflaxError(_malformed(self, error)) from error
        for number, entry in enumerate(content):
            where = f"{self}, entry {number}"
            if not isinstance(entry, dict):
                raise MmflaxError(f"{where}: found {str(entry)[:40]!r}; expected a JSON object.")
            yield where, entry

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where each line is (for messages), and its JSON object; empty lines are left out."""
        with self.open() as file:
            for line, content in enumerate(file, start=1):
                if not content.strip():
                    continue
                where = f"{self}, line {line}"
                try:
                    entry = json.loads(content)
                except ValueError as error:
                    raise MmflaxError(_malformed(where, error)) from error
                if not isinstance(entry, dict):
                    raise MmflaxError(f"{where}: found {content[:40]!r}; expected a JSON object.")
                yield where, entry


# What reading a file of annotations raises when it is damaged.
_BROKEN = (ValueError, EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)


class File(NamedTuple):
    """An annotation file, or a folder of images.

    Attributes:
      names: what it may be called below the source folder, the usual name first.
      origin: where it is downloaded from, for the message that says it is missing.
      archive: the zip it is published in, which serves as well as the unpacked file.
      optional: nothing is missing where it is not there.
    """

    names: tuple[str, ...]
    origin: str
    archive: str = ""
    optional: bool = False

    def find(self, root: pathlib.Path) -> LocalFile | None:
        """The first of ``names`` that exists below ``root``, else the archive, else None."""
        zipped = (f"{name}.gz" for name in self.names)
        for name in (*self.names, *zipped, self.archive):
            if name and (root / name).exists():
                return LocalFile(root / name, self.names[0])
        return None

    def describe(self) -> str:
        """The name, the archive that is accepted as well, and the origin."""
        zipped = f" (or {self.archive})" if self.archive else ""
        return f"{self.names[0]}{zipped} from {self.origin}"


class Example(NamedTuple):
    """One example as published.

    Attributes:
      images: names of its image files, without folders.
      fields: the raw example without its images; the ``id`` is unique within the split.
      marks: names of the smaller splits that it is also part of.
    """

    images: tuple[str, ...]
    fields: Raw
    marks: tuple[str, ...] = ()


class Left(NamedTuple):
    """An example as published that is no example of the task, and why: "an empty hypothesis"."""

    reason: str


class Record(NamedTuple):
    """One stored record: an image (or a pair) with the JSON of its examples."""

    images: tuple[str, ...]
    content: str
    marks: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, images: tuple[str, ...], examples: Sequence[Example]) -> Self:
        """A record of the examples of these images."""
        rows = [example.fields for example in examples]
        content = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
        return cls(images, content, tuple(example.marks for example in examples))


def locate(name: str, root: pathlib.Path, files: Iterable[File]) -> dict[File, LocalFile]:
    """Where each file is; raises one sentence that lists all that is missing, and its origin."""
    located = {file: file.find(root) for file in files}
    absent = dict.fromkeys(
        file.describe() for file, path in located.items() if path is None and not file.optional
    )
    if absent:
        raise MmflaxError(
            f"{name} lacks {len(absent)} of its files in {root}: download {'; '.join(absent)}; "
            "put each there under that name, or name another folder with "
            "--config.data.source_dir=DIR."
        )
    return {file: path for file, path in located.items() if path is not None}


def field(where: object, entry: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """``entry[key]``, checked; ``where`` begins the message."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(value, kinds) or isinstance(value, bool) or value == "":
        present = isinstance(entry, Mapping) and key in entry
        problem = f"{key} is {value!r}" if present else f"there is no {key!r}"
        raise MmflaxError(
            f"{where}: {problem}; expected "
            f"{' or '.join(k.__name__ for k in kinds)}, so this is not the published file."
        )
    return value


class Images:
    """Image files of some folders and zips by their names without folders; the first one counts."""

    kind = "images"

    def __init__(self, places: Iterable[pathlib.Path]):
        self._at: dict[str, tuple[pathlib.Path, str, int]] = {}  # name -> place, member, bytes
        self._zips: dict[pathlib.Path, zipfile.ZipFile] = {}
        for place in dict.fromkeys(places):
            for member, size in self._members(place):
                name = _base(member)
                if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._"):
                    self._at.setdefault(name, (place, member, size))

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def size(self, name: str) -> int:
        """Bytes of the file."""
        return self._at[name][2]

    def row(self, name: str) -> dict[str, bytes | str]:
        """The record that is stored."""
        return {"id": name, "image": self.read(name)}

    def read(self, name: str) -> bytes:
        """The published bytes; a file that is no image raises MmflaxError with its place."""
        place, member, _ = self._at[name]
        try:
            if place in self._zips:
                content = self._zips[place].read(member)
            else:
                content = (place / member).read_bytes()
            check_header(content)
            return content
        except (zipfile.BadZipFile, MmflaxError) as error:
            reason = str(error).rstrip(".")
            raise MmflaxError(
                f"{place / member} is not an image, or damaged ({reason}); download it again, or "
                "delete it and give --config.data.partial=True."
            ) from error

    def close(self) -> None:
        """Closes the zips."""
        for archive in self._zips.values():
            archive.close()

    def _members(self, place: pathlib.Path) -> Iterator[tuple[str, int]]:
        """Path and size of every file, relative to the folder or inside the zip."""
        if place.suffix == ".zip":
            self._zips[place] = _open_zip(place)
            for info in self._zips[place].infolist():
                if not info.filename.startswith("__MACOSX"):
                    yield info.filename, info.file_size
            return
        for folder, _, names in os.walk(place):
            for path in (pathlib.Path(folder, name) for name in names):
                yield path.relative_to(place).as_posix(), path.stat().st_size


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise MmflaxError(f"{path} is not a whole zip ({error}); download it again.") from error


def _malformed(where: object, error: Exception) -> str:
    return f"{where}: not valid JSON ({error}); download it again."
