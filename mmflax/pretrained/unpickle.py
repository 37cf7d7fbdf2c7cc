"""An unpickler that runs nothing: tensors and plain containers become values, all else inert.

Training programs pickle what they like beside the weights: settings, paths, callbacks, a whole
module. Such an object becomes an `Inert`, which keeps the state that the pickle gives it and has
no behavior, so a file is read to its end whatever it holds, and no class or function that it names
is ever looked up. What can only have been meant to run is refused all the same, so that the owner
of the file hears of it.
"""

from __future__ import annotations

import collections
import pathlib
import pickle
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mmflax.errors import MmflaxError


class Storage(NamedTuple):
    """A PyTorch storage: a run of numbers of one type."""

    dtype: np.dtype
    key: str


class View(NamedTuple):
    """A tensor as it is pickled: a view of a storage, strides and offset in elements.

    `storage` is the key of one in the file, or the numbers themselves.
    """

    storage: Storage | np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Inert(dict[Any, Any]):
    """Stands for an object of an unknown class; `state` is what the pickle would set on it."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **__: Any):
        super().__init__()
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, _: Any) -> None:
        pass

    extend = add = append

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the object; with slots the state is a pair of dicts."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}


class _Dtype(Inert):
    """numpy's: `dtype("f4")`, with the byte order in its state."""

    @property
    def value(self) -> np.dtype:
        swapped = isinstance(self.state, tuple) and self.state[1:2] == (">",)
        return np.dtype(f"{'>' if swapped else ''}{self.arguments[0]}")


class NumpyArray(Inert):
    """A numpy array, whose numbers are in its state (version, shape, dtype, fortran, bytes)."""

    def view(self) -> View | None:
        """The numbers; None for objects and texts."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _Dtype) or str(dtype.arguments[0])[:1] not in "fiub":
            return None
        data = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
        strides = tuple(step // array.itemsize for step in array.strides)
        return View(array.reshape(-1), 0, tuple(shape), strides)


STORAGES = {
    f"{name}Storage": jnp.dtype(dtype)
    for name, dtype in (
        ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", "bfloat16"),
        ("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"),
        ("Byte", "uint8"), ("Bool", "bool"),
    )
}  # fmt: skip


def _rebuild(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> View:
    return View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _retyped(rebuild: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor of a subclass: the pickle names the function that rebuilds it."""
    return _rebuild(*arguments) if rebuild is _rebuild else Inert()


_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: collections.OrderedDict(),
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _retyped,
    ("numpy", "dtype"): _Dtype,
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): NumpyArray
        for core in ("core", "_core")
    },
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in (
        ("set", set), ("frozenset", frozenset), ("complex", complex),
    )},
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}  # fmt: skip
# Tensors whose numbers are not plain arrays, and what to do about each.
_UNREADABLE = {
    "_rebuild_qtensor": "a quantized tensor; save the model before it is quantized",
    "_rebuild_sparse_tensor": "a sparse tensor; save it as tensor.to_dense()",
    "_rebuild_nested_tensor": "a nested tensor; save plain tensors",
    "_rebuild_tensor_v3": "a tensor of a type without a storage class, such as float8; save it "
    "as bfloat16",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device, which has no numbers; save "
    "the model after its weights are loaded",
}
# What a pickle names only in order to run something. Nothing is looked up either way.
_CODE = frozenset(
    "os posix nt subprocess sys importlib runpy ctypes socket shutil commands pty code "
    "webbrowser pip".split()
)
_CODE_BUILTINS = frozenset("eval exec execfile compile open input breakpoint __import__".split())


class Unpickler(pickle.Unpickler):
    """Builds tensors, plain containers, and an `Inert` for everything else.

    Attributes:
      sizes: key of a storage -> its type and how many numbers it holds.
    """

    def __init__(self, file: Any, path: pathlib.Path):
        super().__init__(file, encoding="latin1")
        self._path = path
        self._classes: dict[str, type[Inert]] = {}
        self.sizes: dict[str, tuple[np.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        root, full = module.split(".")[0], f"{module}.{name}"
        if module == "torch._utils" and name in _UNREADABLE:
            raise MmflaxError(f"{self._path} holds {_UNREADABLE[name]}.")
        builtin = root in ("builtins", "__builtin__")
        if root in _CODE or (builtin and name in _CODE_BUILTINS):
            raise MmflaxError(
                f"{self._path} asks to run {full} when it is opened, which no checkpoint needs; do "
                "not open it with torch.load, and get the weights as safetensors from their author."
            )
        if full not in self._classes:
            self._classes[full] = type("Inert", (Inert,), {"name": full})
        return self._classes[full]

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # legacy files: a class with its source text
            return pid[1]
        kind, dtype, key, *rest = pid
        if kind != "storage":
            raise MmflaxError(f"{self._path} holds {kind!r}, which is not a tensor's storage.")
        if not isinstance(dtype, np.dtype):
            dtype = np.dtype("uint8")  # an untyped storage, of which no tensor here is a view
        if rest[2:] and rest[2] is not None:  # a view's (key, offset, size), legacy files only
            raise MmflaxError(f"{self._path} stores views of storages; save it with a newer torch.")
        self.sizes[str(key)] = (dtype, int(rest[1]))
        return Storage(dtype, str(key))
