"""Public checkpoints: a directory, a file or a hub id to a model that runs, and back.

>>> import mmflax
>>> bert = mmflax.from_pretrained("path/to/bert-base-uncased")
>>> batch = bert.processor.texts(["a photo of a cat"])
>>> bert.model.apply({"params": bert.params}, batch)["last_hidden_state"].shape
(1, 512, 768)
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from mmflax import paths, registry
from mmflax.distributed import mesh as meshes
from mmflax.errors import MmflaxError
from mmflax.pretrained import hub, rules
from mmflax.pretrained.processor import PublishedProcessor
from mmflax.pretrained.tensors import SAFE, Tensors, open_tensors

CONFIG = "config.json"
OWN_CONFIG, OWN_WEIGHTS, OWN_FORMAT = "mmflax.json", "params.safetensors", 1
FAMILIES = "mmflax.pretrained.families"
# What lies beside the weights and goes where they go; the processor keeps its own files.
_COMPANIONS = ("generation_config.json",)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model, ready to run.

    Attributes:
      model: `model.apply({"params": params}, batch) -> dict`, pure.
      params: its parameters.
      processor: raw images and texts to the arrays of a batch, as the original did; None where the
        checkpoint came without what that needs.
      config: the family's `name` and keywords (`fields`), the checkpoint's own config (`original`),
        and where it came from (`source`); of a workdir the run's config, and its step (`run`).
    """

    model: Any
    params: Any
    processor: Any
    config: Mapping[str, Any]

    def tensors(self, params: Any = None) -> dict[str, np.ndarray]:
        """The parameters under the original's names, in its layout."""
        _refuse_run(self.config)
        flat = paths.leaves(self.params if params is None else params)
        found = rules.write(self._table, {path: np.asarray(leaf) for path, leaf in flat.items()})
        # In the types that the file has: half precision goes back as half precision.
        kinds = self.config["names"]
        return {
            name: value.astype(jnp.dtype(kinds.get(name, value.dtype)), copy=False)
            for name, value in found.items()
        }

    def save(
        self, directory: str | os.PathLike[str], params: Any = None, *, to: str = "hf"
    ) -> None:
        """Writes the checkpoint; the directory appears whole or not at all.

        Args:
          directory: a new folder.
          params: parameters to write in place of this object's, such as fine-tuned ones.
          to: "hf", the original's format (config.json, model.safetensors and what lay beside
            them), or "mmflax", our names and layout, which loads without a table.

        Raises:
          MmflaxError: the directory exists already.
        """
        _refuse_run(self.config)
        if to not in ("hf", "mmflax"):
            raise MmflaxError(f"to is {to!r}; expected 'hf' or 'mmflax'.")
        target = pathlib.Path(directory)
        if target.exists():
            raise MmflaxError(f"{target} exists already; name a new folder.")
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if to == "hf":
            save_file(self.tensors(params), partial / SAFE, metadata={"format": "pt"})
            text = json.dumps(self.config["original"], indent=2, ensure_ascii=False)
            (partial / CONFIG).write_text(text + "\n")
        else:
            flat = paths.leaves(self.params if params is None else params)
            arrays = {
                path: _contiguous(np.asarray(leaf), leaf.dtype) for path, leaf in flat.items()
            }
            save_file(arrays, partial / OWN_WEIGHTS)
            known = {key: self.config[key] for key in ("fields", "original", "names")}
            text = json.dumps({"format": OWN_FORMAT, **known}, indent=2, ensure_ascii=False)
            (partial / OWN_CONFIG).write_text(text + "\n")
        origin = pathlib.Path(self.config["source"])
        for name in _COMPANIONS:
            if (origin / name).exists():
                shutil.copy(origin / name, partial / name)
        if self.processor is not None:
            self.processor.save(partial)
        partial.rename(target)

    def hidden_states(self, batch: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """What enters each stack of layers and what every layer gives: module path -> a tuple."""
        return self.with_hidden_states(batch)[1]

    def with_hidden_states(
        self, batch: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
        """The model's outputs, and `hidden_states` of the same call."""

        def run(params: Any, batch: Mapping[str, Any]) -> Any:
            return self.model.apply({"params": params}, batch, mutable=["hidden_states"])

        arrays = {key: jnp.asarray(value) for key, value in batch.items()}
        outputs, found = jax.jit(run)(self.params, arrays)
        flat = paths.leaves(
            found.get("hidden_states", {}), is_leaf=lambda node: isinstance(node, tuple)
        )
        return outputs, {name.removesuffix("/carry"): value for name, value in flat.items()}

    @property
    def _table(self) -> rules.Table:
        original = self.config["original"]
        return table_module(original["model_type"], self.config["source"]).table(
            original, sorted(self.config["names"])
        )


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    dtype: Any = None,
    param_dtype: Any = "float32",
    mesh: jax.sharding.Mesh | None = None,
    mesh_rules: Sequence[Any] = meshes.RULES,
    may_lack: Sequence[str] = (),
    may_ignore: Sequence[str] = (),
    revision: str | None = None,
    offline: bool = False,
) -> Pretrained:
    """A published checkpoint as a model of ours.

    Args:
      source: a folder with `config.json` and weights (safetensors or PyTorch's, sharded or not), a
        weight file of the original authors, a folder that `Pretrained.save` or `mmflax convert`
        wrote, or an id of the Hugging Face hub, which
        is downloaded into its cache.
      dtype: of computation; None computes in the parameters' type.
      param_dtype: of the parameters; None keeps the file's.
      mesh: where to put the parameters; each device is given its part only.
      mesh_rules: how they are laid out on it.
      may_lack: regexes of our paths that the file need not have (they start at random).
      may_ignore: regexes of its tensors that may be left out.
      revision: branch, tag or commit of a hub id.
      offline: take a hub id from the cache only.

    Raises:
      MmflaxError: what is missing or does not fit, in one sentence.
    """
    found = inspect(source, revision=revision, offline=offline)
    model = _with_dtypes(found.model, dtype, param_dtype or _common_dtype(found.tensors))
    shapes = shapes_of(model)
    lazy = found.parameters(shapes, may_lack=may_lack, may_ignore=may_ignore)
    return Pretrained(
        model,
        _load(model, shapes, lazy, mesh, mesh_rules),
        found.processor(),
        {
            "fields": found.fields,
            "original": found.original,
            "source": str(found.root),
            "names": found.names or {n: str(kind) for n, kind in found.tensors.dtypes.items()},
        },
    )


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A parameter that is read when it is asked for; `value[index]` reads too."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __getitem__(self, index: Any) -> Any:
        return self.read()[index]


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint looked at and not read yet.

    Attributes:
      root: its folder or file.
      original: its config.
      fields: `name` and keywords of the family's module.
      tensors: its tensors, unread.
      table: their names and ours.
      names: their tensors' names and types, where `tensors` are under ours.
    """

    root: pathlib.Path
    original: Mapping[str, Any]
    fields: Mapping[str, Any]
    tensors: Tensors
    table: rules.Table
    names: Mapping[str, str] | None = None

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
    ) -> dict[str, Lazy]:
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
        found = {}
        for one in bound:
            for place, path in enumerate(one.paths):
                wanted = [shapes[p].shape for p in one.paths]
                found[path] = Lazy(
                    shapes[path].shape,
                    functools.partial(_read, self.tensors, one, wanted, place),
                )
        return found

    def processor(self) -> Any:
        """What makes a batch as the original did; None where its files are not there."""
        folder = self.root if self.root.is_dir() else self.root.parent
        return PublishedProcessor.load(folder) if PublishedProcessor.exists(folder) else None


def _read(tensors: Tensors, one: rules.Bound, shapes: Sequence[Any], place: int) -> np.ndarray:
    return one.op.read(tensors[one.theirs], shapes)[place]


def inspect(
    source: str | os.PathLike[str], *, revision: str | None = None, offline: bool = False
) -> Found:
    """What a checkpoint is, from its config and its tensors' names."""
    root = hub.locate(str(source), revision=revision, offline=offline)
    if (root / OWN_CONFIG).exists():
        return _inspect_own(root)
    tensors = open_tensors(root)
    if (root / CONFIG if root.is_dir() else root.with_name(CONFIG)).exists():
        original = read_config(root if root.is_dir() else root.parent)
    else:
        original = _recognise(root, tensors)
    module = table_module(original.get("model_type"), str(root))
    names = sorted(tensors)
    return Found(
        root, original, dict(module.fields(original, names)), tensors, module.table(original, names)
    )


def _inspect_own(root: pathlib.Path) -> Found:
    """What `Pretrained.save(to="mmflax")` wrote: every name is its own path."""
    try:
        known = json.loads((root / OWN_CONFIG).read_text())
        if known["format"] != OWN_FORMAT:
            raise MmflaxError(f"format {known['format']} is not {OWN_FORMAT}")
        fields, original, names = _frozen(known["fields"]), known["original"], known["names"]
    except (MmflaxError, ValueError, KeyError, TypeError) as error:
        raise MmflaxError(f"{root / OWN_CONFIG} cannot be used: {error}.") from error
    tensors = open_tensors(root / OWN_WEIGHTS)
    table = rules.Table(tuple(rules.Rule(name, name) for name in tensors))
    return Found(root, original, fields, tensors, table, names)


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


def _recognise(root: pathlib.Path, tensors: Tensors) -> dict[str, Any]:
    """The config of a file that came without one, from its tensors' names and shapes."""
    for name in registry.names(FAMILIES, "recognise"):
        found = importlib.import_module(f"{FAMILIES}.{name}").recognise(tensors.shapes)
        if found is not None:
            return dict(found)
    raise MmflaxError(
        f"There is no {CONFIG} beside {root}, and its tensors are not those of an original "
        "checkpoint that is known without one; put the model's config.json beside it."
    )


def read_config(root: pathlib.Path) -> dict[str, Any]:
    """A checkpoint's config.json."""
    path = root / CONFIG
    if not path.exists():
        raise MmflaxError(
            f"There is no {path}; expected a directory with {CONFIG} and {SAFE}, as transformers "
            "saves it."
        )
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise MmflaxError(f"{path} is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise MmflaxError(f"{path} holds {type(found).__name__}, not an object.")
    return found


def shapes_of(model: Any) -> dict[str, Any]:
    """path -> shape and type of a family's parameters."""
    tree = jax.eval_shape(lambda key: model.init(key, model.zeros())["params"], jax.random.key(0))
    return paths.leaves(tree)


def _load(
    model: Any,
    shapes: Mapping[str, Any],
    lazy: Mapping[str, Lazy],
    mesh: jax.sharding.Mesh | None,
    mesh_rules: Sequence[Any],
) -> Any:
    """The parameters, one at a time, each straight to its devices; what is lacking at random."""
    places: dict[str, Any] = {}
    if mesh is not None:
        # A published model need not have every part that a rule is for.
        optional = [(*rule[:2], True) for rule in mesh_rules]
        tree = paths.nested(dict(shapes))
        places = paths.leaves(meshes.param_specs(tree, optional, mesh))
    found = {
        path: _place(value.read(), shapes[path].dtype, places.get(path))
        for path, value in lazy.items()
    }
    lacking = [path for path in shapes if path not in found]
    if lacking:
        start = paths.leaves(model.init(jax.random.key(0), model.zeros())["params"])
        for path in lacking:
            value = np.asarray(start[path])
            found[path] = _place(value, shapes[path].dtype, places.get(path))
    return paths.nested(found)


def _place(array: np.ndarray, dtype: Any, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.asarray(_contiguous(array, dtype))
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: _contiguous(array[index], dtype)
    )


def _contiguous(array: np.ndarray, dtype: Any) -> np.ndarray:
    # numpy makes a number into a vector here.
    return np.ascontiguousarray(array.astype(dtype, copy=False)).reshape(array.shape)


def table_module(model_type: Any, source: str) -> Any:
    """The family whose table is for this `model_type`."""
    known = known_types()
    name = str(model_type).replace("-", "_")
    if name not in known:
        raise MmflaxError(
            f"{source} has model_type {model_type!r}{registry.nearest(name, known)}; known: "
            f"{', '.join(known)}."
        )
    return importlib.import_module(f"{FAMILIES}.{known[name]}")


def known_types() -> dict[str, str]:
    """The `model_type`s that have a table, and the family that has it."""
    families = registry.names(FAMILIES, "table")
    return {
        kind: family
        for family in families
        for kind in importlib.import_module(f"{FAMILIES}.{family}").MODEL_TYPES
    }


def _with_dtypes(model: Any, dtype: Any, param_dtype: Any) -> Any:
    wanted = {
        "dtype": None if dtype is None else jnp.dtype(dtype),
        "param_dtype": jnp.dtype(param_dtype),
    }
    return replaced(model, wanted)


def replaced(module: Any, wanted: Mapping[str, Any]) -> Any:
    """The same module, and every module in its fields, with these fields where it has them."""
    import flax.linen as nn

    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name in wanted:
            changes[field.name] = wanted[field.name]
        elif isinstance(value, nn.Module) and field.name != "parent":
            changes[field.name] = replaced(value, wanted)
    return module.clone(**changes) if changes else module


def _common_dtype(tensors: Tensors) -> Any:
    """The type that most of the checkpoint's numbers have."""
    count: dict[Any, int] = {}
    shapes = tensors.shapes
    for name, dtype in tensors.dtypes.items():
        if jnp.issubdtype(dtype, jnp.floating):
            count[dtype] = count.get(dtype, 0) + int(np.prod(shapes[name], dtype=np.int64))
    return max(count, key=lambda dtype: count[dtype]) if count else jnp.dtype("float32")


def _refuse_run(config: Mapping[str, Any]) -> None:
    """Raises for a run, whose parameters have no names of a public checkpoint."""
    if "run" in config:
        raise MmflaxError(
            f"{config['source']} is a run's folder, which holds its weights already; `mmflax "
            f"convert {config['source']} DST` writes the format of the checkpoint that it started "
            "from."
        )
