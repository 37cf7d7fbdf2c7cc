"""Published checkpoints: a directory, a file or a hub id to a model that runs, and back.

>>> import mmflax
>>> bert = mmflax.from_pretrained("path/to/bert-base-uncased")
>>> batch = bert.processor.texts(["a photo of a cat"])
>>> bert.model.apply({"params": bert.params}, batch)["last_hidden_state"].shape
(1, 512, 768)
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from mmflax import paths
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.distributed import mesh as meshes
from mmflax.errors import MmflaxError
from mmflax.pretrained import flax_file, own_format, rules
from mmflax.pretrained.families import table_of
from mmflax.pretrained.inspect import CONFIG, inspect, shapes_of
from mmflax.pretrained.placement import contiguous, load_parameters
from mmflax.pretrained.rules import some_of
from mmflax.pretrained.tensors import FLAX, SAFE, Tensors

_WORD_TABLE = "word_embedding/embedding"
# What `Pretrained.save` writes.
FORMATS = ("hf", "flax", "mmflax")
# Files beside the weights that are copied with them; the processor copies its own.
_COMPANIONS = ("generation_config.json",)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model, ready to run.

    Attributes:
      model: `model.apply({"params": params}, batch) -> dict`, pure.
      params: its parameters.
      processor: raw images and texts to the arrays of a batch, as the original did; None where the
        checkpoint came without what that needs.
      config: the `family`, its module's `name` and keywords (`fields`), the checkpoint's own config
        (`original`), its tensors' `names` and types, where it came from (`source`), and `notes` for
        people; of a
        workdir the run's config, and its step (`run`).
    """

    model: Any
    params: Any
    processor: Any
    config: Mapping[str, Any]

    def tensors(self, params: Any = None) -> dict[str, np.ndarray]:
        """The parameters under the original's names, in its layout."""
        return {rule.theirs: value for rule, value in self._tensors(params)}

    def _tensors(self, params: Any = None) -> list[tuple[rules.Rule, np.ndarray]]:
        _refuse_run(self.config)
        names = self.config["names"]
        table = table_of(self.config["family"], self.config["original"], sorted(names))
        # In the types that the file has: half precision goes back as half precision.
        return [
            (rule, value.astype(jnp.dtype(names.get(rule.theirs, value.dtype)), copy=False))
            for rule, value in rules.written(table, self._arrays(params))
        ]

    def _arrays(self, params: Any) -> dict[str, np.ndarray]:
        flat = paths.leaves(self.params if params is None else params)
        return {path: contiguous(np.asarray(leaf), leaf.dtype) for path, leaf in flat.items()}

    def save(
        self, directory: str | os.PathLike[str], params: Any = None, *, to: str = "hf"
    ) -> None:
        """Writes the checkpoint; the directory appears whole or not at all.

        Args:
          directory: a new folder.
          params: parameters to write in place of this object's, such as fine-tuned ones.
          to: "hf", the original's format (config.json, model.safetensors and what lay beside
            them), "flax", the same with flax_model.msgpack of transformers' Flax classes, or
            "mmflax", our names and layout, which loads without a table.

        Raises:
          MmflaxError: the directory exists already, or the family has no Flax layout.
        """
        _refuse_run(self.config)
        if to not in FORMATS:
            raise MmflaxError(f"to is {to!r}; expected one of {', '.join(FORMATS)}.")
        if to == "flax":
            flax_file.check_written(self.config)
        target = pathlib.Path(directory)
        if target.exists():
            raise MmflaxError(f"{target} exists already; name a new folder.")
        flax = flax_file.flax_bytes(self._tensors(params)) if to == "flax" else b""
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if to == "mmflax":
            own_format.write(partial, self.config, self._arrays(params))
        else:
            if to == "flax":
                (partial / FLAX).write_bytes(flax)
            else:
                save_file(self.tensors(params), partial / SAFE, metadata={"format": "pt"})
            text = json.dumps(self.config["original"], indent=2, ensure_ascii=False)
            (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
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
        outputs, sown = jax.jit(run)(self.params, arrays)
        flat = paths.leaves(
            sown.get("hidden_states", {}), is_leaf=lambda node: isinstance(node, tuple)
        )
        return outputs, {name.removesuffix("/carry"): value for name, value in flat.items()}


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    family: str | None = None,
    dtype: Any = None,
    param_dtype: Any = "float32",
    mesh: jax.sharding.Mesh | None = None,
    mesh_rules: Sequence[Any] = meshes.RULES,
    may_lack: Sequence[str] = (),
    may_ignore: Sequence[str] = (),
    may_ignore_keys: Sequence[str] = (),
    revision: str | None = None,
    offline: bool = False,
) -> Pretrained:
    """A published checkpoint as a model of ours.

    Args:
      source: a folder with `config.json` (or `open_clip_config.json`) and weights (safetensors,
        PyTorch's or Flax's, sharded or not), a weight file of the original authors, a folder that
        `Pretrained.save` or `mmflax convert` wrote, or an id of the Hugging Face hub, which is
        downloaded into its cache.
      family: the family that reads it, by name or the dotted path of a package of yours (see
        `mmflax.pretrained.families`); None goes by the config's `model_type`.
      dtype: of computation; None computes in the parameters' type.
      param_dtype: of the parameters; None keeps the file's.
      mesh: where to put the parameters; each device is given its part only.
      mesh_rules: how they are laid out on it.
      may_lack: regexes of our paths that the file need not have (they start at random).
      may_ignore: regexes of its tensors that may be left out.
      may_ignore_keys: keys of its config.json (`text_config.x` for x inside a part) that are read
        as though the file did not have them.
      revision: branch, tag or commit of a hub id.
      offline: take a hub id from the cache only.

    Raises:
      MmflaxError: what is missing or does not fit, in one sentence.
    """
    checkpoint = inspect(
        source,
        family=family,
        revision=revision,
        offline=offline,
        may_ignore_keys=may_ignore_keys,
    )
    model = _with_dtypes(checkpoint.model, dtype, param_dtype or _main_dtype(checkpoint.tensors))
    shapes = shapes_of(model)
    lazy = checkpoint.parameters(shapes, may_lack=may_lack, may_ignore=may_ignore)
    params = load_parameters(model, shapes, lazy, mesh, mesh_rules)
    config = {
        "family": checkpoint.family,
        "fields": checkpoint.fields,
        "original": checkpoint.original,
        "names": checkpoint.names,
        "source": str(checkpoint.root),
        "notes": list(checkpoint.tensors.notes),
    }
    processor = checkpoint.processor()
    if processor is not None and processor.tokenizer is not None:
        _check_vocabulary(processor.tokenizer, shapes, checkpoint.root)
    return Pretrained(model, params, processor, config)


