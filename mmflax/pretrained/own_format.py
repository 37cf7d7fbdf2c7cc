"""The format of `convert --to mmflax`: our paths and layout, which load without a table.

A folder holds `params.safetensors`, path -> array, and `mmflax.json`: the family, its module's
fields, and the original's config and tensor names, from which the original's format is written.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from mmflax.errors import MmflaxError
from mmflax.pretrained.tensors import Tensors, open_tensors

CONFIG, WEIGHTS = "mmflax.json", "params.safetensors"
FORMAT = 2
# Paths that format 1 had: each family's head of words under names of its own.
RENAMED = (
    (r"^word_(dense|norm|bias)\b", r"word_head/\1"),
    (r"^(\w+_head|decoder/output)/output/", r"\1/"),
)


class Saved(NamedTuple):
    """What a folder holds; `family` is None in format 1, which the original's config implies."""

    family: str | None
    fields: Mapping[str, Any]
    original: Mapping[str, Any]
    names: Mapping[str, str]
    tensors: Tensors


def exists(root: pathlib.Path) -> bool:
    """Whether a folder is in this format."""
    return (root / CONFIG).exists()


def write(
    folder: pathlib.Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes parameters by path, and of `config` what `read` gives back."""
    save_file(dict(arrays), folder / WEIGHTS)
    kept = {key: config[key] for key in ("family", "fields", "original", "names")}
    text = json.dumps({"format": FORMAT, **kept}, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read(root: pathlib.Path) -> Saved:
    """The contents of a folder that `write` made, weights unread."""
    try:
        config = json.loads((root / CONFIG).read_text(encoding="utf-8"))
        if config["format"] not in (1, FORMAT):
            raise MmflaxError(f"format {config['format']} is not {FORMAT}")
        fields, original, names = _tuples(config["fields"]), config["original"], config["names"]
    except (MmflaxError, ValueError, KeyError, TypeError) as error:
        raise MmflaxError(f"{root / CONFIG} cannot be used: {error}.") from error
    tensors = open_tensors(root / WEIGHTS)
    if config["format"] == 1:
        tensors = tensors.renamed(_renamed)
    return Saved(config.get("family"), fields, original, names, tensors)


def _renamed(path: str) -> str:
    for pattern, new in RENAMED:
        path = re.sub(pattern, new, path)
    return path


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value
