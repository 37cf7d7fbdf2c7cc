"""``folder``: your own images and questions, in the Hugging Face ``imagefolder`` layout.

::

    my_data/train/metadata.jsonl       one JSON object a line: file_name, question, answer
    my_data/train/cat.jpg              file_name is relative to the metadata file
    my_data/validation/metadata.jsonl  optional: held out of train, by image, when absent
    my_data/test/metadata.jsonl        optional

``metadata.csv`` with the same columns works too. A column ``question_type`` is optional and splits
the accuracy by its values; further columns are ignored. An image may have many rows.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import os
import pathlib
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.transforms import check_header
from mmflax.errors import MmflaxError

REQUIRED = ("file_name", "question", "answer")
OPTIONAL = ("question_type",)
# The folder names that the imagefolder loader itself takes for each split.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
METADATA = ("metadata.jsonl", "metadata.csv")


def build(
    *,
    path: str | os.PathLike[str],
    validation_fraction: float = 0.1,
    unseen_answers: str = "error",
) -> Dataset:
    """Reads and checks every row and every image's header, before any training starts.

    Args:
      path: the folder that holds ``train/``.
      validation_fraction: of the training images, held out when there is no ``validation/``: always
        the same images for the same file names, never the last one with some answer; 0 holds out
        none.
      unseen_answers: an answer in validation or test that train lacks is an ``error``, or counts as
        ``wrong``.

    Raises:
      MmflaxError: naming the file and the line.
    """
    if unseen_answers not in ("error", "wrong"):
        raise MmflaxError(f"unseen_answers is {unseen_answers!r}; choose 'error' or 'wrong'.")
    if not 0 <= validation_fraction < 1:
        raise MmflaxError(
            f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1."
        )
    if not str(path):
        raise MmflaxError(
            "data.path is empty; name your folder, as in --config configs/folder_vqa.py:DIR."
        )
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise MmflaxError(
            f"There is no folder {root}; expected one that holds train/{METADATA[0]}."
        )
    splits: dict[str, list[Raw]] = {}
    for split, names in SPLIT_FOLDERS.items():
        folder = _split_folder(root, names)
        if folder is not None:
            splits[split] = _read_split(root, folder)
    if "train" not in splits:
        found = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
        raise MmflaxError(
            f"The folder {root} has no train/ (its folders: {found}); put the training images and "
            f"{METADATA[0]} into {root / 'train'}."
        )
    _check_answers(splits, unseen_answers)
    if "validation" not in splits and validation_fraction:
        train, held_out = _hold_out(root, splits["train"], validation_fraction)
        if held_out:
            splits = {"train": train, "validation": held_out} | {
                split: rows for split, rows in splits.items() if split != "train"
            }
    return Dataset(
        name="folder", splits=splits, info={"path": str(root), "sha256": _digest(root, splits)}
    )


def _split_folder(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        raise MmflaxError(
            f"{found[0]} and {found[1]} are names for the same split; keep one of them."
        )
    return found[0] if found else None


def _read_split(root: pathlib.Path, folder: pathlib.Path) -> list[Raw]:
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
        rows = [_row(root, file, line, entry, checked) for line, entry in entries]
    except UnicodeDecodeError as error:
        raise MmflaxError(
            f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error
    if not rows:
        raise MmflaxError(f"{file} has no rows; expected one for each question.")
    return rows


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


def _row(
    root: pathlib.Path, file: pathlib.Path, line: int, entry: dict[str, Any], checked: set[str]
) -> Raw:
    where = f"{file}, line {line}"
    _check_columns(where, entry)
    values = {key: _text(where, key, entry[key]) for key in REQUIRED}
    question_type = "all"
    if entry.get("question_type") is not None:
        question_type = _text(where, "question_type", entry["question_type"])
    image = _image_path(where, root, file.parent, values["file_name"])
    if image not in checked:
        try:
            check_header(image)
        except MmflaxError as error:
            raise MmflaxError(f"{where}: {error}") from error
        checked.add(image)
    return {
        "image": image,
        "question": values["question"],
        "answer": values["answer"],
        "question_type": question_type,
        "id": f"{file.relative_to(root)}:{line}",
    }


def _check_columns(where: str, entry: dict[str, Any]) -> None:
    others = [str(key) for key in entry if key not in REQUIRED + OPTIONAL]
    for column in REQUIRED + OPTIONAL:
        if column in entry:
            continue
        # A column that only resembles the optional one may be the user's own: be surer of it.
        cutoff = 0.6 if column in REQUIRED else 0.85
        near = difflib.get_close_matches(column, others, n=1, cutoff=cutoff)
        if near:
            raise MmflaxError(f"{where}: found the column {near[0]!r}; rename it to {column!r}.")
        if column in REQUIRED:
            found = ", ".join(map(str, entry)) or "none"
            raise MmflaxError(
                f"{where}: the column {column!r} is missing (found: {found}); every row needs "
                f"{', '.join(REQUIRED)}."
            )


def _text(where: str, column: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise MmflaxError(f"{where}: {column} is {value!r}; expected text in quotes.")
    if not value.strip():
        raise MmflaxError(f"{where}: {column} is empty; fill it in or remove the row.")
    return value.strip()


def _image_path(where: str, root: pathlib.Path, folder: pathlib.Path, name: str) -> str:
    inside = posixpath.normpath(posixpath.join(folder.relative_to(root).as_posix(), name))
    # By name and not by symbolic link: the Hugging Face cache links its files to outside.
    if posixpath.isabs(name) or inside.split("/")[0] == ".." or "\0" in name:
        raise MmflaxError(
            f"{where}: file_name {name!r} leads out of {root}; it must be a path inside it, "
            "relative to the metadata file."
        )
    return str(root / inside)


def _check_answers(splits: dict[str, list[Raw]], unseen_answers: str) -> None:
    if unseen_answers == "wrong":
        return
    seen = {row["answer"] for row in splits["train"]}
    for split, rows in splits.items():
        for row in rows:
            if row["answer"] not in seen:
                near = difflib.get_close_matches(row["answer"], sorted(seen), n=1)
                file, line = row["id"].rsplit(":", 1)
                raise MmflaxError(
                    f"{file}, line {line}: the answer {row['answer']!r} does not occur in train"
                    f"{f' (nearest: {near[0]!r})' if near else ''}, so no model can give it; "
                    f"correct it, or set unseen_answers='wrong' to count it as wrong in {split}."
                )


def _hold_out(root: pathlib.Path, rows: list[Raw], fraction: float) -> tuple[list[Raw], list[Raw]]:
    """Moves whole images, in an order drawn from their names, while every answer stays in train."""
    by_image: dict[str, list[Raw]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row)
    left = Counter(row["answer"] for row in rows)
    wanted = math.ceil(fraction * len(by_image)) if len(by_image) > 1 else 0
    held: set[str] = set()
    for image in sorted(by_image, key=lambda name: _sha(os.path.relpath(name, root))):
        if len(held) == wanted:
            break
        answers = Counter(row["answer"] for row in by_image[image])
        if all(left[answer] > count for answer, count in answers.items()):
            left -= answers
            held.add(image)
    return (
        [row for row in rows if row["image"] not in held],
        [row for row in rows if row["image"] in held],
    )


def _digest(root: pathlib.Path, splits: dict[str, list[Raw]]) -> str:
    """Over the rows, not the pixels: shows that two runs had the same questions."""
    rows = [
        [split, os.path.relpath(row["image"], root), row["question"], row["answer"]]
        for split, examples in splits.items()
        for row in examples
    ]
    return _sha(json.dumps(rows))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
