"""The rows of every split of a folder, wherever their metadata stand, with every image checked."""

import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from mmflax.data.dataset import Raw
from mmflax.data.datasets.folder.columns import Column, answer_form, infer, parse, renamed
from mmflax.data.datasets.folder.names import Names
from mmflax.data.datasets.folder.regions import Checked
from mmflax.data.datasets.folder.tables import METADATA, Entry, entries_of, metadata_files
from mmflax.data.image.transforms import check_header
from mmflax.errors import MmflaxError, option

# The folder names that the imagefolder loader itself takes for each split, in any letter case.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
# Also of formats that are not read, so that such a file is named and not passed over.
_ENDINGS = tuple(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .heic .heif "
    ".avif .jxl .jp2 .svg".split()
)
_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".ndjson")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")


class Row(NamedTuple):
    """A row of some table.

    Attributes:
      where: file and line, for messages.
      id: names it within the folder.
      folder: that its file names are relative to, inside the root.
      entry: its columns.
    """

    where: str
    id: str
    folder: str
    entry: Entry


def read_splits(
    root: pathlib.Path,
    task: str | None,
    *,
    normalize_answers: str | None = None,
    reads_regions: bool | None = None,
) -> tuple[str, dict[str, list[Raw]], dict[str, str]]:
    """The task, by the first row where it is None, and every split's rows as raw examples.

    `normalize_answers` is that of `answer_form`. A row with an image and a file of its regions
    keeps the file where `reads_regions`, the image where that is False, and both where it is None.
    Last come the images that are there and cannot be read: path -> the first row that names it,
    and why.
    """
    names, faults, regions = Names(root), dict[str, str | None](), Checked()
    splits: dict[str, list[Raw]] = {}

    def shown(row: Row, column: Column, name: str) -> Any:
        path = names.find(row.where, column.name, name, row.folder)
        if column.kind == "regions":
            return regions.file(row.where, str(path))
        return _image(faults, row, path)

    for split, row in _rows(root, task):
        entry = _chosen(renamed(row.where, row.entry), reads_regions)
        task = task or infer(row.where, entry)
        image = functools.partial(shown, row)
        raw = parse(row.where, task, entry, image, answer_form(task, normalize_answers))
        splits.setdefault(split, []).append({**raw, "id": row.id})
    if "train" not in splits:
        raise MmflaxError(_no_train(root))
    assert task is not None
    unreadable = {path: fault for path, fault in faults.items() if fault is not None}
    return task, {name: splits[name] for name in SPLIT_FOLDERS if name in splits}, unreadable


def _chosen(entry: Entry, reads_regions: bool | None) -> Entry:
    """The row without what the model does not read of an image that is there in both forms."""
    for end in ("", "_2") if reads_regions is not None else ():
        image, regions = f"file_name{end}", f"regions{end}"
        if entry.get(image) is not None and entry.get(regions) is not None:
            entry.pop(image if reads_regions else regions)
    return entry


