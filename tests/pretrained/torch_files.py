"""Files as `torch.save` writes them, without torch: a pickle of the tree, a storage a tensor."""

import io
import pathlib
import pickle
import zipfile
from typing import Any, NamedTuple

import numpy as np

KINDS = {"float32": "Float", "float16": "Half", "int64": "Long"}


class Name(NamedTuple):
    """A name that the pickle asks for; nothing of it need exist here."""

    module: str
    name: str

    def __call__(self):
        """What `reduce` needs to see; never called."""


class Storage(NamedTuple):
    kind: str
    key: str
    size: int


class Instance(NamedTuple):
    """An object of a class that is not here, with this state."""

    cls: Name
    state: Any


class Pickler(pickle._Pickler):
    def persistent_id(self, found):
        if isinstance(found, Storage):
            return ("storage", Name("torch", f"{found.kind}Storage"), found.key, "cpu", found.size)
        return None

    def save(self, found, save_persistent_id=True):
        if isinstance(found, Name):
            self.write(pickle.GLOBAL + f"{found.module}\n{found.name}\n".encode())
        elif isinstance(found, np.ndarray):
            self.save_tensor(np.ascontiguousarray(found).reshape(found.shape))
        elif isinstance(found, Instance):
            self.save_reduce(found.cls, (), found.state)
        else:
            super().save(found, save_persistent_id)

    def save_tensor(self, array):
        key = str(len(self.storages))
        self.storages[key] = array.tobytes()
        storage = Storage(KINDS[array.dtype.name], key, array.size)
        strides = tuple(step // array.itemsize for step in array.strides)
        rebuild = Name("torch._utils", "_rebuild_tensor_v2")
        self.save_reduce(rebuild, (storage, 0, array.shape, strides, False, {}))


def save(tree: Any, path: pathlib.Path) -> None:
    """`tree` of dicts, lists, arrays and `Instance`s, in the zip format of torch 1.6 and later."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol=2)
    pickler.storages = {}
    pickler.dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", buffer.getvalue())
        for key, content in pickler.storages.items():
            archive.writestr(f"{path.stem}/data/{key}", content)
        archive.writestr(f"{path.stem}/version", "3\n")
