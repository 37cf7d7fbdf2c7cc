"""The frozen parameters of a run with adapters: where they are, and that they are the same.

Checkpoints of such a run hold what is trained. The rest comes from the sources of ``config.init``,
or from ``base.safetensors`` in the workdir where ``lora.save_base`` keeps it. ``base.json`` has the
SHA-256 of what the adapters were trained on, by path, which every later command compares.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mmflax import paths
from mmflax.errors import MmflaxError
from mmflax.files import write_file
from mmflax.pretrained.inspect import LazyArray
from mmflax.pretrained.placement import contiguous, place
from mmflax.pretrained.tensors import open_tensors

RECORD, SAVED = "base.json", "base.safetensors"


class Digest:
    """SHA-256 of arrays by path, in the order of the calls."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()

    def add(self, path: str, arrays: Iterable[np.ndarray]) -> None:
        for array in arrays:
            self._total.update(f"{path} {array.dtype} {array.shape}\n".encode())
            self._total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def __str__(self) -> str:
        return self._total.hexdigest()


def digest(values: Mapping[str, LazyArray]) -> str:
    """Of parameters by path, whatever their order."""
    found = Digest()
    for path in sorted(values):
        found.add(path, values[path].stored())
    return str(found)


def placed(values: Mapping[str, LazyArray], shapes: Any) -> tuple[Any, str]:
    """The tree of `shapes` on its devices, read one by one, and the digest of what was read."""
    found, tree = Digest(), {}
    leaves = paths.leaves(shapes)
    for path in sorted(leaves):
        value, leaf = values[path], leaves[path]
        array = value.read()
        found.add(path, value.stored() if value.parts else (array,))
        tree[path] = place(array, leaf.dtype, leaf.sharding)
    return paths.nested(tree), str(found)


def save(root: pathlib.Path, values: Mapping[str, LazyArray], shapes: Any) -> None:
    """Keeps the parameters in the workdir, in the types that the run has."""
    arrays = {
        path: contiguous(values[path].read(), leaf.dtype)
        for path, leaf in paths.leaves(shapes).items()
    }
    partial = root / f"{SAVED}.partial"
    save_file(arrays, partial)
    partial.rename(root / SAVED)


def saved(root: pathlib.Path) -> dict[str, LazyArray] | None:
    """What `save` wrote, unread, or None."""
    if not (root / SAVED).exists():
        return None
    tensors = open_tensors(root / SAVED)
    return {
        path: LazyArray(shape, lambda path=path: tensors[path])  # type: ignore[misc]
        for path, shape in tensors.shapes.items()
    }


def record(root: pathlib.Path, found: str, sources: Iterable[object]) -> None:
    """Writes what the adapters are trained on."""
    value = {"sha256": found, "sources": [str(source) for source in sources]}
    write_file(root / RECORD, json.dumps(value, indent=1) + "\n")


def check(root: pathlib.Path, found: str) -> None:
    """Raises unless the digest is that of the parameters that the adapters were trained on."""
    path = root / RECORD
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        expected, sources = value["sha256"], value["sources"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmflaxError(
            f"{path} cannot be read ({type(error).__name__}), so it is not known which weights "
            "the adapters belong to; restore the file."
        ) from error
    if found != expected:
        where = root / SAVED if (root / SAVED).exists() else " and ".join(sources)
        raise MmflaxError(
            f"The weights of {where} are not those that the adapters in {root} were trained on "
            f"(SHA-256 {found[:12]}, expected {expected[:12]}); put the former files back."
        )
