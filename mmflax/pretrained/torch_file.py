"""Tensors of PyTorch's weight files, without PyTorch.

A PyTorch file is a pickle, which can run any code when it is opened. This unpickler builds tensors
and plain containers and refuses everything else, in the zip format and the one before version 1.6.
`torch.load(..., weights_only=True)` is as strict, but needs PyTorch (hundreds of MB) for loading a
checkpoint, and refuses whole files for the settings that training programs saved beside the tensors
(METER's); here those are skipped without being run. Tensors are mapped, and read when used.
"""

from __future__ import annotations

import collections
import io
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mmflax.errors import MmflaxError

ENDINGS = (".bin", ".pt", ".pth", ".ckpt")


class _Storage(NamedTuple):
    """A PyTorch storage: a run of numbers of one type."""

    dtype: np.dtype
    key: str


class _View(NamedTuple):
    """A PyTorch tensor as it is pickled: a view of a storage, strides and offset in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_STORAGES = {
    f"{name}Storage": jnp.dtype(dtype)
    for name, dtype in (
        ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", "bfloat16"),
        ("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"),
        ("Byte", "uint8"), ("Bool", "bool"),
    )
}  # fmt: skip


def _rebuild(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _View:
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}
# Training programs save their own settings beside the tensors: they are skipped, not run.
_SKIPPED = ("pytorch_lightning", "lightning", "lightning_fabric", "sacred", "argparse")


class _Skipped(dict[Any, Any]):
    """Stands for any object of those programs, and keeps nothing of it."""

    def __new__(cls, *_: Any, **__: Any) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; everything else is refused."""

    def __init__(self, file: Any, path: pathlib.Path):
        super().__init__(file, encoding="latin1")
        self._path = path
        self.sizes: dict[str, tuple[np.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] in _SKIPPED:
            return _Skipped
        raise MmflaxError(
            f"{self._path} asks to run {module}.{name} when it is opened; only tensors and plain "
            "containers are read. Save its state_dict alone, as safetensors if you can."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *rest = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise MmflaxError(f"{self._path} holds {kind!r}, which is not a tensor's storage.")
        if rest[2:] and rest[2] is not None:  # a view's (key, offset, size), legacy files only
            raise MmflaxError(f"{self._path} stores views of storages; save it with a newer torch.")
        self.sizes[str(key)] = (dtype, int(rest[1]))
        return _Storage(dtype, str(key))


def read_torch_file(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Name -> tensor, mapped and not read yet.

    Raises:
      MmflaxError: a file that is truncated, corrupt or without tensors, or holds other objects.
    """
    try:
        read = _read_zip if zipfile.is_zipfile(path) else _read_legacy
        tree, storages = read(path)
    except MmflaxError:
        raise
    except Exception as error:  # whatever pickle, zipfile and struct make of damaged bytes
        raise MmflaxError(
            f"{path} is truncated, corrupt, or not a PyTorch file ({error}); download it again."
        ) from error
    state = _state_dict(tree)
    views = state.items() if isinstance(state, Mapping) else ()
    tensors = {
        str(name): StoredTensor(path, view, storages[view.storage.key])
        for name, view in views
        if isinstance(view, _View)
    }
    if not tensors:
        raise MmflaxError(f"{path} holds no tensors.")
    return tensors


class StoredTensor(NamedTuple):
    """A tensor of a file: a view of a storage that is mapped into memory."""

    path: pathlib.Path
    view: _View
    storage: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    @property
    def dtype(self) -> np.dtype:
        return self.view.storage.dtype

    def read(self) -> np.ndarray:
        _, offset, shape, strides = self.view
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and not 0 <= last < len(self.storage):
            raise MmflaxError(f"{self.path}: a tensor reaches beyond its storage; it is corrupt.")
        steps = tuple(step * self.dtype.itemsize for step in strides)
        start = self.storage[offset:]
        return np.lib.stride_tricks.as_strided(start, shape, steps, writeable=False)


def _state_dict(tree: Any) -> Any:
    """The state dict of what a training program saved around it."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            return tree[key]
    return tree


def _read_zip(path: pathlib.Path) -> tuple[Any, Mapping[str, np.ndarray]]:
    """torch 1.6 and later: a zip, stored without compression, so storages are mapped in place."""
    with zipfile.ZipFile(path) as archive:
        (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        prefix = data.removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise MmflaxError(f"{path} was written on a big-endian machine, which is not read.")
        unpickler = _Unpickler(io.BytesIO(archive.read(data)), path)
        tree = unpickler.load()
        places = {
            info.filename.removeprefix(prefix + "data/"): info
            for info in archive.infolist()
            if info.filename.startswith(prefix + "data/")
        }
        mapped = _map(path)
        storages = {}
        for key, (dtype, count) in unpickler.sizes.items():
            info = places[key]
            if info.compress_type != zipfile.ZIP_STORED or info.file_size < count * dtype.itemsize:
                raise MmflaxError(f"{path}: storage {key} is damaged.")
            # The local header's name and extra field may differ from the directory's.
            head = mapped[info.header_offset : info.header_offset + 30].tobytes()
            names, extra = struct.unpack("<HH", head[26:30])
            start = info.header_offset + 30 + names + extra
            storages[key] = mapped[start : start + count * dtype.itemsize].view(dtype)
    return tree, storages


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def _read_legacy(path: pathlib.Path) -> tuple[Any, Mapping[str, np.ndarray]]:
    """Before torch 1.6: pickles of magic, protocol, system, tree and keys; then the storages."""
    with open(path, "rb") as file:
        if _Unpickler(file, path).load() != _MAGIC or _Unpickler(file, path).load() != _PROTOCOL:
            raise MmflaxError(f"{path} is not a PyTorch file.")
        system = _Unpickler(file, path).load()
        if not system.get("little_endian", True):
            raise MmflaxError(f"{path} was written on a big-endian machine, which is not read.")
        unpickler = _Unpickler(file, path)
        tree = unpickler.load()
        keys = _Unpickler(file, path).load()
        start = file.tell()
    mapped = _map(path)
    storages = {}
    for key in map(str, keys):
        dtype, count = unpickler.sizes[key]
        (stored,) = struct.unpack("<q", mapped[start : start + 8].tobytes())
        end = start + 8 + count * dtype.itemsize
        if stored != count or end > len(mapped):
            raise MmflaxError(f"{path} is truncated or corrupt at storage {key}.")
        # Offsets need not be multiples of the item size; a copy-free view of bytes allows that.
        storages[key] = mapped[start + 8 : end].view(dtype)
        start = end
    return tree, storages


def _map(path: pathlib.Path) -> np.ndarray:
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