def _check_vocabulary(tokenizer: Tokenizer, shapes: Mapping[str, Any], root: pathlib.Path) -> None:
    """Raises where the tokenizer has tokens beyond the embedding table, which would give NaN."""
    tables = [x.shape[0] for path, x in shapes.items() if path.endswith(_WORD_TABLE)]
    beyond = tokenizer.beyond(min(tables)) if tables else {}
    if beyond:
        words = some_of([f"{token!r} (id {index})" for token, index in beyond.items()], 3)
        raise MmflaxError(
            f"{root}: the tokenizer has tokens that the model's embedding table of {min(tables)} "
            f"rows lacks: {words}. Words were added and the model was not resized: call "
            "model.resize_token_embeddings(len(tokenizer)) in transformers and save both, or take "
            "the words out of the tokenizer's files."
        )


def _with_dtypes(model: Any, dtype: Any, param_dtype: Any) -> Any:
    wanted = {
        "dtype": None if dtype is None else jnp.dtype(dtype),
        "param_dtype": jnp.dtype(param_dtype),
    }
    return replaced(model, wanted)


def replaced(value: Any, wanted: Mapping[str, Any]) -> Any:
    """The same module or config, and all in its fields, with these fields where it has them."""
    import flax.linen as nn

    changes: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner = value.__dict__.get(field.name)
        if field.name in wanted:
            changes[field.name] = wanted[field.name]
        elif field.name != "parent" and dataclasses.is_dataclass(inner):
            changes[field.name] = replaced(inner, wanted)
    if isinstance(value, nn.Module):
        return value.clone(**changes) if changes else value
    return dataclasses.replace(value, **changes)


def _main_dtype(tensors: Tensors) -> Any:
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
