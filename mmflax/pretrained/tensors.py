"""Named tensors of weight files, one at a time: safetensors, PyTorch's and Flax's, sharded or not.

safetensors are read by the library of that name; PyTorch's files by an unpickler of our own, for
the reasons in `torch_file.py`. Those of Flax come under PyTorch's names (`flax_file.py`).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mmflax.errors import MmflaxError
from mmflax.pretrained import flax_file
from mmflax.pretrained.torch_file import ENDINGS, StoredTensor, read_torch_file

# What a directory of transformers may hold, in the order in which it is looked for.
SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FLAX, FLAX_INDEX = "flax_model.msgpack", "flax_model.msgpack.index.json"
_WHOLE = (SAFE, SAFE_INDEX, TORCH, TORCH_INDEX, *OPEN_CLIP, FLAX, FLAX_INDEX)


class Tensor(NamedTuple):
    """A tensor that is read when it is used."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Name -> array; shapes are known without reading. Nothing read is kept.

    Attributes:
      source: the file, and where in it the tensors are.
      notes: sentences on what else the file holds.
    """

    def __init__(self, source: str, tensors: Mapping[str, Tensor], notes: tuple[str, ...] = ()):
        self.source = source
        self.notes = notes
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        return {name: tensor.dtype for name, tensor in self._tensors.items()}

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return sum(
            int(np.prod(t.shape, dtype=np.int64)) * t.dtype.itemsize for t in self._tensors.values()
        )

    def renamed(self, rename: Callable[[str], str | None]) -> Tensors:
        """Under other names; None leaves a tensor out."""
        pairs = ((rename(name), tensor) for name, tensor in self._tensors.items())
        kept = {name: tensor for name, tensor in pairs if name is not None}
        return Tensors(self.source, kept, self.notes)


def open_tensors(path: str | pathlib.Path) -> Tensors:
    """The tensors of a weight file, or of a directory with one.

    Raises:
      MmflaxError: nothing to read, a truncated or corrupt file, an index that names a file that is
        not there, or a pickle that holds more than tensors.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        for name in _WHOLE:
            if (path / name).exists():
                return open_tensors(path / name)
        raise MmflaxError(f"{path} holds no weights; expected one of {', '.join(_WHOLE)}.")
    if not path.exists():
        raise MmflaxError(f"There is no file {path}; expected weights.")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in ENDINGS:
        return _open_torch(path)
    if path.suffix == flax_file.ENDING:
        arrays = flax_file.read_flax_file(path)
        return Tensors(str(path), {name: _in_memory(x) for name, x in arrays.items()})
    endings = (".safetensors", *ENDINGS, flax_file.ENDING)
    raise MmflaxError(
        f"{path} ends in {path.suffix!r}; weights end in one of {', '.join(endings)}."
    )


def _in_memory(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


def _open_index(path: pathlib.Path) -> Tensors:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MmflaxError(f"{path} is not an index of weights ({error!r}).") from error
    if path.name.endswith(f"{flax_file.ENDING}.index.json"):
        files = {flax_file.torch_name(name.split("/")): file for name, file in files.items()}
    absent = [name for name in shards if not (path.parent / name).exists()]
    if absent:
        raise MmflaxError(
            f"{path} names {len(shards)} files, of which {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not there; copy every file of the checkpoint."
        )
    tensors: dict[str, Tensor] = {}
    for name in shards:
        tensors |= open_tensors(path.parent / name)._tensors
    missing = sorted(set(files) - set(tensors))
    if missing:
        raise MmflaxError(f"{path} names {missing[0]}, which {files[missing[0]]} does not hold.")
    return Tensors(str(path), tensors)


# Names of safetensors' types; those of 8 bits and below are not weights that we read.
_SAFE_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def _open_safetensors(path: pathlib.Path) -> Tensors:
    try:
        file = safe_open(str(path), framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise MmflaxError(
            f"{path} is truncated or corrupt ({error}); download it again and compare its size."
        ) from error

    # A Flax class saved it, under its own names joined by dots.
    flax = (file.metadata() or {}).get("format") == "flax"

    def tensor(name: str) -> Tensor:
        part = file.get_slice(name)
        dtype_name = part.get_dtype()
        if dtype_name not in _SAFE_DTYPES:
            raise MmflaxError(
                f"{path}: {name} has type {dtype_name}; expected a plain number type."
            )
        dtype = jnp.dtype(_SAFE_DTYPES[dtype_name])
        shape = tuple(part.get_shape())
        if not flax:
            return Tensor(shape, dtype, lambda: file.get_tensor(name))
        axes = flax_file.torch_axes(name.split("."), len(shape))
        shape = tuple(shape[axis] for axis in axes)
        return Tensor(shape, dtype, lambda: file.get_tensor(name).transpose(axes))

    tensors = {name: tensor(name) for name in file.keys()}
    if flax:
        tensors = {flax_file.torch_name(name.split(".")): one for name, one in tensors.items()}
    return Tensors(str(path), tensors)


def _open_torch(path: pathlib.Path) -> Tensors:
    def tensor(stored: StoredTensor) -> Tensor:
        return Tensor(stored.shape, stored.dtype, stored.read)

    found, stored = read_torch_file(path)
    source, notes = str(path), []
    if found.where:
        source = f"{path} ({found.where})"
    if found.others:
        notes = [
            f"of the state dicts in {path}, {found.where!r} was read, and not "
            f"{', '.join(map(repr, found.others))}; save the one you want alone to have another"
        ]
    return Tensors(source, {name: tensor(one) for name, one in stored.items()}, tuple(notes))
