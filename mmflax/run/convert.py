"""Conversion of checkpoints between formats.

- a public checkpoint -> our format, or back: `Pretrained.save`.
- a run that was started from a public checkpoint (`config.init.from`) -> the original's format:
  what was fine-tuned goes back to where it came from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmflax import paths, registry
from mmflax.errors import MmflaxError
from mmflax.pretrained.checkpoint import Pretrained, from_pretrained
from mmflax.pretrained.families import fields_of, keys_of
from mmflax.pretrained.inspect import FAMILIES, shapes_of
from mmflax.run import init_from, init_sources
from mmflax.run.former import is_run
from mmflax.run.init_fit import lookup


def convert(source: str, target: str, *, to: str = "hf", family: str | None = None) -> list[str]:
    """Writes the checkpoint of `source` as the new folder `target`; returns notes for people.

    Args:
      source: what `from_pretrained` takes, or a workdir that was started from such a checkpoint.
      to: "hf", "flax" or "mmflax"; see `Pretrained.save`.
      family: of a public checkpoint; see `from_pretrained`.

    Raises:
      MmflaxError: nothing to convert, a target that exists, or a run with nothing to go back to.
    """
    if os.path.exists(target):
        raise MmflaxError(f"{target} exists already; name a new folder.")
    if is_run(source):
        pretrained, notes = of_workdir(source)
    else:
        pretrained = from_pretrained(source, param_dtype=None, family=family)
        notes = pretrained.config["notes"]
    pretrained.save(target, to=to)
    return notes


def of_workdir(workdir: str) -> tuple[Pretrained, list[str]]:
    """A fine-tuned run as the public checkpoint it started from, and notes on what was kept."""
    root = pathlib.Path(workdir)
    config = json.loads((root / "config.json").read_text(encoding="utf-8"))
    origin = init_sources.sources(config.get("init") or {}).get("model")
    if origin is None:
        raise MmflaxError(
            f"The run in {root} did not start from a public checkpoint (config.init.from), so "
            "there is no original format to write; `mmflax.load` reads the workdir itself."
        )
    start = from_pretrained(origin.path, family=origin.family)
    trained = init_sources.parameters(workdir)
    pretrained, notes = _as_trained(start, trained, root)
    notes += _check_meaning(origin, workdir)
    flat = paths.leaves(start.params)
    values: dict[str, Any] = {}
    used: set[str] = set()
    for path, leaf in shapes_of(pretrained.model).items():
        given, names = lookup(trained, path)
        used |= names
        if given is not None and given.shape == leaf.shape:
            values[path] = jnp.asarray(given.read())
        elif (given is None or path.startswith(("head/", "word_head/"))) and path in flat:
            values[path] = flat[path]
            why = "none" if given is None else f"one of shape {list(given.shape)}"
            notes.append(f"kept from {origin}, the run has {why}: {path}")
        elif given is not None and _is_table(path) and given.shape[1:] == leaf.shape[1:]:
            rows = min(given.shape[0], leaf.shape[0])
            values[path] = jnp.concatenate([jnp.asarray(given[:rows]), flat[path][rows:]])
            notes.append(
                f"of {path} the first {rows} rows are the run's, which has {given.shape[0]}, and "
                f"{leaf.shape[0] - rows} are {origin}'s"
            )
        else:
            raise MmflaxError(
                f"{path} is {list(given.shape) if given else 'absent'} in the run and "
                f"{list(leaf.shape)} in {origin}; its format has no place for the change."
            )
    notes += [
        f"left in the run, {origin} has no place for it: {p}" for p in trained if p not in used
    ]
    return dataclasses.replace(pretrained, params=paths.nested(values)), notes


def _check_meaning(origin: init_sources.Source, workdir: str) -> list[str]:
    """Notes on how the run makes its batches otherwise than the checkpoint it started from.

    Raises:
      MmflaxError: a part computes something else, which the checkpoint's config cannot say.
    """
    theirs, ours = (
        init_sources.opened(source) for source in (origin, init_sources.Source(workdir))
    )
    assert theirs.model is not None and ours.model is not None
    both = [name for name in ours.parameters if lookup(theirs.parameters, name)[1]]
    notes: list[str] = []
    wrong = init_from.part_differences(both, theirs.model, ours.model, origin, notes)
    if wrong:
        raise MmflaxError(
            f"The run computes otherwise than its origin: {'; '.join(map(str, wrong))}; the config "
            f"of {origin} would be written beside weights that mean something else."
        )
    names = [name for name in both if not name.startswith("head/")]
    changed = init_from.input_differences(names, theirs.model, ours.model, origin, [])
    return [f"{one}; the copied files still say the former" for one in changed]


def _is_table(path: str) -> bool:
    """Whether it is a table whose first rows mean the same in a run that has fewer or more."""
    return path.endswith(("position_embedding/embedding", "type_embedding/embedding"))


def _as_trained(
    start: Pretrained, trained: Mapping[str, Any], root: pathlib.Path
) -> tuple[Pretrained, list[str]]:
    """The same family with the run's answers and image size, where those changed its parameters."""
    shapes = shapes_of(start.model)
    given = {path: lookup(trained, path)[0] for path in shapes}
    changed = [p for p, x in given.items() if x is not None and x.shape != shapes[p].shape]
    original, notes = dict(start.config["original"]), []
    path = root / "processor.json"
    processor = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    answers = processor.get("answers")
    if answers and any(path.startswith("head/") for path in changed):
        original["id2label"] = {str(i): answer for i, answer in enumerate(answers)}
        original["label2id"] = {answer: i for i, answer in enumerate(answers)}
    size = processor.get("image_size")
    if size and "image_encoder/position_embedding" in changed:
        keys = keys_of(start.config["family"], original)
        if "vision_config" in original or (keys is not None and "vision_config" in keys.parts):
            older = original.get("vision_config_dict") is not None
            part = "vision_config_dict" if older else "vision_config"
            original[part] = {**(original.get(part) or {}), "image_size": size}
        else:
            original["image_size"] = size
        notes.append(
            f"the run's images are {size} pixels a side, and config.json says so; what prepares "
            f"images is still as in {start.config['source']}: change its size to be the same"
        )
    if original == start.config["original"]:
        return start, notes
    family = start.config["family"]
    names = sorted(start.config["names"])
    fields = fields_of(family, original, names)
    model = registry.build(FAMILIES, "model", fields)
    config = {**start.config, "original": original, "fields": fields}
    return dataclasses.replace(start, model=model, config=config), notes
