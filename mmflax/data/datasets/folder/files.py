"""Reading the metadata file of a folder's split, row by row, with every image checked."""

import csv
import functools
import json
import pathlib
import posixpath
from collections.abc import Iterator
from typing import Any

from mmflax.data.dataset import Raw
from mmflax.data.datasets.folder.columns import answer_form, infer, parse
from mmflax.data.image.transforms import check_header
from mmflax.errors import MmflaxError

METADATA = ("metadata.jsonl", "metadata.csv")


def read_split(
    root: pathlib.Path,
    folder: pathlib.Path,
    task: str | None,
    *,
    damaged: bool = False,
    normalize_answers: str | None = None,
) -> tuple[str, list[Raw]]:
    """The task, by the first row where it is None, and every row as a raw example.

    With `damaged` an image has to exist but need not be readable; `normalize_answers` is that of
    `answer_form`.
    """
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(files) != 1:
        problem = "has both" if files else "has neither"
        raise MmflaxError(
            f"{folder} {problem} {METADATA[0]} {'and' if files else 'nor'} {METADATA[1]}; "
            "exactly one is needed."
        )
    file = files[0]
    try:
        entries = _csv_rows(file) if file.suffix == ".csv" else _json_rows(file)
        checked: set[str] = set()
        rows = []
        for line, entry in entries:
            where = f"{file}, line {line}"
            task = task or infer(where, entry)
            image = functools.partial(_image_path, where, root, folder, checked, damaged)
            raw = parse(where, task, entry, image, answer_form(task, normalize_answers))
            rows.append({**raw, "id": f"{file.relative_to(root)}:{line}"})
    except UnicodeDecodeError as error:
        raise MmflaxError(
            f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error
    if not rows:
        raise MmflaxError(f"{file} has no rows; expected one for each question.")
    assert task is not None
    return task, rows


def _json_rows(file: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(file, encoding="utf-8-sig") as text:
        for line, content in enumerate(text, start=1):
            if not content.strip():
                continue
            try:
                entry = json.loads(content)
            except ValueError as error:
                raise MmflaxError(
                    f"{file}, line {line}: not valid JSON ({error}); expected one object a line."
                ) from error
            if not isinstance(entry, dict):
                raise MmflaxError(
                    f"{file}, line {line}: found {content.strip()[:60]!r}; expected an object "
                    'such as {"file_name": "cat.jpg", "question": "...", "answer": "..."}.'
                )
            yield line, entry


def _csv_rows(file: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for entry in reader:
                if None in entry or None in entry.values():
                    raise MmflaxError(
                        f"{file}, line {reader.line_num}: the row has not as many fields as the "
                        "header; quote texts that hold a comma."
                    )
                yield reader.line_num, entry
        except csv.Error as error:
            raise MmflaxError(
                f"{file}, line {reader.line_num}: not valid CSV ({error})."
            ) from error


def _image_path(
    where: str,
    root: pathlib.Path,
    folder: pathlib.Path,
    checked: set[str],
    damaged: bool,
    column: str,
    name: str,
) -> str:
    """The path of an image, whose header is read unless it is among the checked ones."""
    inside = posixpath.normpath(posixpath.join(folder.relative_to(root).as_posix(), name))
    # By name and not by symbolic link: the Hugging Face cache links its files to outside.
    if posixpath.isabs(name) or inside.split("/")[0] == ".." or "\0" in name:
        raise MmflaxError(
            f"{where}: {column} {name!r} leads out of {root}; it must be a path inside it, "
            "relative to the metadata file."
        )
    path = root / inside
    if str(path) not in checked:
        try:
            check_header(path)
        except MmflaxError as error:
            if not (damaged and path.is_file()):
                raise MmflaxError(f"{where}: {error}") from error
        checked.add(str(path))
    return str(path)
