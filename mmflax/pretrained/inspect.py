"""What a published checkpoint is, from its config and its tensors' names; no weights are read."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmflax import paths, registry
from mmflax.errors import MmflaxError
from mmflax.pretrained import families, hub, open_clip, own_format, rules
from mmflax.pretrained.families.config_keys import without
from mmflax.pretrained.processor import PublishedProcessor
from mmflax.pretrained.tensors import SAFE, Tensors, open_tensors
from mmflax.pretrained.wrappers import unwrapped

CONFIG = "config.json"
FAMILIES = families.__name__


class UnknownLayoutError(MmflaxError):
    """A weight file without a config, of no family that can do without."""


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """A parameter that is read when it is used; `value[index]` reads too.

    Attributes:
      shape: of what `read` gives.
      read: the array.
      parts: what it is computed from, where another machine may round that otherwise.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    parts: tuple[LazyArray, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.read()[index]

    def stored(self) -> Iterator[np.ndarray]:
        """The arrays of files that it comes from, which are equal bit by bit everywhere."""
        if not self.parts:
            yield self.read()
        for part in self.parts:
            yield from part.stored()


@dataclasses.dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint whose weights are not read yet.

    Attributes:
      root: its folder or file.
      family: the family that reads it, a plain name or a dotted path.
      original: its config.
      fields: `name` and keywords of the family's module.
      tensors: its tensors, unread.
      table: their names and ours.
      names: their tensors' names and types.
    """

    root: pathlib.Path
    family: str
    original: Mapping[str, Any]
    fields: Mapping[str, Any]
    tensors: Tensors
    table: rules.Table
    names: Mapping[str, str]

    @functools.cached_property
    def model(self) -> Any:
        """The family's module."""
        return registry.build(FAMILIES, "model", self.fields)

    def parameters(
        self,
        shapes: Mapping[str, Any],
        *,
        may_lack: Sequence[str] = (),
        may_ignore: Sequence[str] = (),
    ) -> dict[str, LazyArray]:
        """Our path -> a parameter of theirs in our layout; all is checked, nothing is read."""
        bound = rules.bind(
            self.table,
            self.tensors,
            {path: leaf.shape for path, leaf in shapes.items()},
            shapes=self.tensors.shapes,
            may_lack=may_lack,
            may_ignore=may_ignore,
            source=self.tensors.source,
        )
        rules.check_tied(self.table, self.tensors, self.tensors.source)
        arrays = {}
        for row in bound:
            wanted = [shapes[path].shape for path in row.paths]
            for index, path in enumerate(row.paths):
                read = functools.partial(self._read, row, wanted, index)
                arrays[path] = LazyArray(shapes[path].shape, read)
        return arrays

    def _read(self, row: rules.Rule, shapes: Sequence[Any], index: int) -> np.ndarray:
        return row.read(self.tensors[row.theirs], shapes)[index]

    def processor(self) -> PublishedProcessor | None:
        """What makes a batch as the original did; None where its files are not there."""
        folder = self.root if self.root.is_dir() else self.root.parent
        fixed = self._fixed_preprocessing(folder)
        described = self.original if fixed is not None or open_clip.exists(folder) else None
        found = None
        if PublishedProcessor.exists(folder):
            found = PublishedProcessor.load(folder, described=described)
        if fixed is None or (found is not None and found.pixels is not None):
            return found
        return PublishedProcessor.with_images(fixed, str(self.root), found)

    def _fixed_preprocessing(self, folder: pathlib.Path) -> dict[str, Any] | None:
        """The `preprocessor_config.json` of an original file that came without a config."""
        if any((folder / name).exists() for name in (CONFIG, open_clip.CONFIG, own_format.CONFIG)):
            return None
        return families.preprocessing_of(self.family, self.original)


def inspect(
    source: str | os.PathLike[str],
    *,
    family: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    may_ignore_keys: Sequence[str] = (),
) -> PublishedCheckpoint:
    """The checkpoint at `source`; see `from_pretrained` for the arguments."""
    root = hub.locate(str(source), revision=revision, offline=offline)
    if own_format.exists(root):
        return _inspect_own(root, family)
    tensors = open_tensors(root)
    folder = root if root.is_dir() else root.parent
    if (folder / CONFIG).exists():
        original = without(read_config(folder), may_ignore_keys)
    elif open_clip.exists(folder):
        original = open_clip.clip_config(folder, may_ignore_keys)
    else:
        tensors = unwrapped(tensors, functools.partial(_count_recognized, root, family))
        original = _recognized(root, tensors, family)
    family = family or families.family_of(original.get("model_type"), str(root))
    families.check_config(family, original, str(folder / CONFIG))
    tensors = unwrapped(tensors, functools.partial(_count_known, family, original))
    names = sorted(tensors)
    fields = families.fields_of(family, original, names)
    table = families.table_of(family, original, names)
    dtypes = {name: str(dtype) for name, dtype in tensors.dtypes.items()}
    return PublishedCheckpoint(root, family, original, fields, tensors, table, dtypes)


def _inspect_own(root: pathlib.Path, family: str | None) -> PublishedCheckpoint:
    """What `Pretrained.save(to="mmflax")` wrote: every name is its own path."""
    saved = own_format.read(root)
    original = saved.original
    family = family or saved.family or families.family_of(original["model_type"], str(root))
    table = rules.Table(tuple(rules.Rule(name, name) for name in saved.tensors))
    return PublishedCheckpoint(
        root, family, original, saved.fields, saved.tensors, table, saved.names
    )


def _count_known(family: str, original: Mapping[str, Any], tensors: Tensors) -> int:
    """How many of the tensors the family's table names."""
    try:
        table = families.table_of(family, original, sorted(tensors))
    except MmflaxError:  # the names have nothing that the table is chosen by
        return 0
    return rules.count_known(table, tensors)


def _count_recognized(root: pathlib.Path, family: str | None, tensors: Tensors) -> int:
    """The number of tensors if a family knows them by their shapes, else 0."""
    try:
        _recognized(root, tensors, family)
    except UnknownLayoutError:
        return 0
    except MmflaxError:  # a family knows them, and something else is wrong
        pass
    return len(tensors)


def _recognized(root: pathlib.Path, tensors: Tensors, family: str | None) -> dict[str, Any]:
    """The config of a file that came without one; a family of one's own may do without."""
    config: Mapping[str, Any] | None
    if family is None:
        config = families.recognize(tensors.shapes)
    else:
        module = families.family_module(family)
        config = module.recognize(tensors.shapes) if hasattr(module, "recognize") else {}
    if config is None:
        raise UnknownLayoutError(
            f"There is no {CONFIG} beside {root}, and its tensors are not those of an original "
            "checkpoint that is known without one; put the model's config.json beside it."
        )
    return dict(config)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """A checkpoint's config.json."""
    path = folder / CONFIG
    if not path.exists():
        raise MmflaxError(
            f"There is no {path}; expected a directory with {CONFIG} and {SAFE}, as transformers "
            "saves it."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MmflaxError(f"{path} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise MmflaxError(f"{path} holds {type(config).__name__}, not an object.")
    return config


def shapes_of(model: Any) -> dict[str, Any]:
    """path -> shape and type of a family's parameters."""
    tree = jax.eval_shape(lambda key: model.init(key, model.zeros())["params"], jax.random.key(0))
    return paths.leaves(tree)
