"""Reading a metadata file row by row: JSON lines, CSV, and Parquet."""

import csv
import json
import math
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mmflax.errors import MmflaxError

Entry = dict[str, Any]
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_DELIMITERS = ",;\t|"


def metadata_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The metadata files in a folder."""
    return [folder / name for name in METADATA if (folder / name).is_file()]


def entries_of(file: pathlib.Path) -> Iterator[tuple[int, Entry]]:
    """The line (of Parquet the row, from 1) and the columns of every row; an empty field is None.

    Words such as "NA", "null" or "None" in a CSV file are words.
    """
    read = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[file.suffix]
    try:
        yield from read(file)
    except UnicodeDecodeError as error:
        raise MmflaxError(
            f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error


def _json_rows(file: pathlib.Path) -> Iterator[tuple[int, Entry]]:
    with open(file, encoding="utf-8-sig") as text:
        for line, content in enumerate(text, start=1):
            if not content.strip():
                continue
            try:
                entry = json.loads(content)
            except ValueError as error:
                whole = " (this file is one JSON list)" if content.lstrip()[0] == "[" else ""
                raise MmflaxError(
                    f"{file}, line {line}: not valid JSON ({error}); expected one object a line"
                    f"{whole}."
                ) from error
            if not isinstance(entry, dict):
                raise MmflaxError(
                    f"{file}, line {line}: found {content.strip()[:60]!r}; expected an object "
                    'such as {"file_name": "cat.jpg", "question": "...", "answer": "..."}, one a '
                    "line."
                )
            yield line, {key: _number(value) for key, value in entry.items()}


def _csv_rows(file: pathlib.Path) -> Iterator[tuple[int, Entry]]:
    with open(file, encoding="utf-8-sig", newline="") as text:
        header = text.readline()
        text.seek(0)
        # A comma, unless the header has none of it and has another.
        delimiter = next((mark for mark in _DELIMITERS if mark in header), ",")
        reader = csv.DictReader(text, strict=True, delimiter=delimiter)
        try:
            names = [name.strip() for name in reader.fieldnames or ()]
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise MmflaxError(f"{file}, line 1: the column {twice[0]!r} is there twice.")
            reader.fieldnames = names
            for entry in reader:
                if None in entry or None in entry.values():
                    raise MmflaxError(
                        f"{file}, line {reader.line_num}: the row has not as many fields as the "
                        f"header; quote texts that hold {delimiter!r}."
                    )
                yield (
                    reader.line_num,
                    {key: value if value.strip() else None for key, value in entry.items()},
                )
        except csv.Error as error:
            raise MmflaxError(
                f"{file}, line {reader.line_num}: not valid CSV ({error})."
            ) from error


def _parquet_rows(file: pathlib.Path) -> Iterator[tuple[int, Entry]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MmflaxError(
            f"{file} needs pyarrow to be read; run `pip install pyarrow`, or save it as "
            "metadata.csv."
        ) from error
    try:
        with parquet.ParquetFile(file) as table:
            row = 0
            for batch in table.iter_batches():
                for entry in batch.to_pylist():
                    row += 1
                    yield row, {key: _number(value) for key, value in entry.items()}
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        text = " ".join(str(error).split())[:200]
        raise MmflaxError(f"{file} is not a Parquet file that can be read ({text}).") from error


def _number(value: Any) -> Any:
    """Not a number is what other programs write for an empty field."""
    return None if isinstance(value, float) and math.isnan(value) else value
