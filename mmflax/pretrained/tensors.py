"""Named tensors of weight files, one at a time: safetensors, sharded or not, and PyTorch's.

A PyTorch file is a pickle, which can run any code when it is opened. Ours is read by an unpickler
that knows tensors and plain containers and refuses everything else (as `torch.load(...,
weights_only=True)` does), without PyTorch: both its zip format and the one before version 1.6.
"""

from __future__ import annotations

import collections
import io
import json
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mmflax.errors import MmflaxError

# What a directory of transformers may hold, in the order in which it is looked for.
SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_TORCH_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")


class Tensor(NamedTuple):
    """A tensor that is read when it is asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Name -> array; shapes are known without reading. Nothing read is kept."""

    def __init__(self, source: str, tensors: Mapping[str, Tensor]):
        self.source = source
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
        return Tensors(self.source, {name: tensor for name, tensor in pairs if name is not None})


def open_tensors(path: str | pathlib.Path) -> Tensors:
    """The tensors of a weight file, or of a directory with one.

    Raises:
      MmflaxError: nothing to read, a truncated or corrupt file, an index that names a file that is
        not there, or a pickle that holds more than tensors.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        for name in (SAFE, SAFE_INDEX, TORCH, TORCH_INDEX):
            if (path / name).exists():
                return open_tensors(path / name)
        raise MmflaxError(
            f"{path} holds no weights; expected one of {SAFE}, {SAFE_INDEX}, {TORCH}, "
            f"{TORCH_INDEX}."
        )
    if not path.exists():
        raise MmflaxError(f"There is no file {path}; expected weights.")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in _TORCH_ENDINGS:
        return _open_torch(path)
    raise MmflaxError(
        f"{path} ends in {path.suffix!r}; weights end in .safetensors or "
        f"{', '.join(_TORCH_ENDINGS)}."
    )


def _open_index(path: pathlib.Path) -> Tensors:
    try:
        files = json.loads(path.read_text())["weight_map"]
        shards = sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MmflaxError(f"{path} is not an index of weights ({error!r}).") from error
    absent = [name for name in shards if not (path.parent / name).exists()]
    if absent:
        raise MmflaxError(
            f"{path} names {len(shards)} files, of which {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not there; copy every file of the checkpoint."
        )
    found: dict[str, Tensor] = {}
    for name in shards:
        found |= open_tensors(path.parent / name)._tensors
    lost = sorted(set(files) - set(found))
    if lost:
        raise MmflaxError(f"{path} names {lost[0]}, which {files[lost[0]]} does not hold.")
    return Tensors(str(path), found)


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

    def tensor(name: str) -> Tensor:
        part = file.get_slice(name)
        kind = part.get_dtype()
        if kind not in _SAFE_DTYPES:
            raise MmflaxError(f"{path}: {name} has type {kind}; expected a plain number type.")
        dtype = jnp.dtype(_SAFE_DTYPES[kind])
        return Tensor(tuple(part.get_shape()), dtype, lambda: file.get_tensor(name))

    return Tensors(str(path), {name: tensor(name) for name in file.keys()})


class _Storage(NamedTuple):
    """A PyTorch storage: a run of numbers of one type."""

    dtype: np.dtype
    key: str


class _Stored(NamedTuple):
    """A PyTorch tensor: a view of a storage, strides and offset in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_STORAGES = {
    f"{name}Storage": jnp.dtype(kind)
    for name, kind in (
        ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", "bfloat16"),
        ("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"),
        ("Byte", "uint8"), ("Bool", "bool"),
    )
}  # fmt: skip


def _rebuild(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Stored:
    return _Stored(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}
# Training programs save their own settings beside the tensors: they are passed over, not run.
_PASSED_OVER = ("pytorch_lightning", "lightning", "lightning_fabric", "sacred", "argparse")


class _PassedOver(dict[Any, Any]):
    """Stands for any object of those programs, and keeps nothing of it."""

    def __new__(cls, *_: Any, **__: Any) -> _PassedOver:
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
    """Builds tensors and plain containers; anything else that a pickle asks for is refused."""

    def __init__(self, file: Any, path: pathlib.Path):
        super().__init__(file, encoding="latin1")
        self._path = path
        self.sizes: dict[str, tuple[np.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] in _PASSED_OVER:
            return _PassedOver
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


def _open_torch(path: pathlib.Path) -> Tensors:
    try:
        if zipfile.is_zipfile(path):
            tree, storages = _read_zip(path)
        else:
            tree, storages = _read_legacy(path)
    except MmflaxError:
        raise
    except Exception as error:  # whatever pickle, zipfile and struct make of damaged bytes
        raise MmflaxError(
            f"{path} is truncated, corrupt, or not a PyTorch file ({error}); download it again."
        ) from error

    def tensor(stored: _Stored) -> Tensor:
        dtype = stored.storage.dtype

        def read() -> np.ndarray:
            whole = storages[stored.storage.key]
            steps = tuple(step * dtype.itemsize for step in stored.strides)
            last = stored.offset + sum(
                (n - 1) * step for n, step in zip(stored.shape, stored.strides, strict=True)
            )
            if 0 not in stored.shape and not 0 <= last < len(whole):
                raise MmflaxError(f"{path}: a tensor reaches beyond its storage; it is corrupt.")
            view = whole[stored.offset :]
            return np.lib.stride_tricks.as_strided(view, stored.shape, steps, writeable=False)

        return Tensor(stored.shape, dtype, read)

    found = {name: tensor(stored) for name, stored in _flat(_state(tree))}
    if not found:
        raise MmflaxError(f"{path} holds no tensors.")
    return Tensors(str(path), found)


def _state(tree: Any) -> Any:
    """The state dict of what a training program saved around it."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            return tree[key]
    return tree


def _flat(tree: Any) -> Iterator[tuple[str, _Stored]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if isinstance(value, _Stored):
                yield str(name), value


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
