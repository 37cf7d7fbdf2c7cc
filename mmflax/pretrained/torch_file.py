"""Tensors of PyTorch's weight files, without PyTorch.

A PyTorch file is a pickle, which can run any code when it is opened. `unpickle.py` builds tensors
and plain containers and runs nothing: in the zip format, the one before version 1.6, and
TorchScript's.
`torch.load(..., weights_only=True)` runs nothing either, but needs PyTorch (hundreds of MB) for
loading a checkpoint, and refuses whole files for what training programs saved beside the tensors.
Tensors are mapped, and read when used.
"""

from __future__ import annotations

import io
import mmap
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mmflax.errors import MmflaxError
from mmflax.pretrained import state_dict
from mmflax.pretrained.unpickle import Unpickler, View

ENDINGS = (".bin", ".pt", ".pth", ".ckpt")


def read_torch_file(path: pathlib.Path) -> tuple[state_dict.Found, dict[str, StoredTensor]]:
    """The state dict that was found, and name -> tensor, mapped and not read yet.

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
    found = state_dict.find(tree, path)
    return found, {
        name: StoredTensor(
            path,
            view,
            view.storage if isinstance(view.storage, np.ndarray) else storages[view.storage.key],
        )
        for name, view in found.tensors.items()
    }


class StoredTensor(NamedTuple):
    """A tensor of a file: a view of a storage that is mapped into memory."""

    path: pathlib.Path
    view: View
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


def _read_zip(path: pathlib.Path) -> tuple[Any, Mapping[str, np.ndarray]]:
    """torch 1.6 and later: a zip, stored without compression, so storages are mapped in place."""
    with zipfile.ZipFile(path) as archive:
        (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        prefix = data.removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise MmflaxError(f"{path} was written on a big-endian machine, which is not read.")
        unpickler = Unpickler(io.BytesIO(archive.read(data)), path)
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
        if Unpickler(file, path).load() != _MAGIC or Unpickler(file, path).load() != _PROTOCOL:
            raise MmflaxError(f"{path} is not a PyTorch file.")
        system = Unpickler(file, path).load()
        if not system.get("little_endian", True):
            raise MmflaxError(f"{path} was written on a big-endian machine, which is not read.")
        unpickler = Unpickler(file, path)
        tree = unpickler.load()
        keys = Unpickler(file, path).load()
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