def _rows(root: pathlib.Path, task: str | None) -> Iterator[tuple[str, Row]]:
    """Every row with its split; those of train come first, since the first decides the task."""
    folders = _split_folders(root)
    top = _one(root, metadata_files(root))
    if top is not None:
        for split, folder in folders.items():
            if files := metadata_files(folder):
                raise MmflaxError(
                    f"{top} and {files[0]} may both describe the {split} split; keep one of them."
                )
        rows = [(_split_of(row, folders), row) for row in _table(root, top)]
        if not rows:
            raise MmflaxError(f"{top} has no rows; expected one for each example.")
        for split in SPLIT_FOLDERS:
            yield from (pair for pair in rows if pair[0] == split)
        return
    if not folders:
        if _class_folders(root) and not _misspelled(root):
            folders = {"train": root}
        else:
            raise MmflaxError(_no_train(root))
    if "train" not in folders:
        raise MmflaxError(_no_train(root))
    for split, folder in folders.items():
        file = _one(folder, metadata_files(folder))
        rows_of = _table(root, file) if file is not None else _classes(root, folder, task)
        count = 0
        for row in rows_of:
            count += 1
            given = _SPLIT_OF.get(str(row.entry.get("split")).strip().lower(), split)
            if given != split:
                raise MmflaxError(
                    f"{row.where}: the row's split is {row.entry['split']!r}, and it stands in "
                    f"{folder.name}; move it, or remove the column."
                )
            yield split, row
        if not count:
            raise MmflaxError(f"{file} has no rows; expected one for each example.")


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    found: dict[str, pathlib.Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = _SPLIT_OF.get(folder.name.lower())
        if split in found:
            raise MmflaxError(
                f"{found[split]} and {folder} are names for the same split; keep one of them."
            )
        if split is not None:
            found[split] = folder
    return {split: found[split] for split in SPLIT_FOLDERS if split in found}


def _one(folder: pathlib.Path, files: list[pathlib.Path]) -> pathlib.Path | None:
    if len(files) > 1:
        raise MmflaxError(f"{folder} has both {files[0].name} and {files[1].name}; keep one.")
    return files[0] if files else None


def _table(root: pathlib.Path, file: pathlib.Path) -> Iterator[Row]:
    name, folder = file.relative_to(root).as_posix(), file.parent.relative_to(root).as_posix()
    unit = "row" if file.suffix == ".parquet" else "line"
    for line, entry in entries_of(file):
        yield Row(f"{file}, {unit} {line}", f"{name}:{line}", folder, entry)


def _split_of(row: Row, folders: dict[str, pathlib.Path]) -> str:
    """Of a row of the root's metadata: its column ``split``, else the folder of its image."""
    given = row.entry.get("split")
    if given is not None:
        split = _SPLIT_OF.get(str(given).strip().lower())
        if split is None:
            raise MmflaxError(
                f"{row.where}: split is {given!r}; expected one of {', '.join(SPLIT_FOLDERS)}."
            )
        return split
    if not folders:
        return "train"
    entry = renamed(row.where, row.entry)
    name = entry.get("file_name") or entry.get("regions")
    first = os.path.normpath(str(name or "").replace("\\", "/")).split("/")[0].lower()
    if first not in _SPLIT_OF:
        raise MmflaxError(
            f"{row.where}: file_name {name!r} lies in none of the split folders "
            f"({', '.join(f.name for f in folders.values())}); add a column 'split', or begin it "
            "with one of them."
        )
    return _SPLIT_OF[first]


def _classes(root: pathlib.Path, folder: pathlib.Path, task: str | None) -> Iterator[Row]:
    """An example for each image in a folder that is named like its class."""
    if not _class_folders(folder):
        tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _TABLES)
        found = f"; found {', '.join(tables[:3])}, which is not read by that name" if tables else ""
        raise MmflaxError(
            f"{folder} has neither {', '.join(METADATA[:-1])} nor {METADATA[-1]}, and no folders "
            f"of images named like their classes{found}; add one of them."
        )
    if task not in (None, "classification"):
        raise MmflaxError(
            f"{folder} has folders of images named like their classes and no {METADATA[0]}, which "
            f"serves the task classification; data.task is {task!r}."
        )
    for path in sorted(_images(folder)):
        name = path.relative_to(root).as_posix()
        if path.parent == folder:
            raise MmflaxError(
                f"{path} lies beside the folders of the classes; move it into one, or remove it."
            )
        entry = {"file_name": path.name, "label": path.parent.name}
        yield Row(str(path), name, path.parent.relative_to(root).as_posix(), entry)


def _class_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders that hold images at any depth; none where one of them holds splits or metadata."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if any(metadata_files(path) or _split_folders(path) for path in inner):
        return []
    return [path for path in inner if next(_images(path), None)]


def _images(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _ENDINGS:
                yield pathlib.Path(base, name)


def _misspelled(root: pathlib.Path) -> bool:
    """Whether a folder has the letters of a split's name in another order; "rain" is a class."""
    splits = [sorted(name) for name in _SPLIT_OF]
    return any(sorted(path.name.lower()) in splits for path in root.iterdir() if path.is_dir())


def _no_train(root: pathlib.Path) -> str:
    inside = sorted(root.iterdir())
    folders = ", ".join(path.name for path in inside if path.is_dir()) or "none"
    packed = next((path.name for path in inside if path.name.lower().endswith(_ARCHIVES)), None)
    if packed is not None:
        return f"The folder {root} holds {packed}, which is not read; unpack it there."
    inner = next(
        (path for path in inside if path.is_dir() and "train" in _split_folders(path)), None
    )
    if inner is not None:
        return (
            f"The folder {root} has no train/, but {inner} has; give {option('data.path', inner)}."
        )
    return (
        f"The folder {root} has no train/ (its folders: {folders}); put the training images and "
        f"{METADATA[0]} into {root / 'train'}."
    )


def _image(faults: dict[str, str | None], row: Row, path: pathlib.Path) -> str:
    """The path of an image, whose header is read at the first row that names it."""
    if str(path) not in faults:
        fault = None
        try:
            check_header(path)
        except MmflaxError as error:
            fault = f"{row.where}: {error}"
            if not path.is_file():
                raise MmflaxError(fault) from error
        faults[str(path)] = fault
    return str(path)
