"""Initializing a run from a published checkpoint or another run.

``config.init`` names the sources: ``from`` for the whole model, ``image_encoder.from``,
``text_encoder.from`` and ``fusion.from`` for a part (a part's goes before the whole's), ``skip``
for what starts at random all the same; ``family`` beside a ``from`` is that of `from_pretrained`.
Every parameter of the run is accounted for: loaded, resized, new because ``skip`` names it, or an
error that names it. The heads of pretraining objectives are new where the checkpoint lacks them;
an MLM head also starts from that of the checkpoint that the text encoder starts from.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mmflax import paths, registry
from mmflax.checkpoints import checksums
from mmflax.checkpoints.store import Store
from mmflax.config.sections import PARTS, regexes
from mmflax.errors import MmflaxError
from mmflax.models.encoders.positions import resize_positions
from mmflax.pretrained.inspect import LazyArray, inspect, shapes_of
from mmflax.pretrained.rules import some_of
from mmflax.run.workdir import is_run

KEYS = ("from", "family", "skip", *PARTS)
SKIP = (r"(^|/)(head|grounding)/",)
_BACKBONE = "backbone/"
# The same number under two names: a retrieval run's, a published pair of encoders'.
_NAMES = {"temperature/scale": "logit_scale", "temperature/bias": "logit_bias"}
_NAMES |= {theirs: ours for ours, theirs in _NAMES.items()}
# The MLM head of an objective and of a published model.
_OBJECTIVE_HEAD = re.compile(r"objectives_\w+/words/")
_PUBLISHED_HEAD = "word_head/"
_OBJECTIVES_WITH_WORDS = ("mlm", "prefix_lm")


class Source(NamedTuple):
    """A workdir, or a published checkpoint and the family that reads it (None: by its config)."""

    path: str
    family: str | None = None

    def __str__(self) -> str:
        return self.path


@dataclasses.dataclass(frozen=True)
class Start:
    """What each parameter of a run starts from.

    Attributes:
      values: path -> a parameter that is read when it is placed.
      how: path -> "loaded", "resized", "rows added" or "new".
      unused: of the checkpoints' parameters, those that the run has no place for.
      sources: part (or "model") -> where it came from.
    """

    values: Mapping[str, LazyArray]
    how: Mapping[str, str]
    unused: tuple[str, ...]
    sources: Mapping[str, Source]

    def params(self, init: Callable[[jax.Array], Any], key: jax.Array) -> Any:
        """The whole tree: what is new is drawn as a run without a start draws it."""
        new = [path for path, how in self.how.items() if how == "new"]
        values: dict[str, Any] = dict(self.values)
        if new:
            init_key, _ = jax.random.split(key)

            def draw(key: jax.Array) -> dict[str, Any]:
                flat = paths.leaves(init(key))
                return {path: flat[path] for path in new}

            values |= {path: np.asarray(leaf) for path, leaf in jax.jit(draw)(init_key).items()}
        return paths.nested(values)

    def table(self) -> str:
        """Parts of the model, and how many of their parameters started how."""
        rows: dict[str, collections.Counter[str]] = {}
        for path, how in self.how.items():
            name = path.removeprefix(_BACKBONE).split("/")[0]
            rows.setdefault(name, collections.Counter())[how] += 1
        lines = ["started from"]
        lines += [f"  {part}: {source}" for part, source in self.sources.items()]
        for name, row in rows.items():
            counts = ", ".join(f"{count} {how}" for how, count in sorted(row.items()))
            lines.append(f"  {name:24} {counts}")
        changed = [f"{p} ({how})" for p, how in self.how.items() if how not in ("loaded", "new")]
        if changed:
            lines.append(f"  changed: {some_of(changed, 8)}")
        if self.unused:
            lines.append(f"  left in the checkpoint: {some_of(self.unused, 8)}")
        return "\n".join(lines)


def start(
    fields: Mapping[str, Any], shapes: Mapping[str, Any], *, grid: tuple[int, int] | None = None
) -> Start | None:
    """The start that `config.init` configures, or None; weights are read later.

    Args:
      fields: the config's section `init`.
      shapes: path -> shape of every parameter of the run.
      grid: patches down and across of the run's image encoder, for its position table.

    Raises:
      MmflaxError: an unknown key, a source that cannot be read, or parameters that are missing or
        of another shape (all are listed).
    """
    wanted = sources(fields)
    if not wanted:
        return None
    skip = skipped(fields)
    opened = {source: parameters(*source) for source in dict.fromkeys(wanted.values())}
    values: dict[str, LazyArray] = {}
    how: dict[str, str] = {}
    problems: list[str] = []
    used: dict[Source, set[str]] = {source: set() for source in opened}
    for path, leaf in shapes.items():
        name = path.removeprefix(_BACKBONE)
        source = wanted.get(name.split("/")[0], wanted.get("model"))
        borrowed = source is None and _OBJECTIVE_HEAD.match(name) is not None
        if borrowed:
            source = wanted.get("text_encoder")
        if source is None or any(re.search(pattern, path) for pattern in skip):
            how[path] = "new"
            continue
        given, names = lookup(opened[source], name)
        fitted = None if given is None else _fitted(name, given, tuple(leaf.shape), grid)
        if fitted is not None:
            used[source] |= names
            values[path], how[path] = fitted
        elif borrowed or (given is None and name.startswith("objectives_")):
            how[path] = "new"
        elif given is None:
            problems.append(f"{path} is not in {source}")
        else:
            problems.append(f"{path} is {list(given.shape)} in {source}, not {list(leaf.shape)}")
    if problems:
        hint = ""
        if any("word_embedding" in problem for problem in problems):
            hint = " The word table is another vocabulary's: set processor.from to the checkpoint."
        raise MmflaxError(
            f"The weights do not fit the model: {some_of(problems, 8)}.{hint} Change the model's "
            "fields, or let parameters start at random by naming them in init.skip."
        )
    parts = {part for part in PARTS if part in wanted}
    unused = [
        name
        for source, flat in opened.items()
        for name in flat
        if name not in used[source]
        and (wanted.get("model") == source or name.split("/")[0] in parts)
    ]
    return Start(values, how, tuple(unused), wanted)


def skipped(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The regular expressions of ``init.skip``; None, the default, is `SKIP`."""
    given = fields.get("skip")
    return SKIP if given is None else regexes("init.skip", given)


def sources(fields: Mapping[str, Any]) -> dict[str, Source]:
    """part, or "model" -> the source that the config names for it."""
    registry.check_fields("init", dict.fromkeys(fields), dict.fromkeys(KEYS))
    named = {}
    for part in (*PARTS, "model"):
        inner = fields if part == "model" else fields.get(part) or {}
        if part != "model":
            known = {"from": None, "family": None}
            registry.check_fields(f"init.{part}", dict.fromkeys(inner), known)
        if inner.get("from"):
            named[part] = Source(str(inner["from"]), inner.get("family") or None)
    return named


def parameters(source: str, family: str | None = None) -> dict[str, LazyArray]:
    """Every parameter of a workdir or a published checkpoint, by its path without `backbone/`."""
    root = pathlib.Path(source).expanduser()
    if is_run(root):
        return _of_workdir(root)
    checkpoint = inspect(source, family=family)
    lazy = checkpoint.parameters(shapes_of(checkpoint.model))
    return {path.removeprefix(_BACKBONE): value for path, value in lazy.items()}


def _of_workdir(root: pathlib.Path) -> dict[str, LazyArray]:
    config = json.loads((root / "config.json").read_text())
    store = Store(str(root / "checkpoints"), **config.get("checkpoint", {}))
    step = store.best_or_newest()
    saved = checksums.read(store.path(step))["arrays"]
    prefix = "ema/" if any(name.startswith("ema/") for name in saved) else "params/"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype), sharding=device)
        for name, (shape, dtype) in saved.items()
        if name.startswith(prefix)
    }

    @functools.cache
    def restored() -> dict[str, Any]:
        state, _, _ = store.restore(paths.nested(dict(wanted)), step, partial=True)
        return paths.leaves(state)

    return {
        name.removeprefix(prefix).removeprefix(_BACKBONE): LazyArray(
            leaf.shape, functools.partial(lambda name: np.asarray(restored()[name]), name)
        )
        for name, leaf in wanted.items()
    }


def lookup(flat: Mapping[str, LazyArray], name: str) -> tuple[LazyArray | None, set[str]]:
    """A parameter, and the names it came from: loops and scans are read as each other."""
    for alias in _aliases(name):
        if alias in flat:
            return flat[alias], {alias}
    before, middle, after = name.partition("/layers/")
    if middle:
        numbered = (f"{before}/layers_{i}/{after}" for i in itertools.count())
        if names := list(itertools.takewhile(flat.__contains__, numbered)):
            layers = [flat[one] for one in names]
            shape = (len(layers), *layers[0].shape)
            return LazyArray(shape, lambda: np.stack([x.read() for x in layers])), set(names)
    if match := re.search(r"/layers_(\d+)/", name):
        scanned, index = f"{name[: match.start()]}/layers/{name[match.end() :]}", int(match[1])
        if scanned in flat and index < flat[scanned].shape[0]:
            whole = flat[scanned]
            return LazyArray(whole.shape[1:], lambda: whole[index]), {scanned}
    return None, set()


def _aliases(name: str) -> list[str]:
    """The name, and others that the same parameter may have."""
    aliases = [name]
    if name in _NAMES:
        aliases.append(_NAMES[name])
    if head := _OBJECTIVE_HEAD.match(name):
        aliases.append(_PUBLISHED_HEAD + name[head.end() :])
    if name.startswith(_PUBLISHED_HEAD):
        rest = name.removeprefix(_PUBLISHED_HEAD)
        aliases += [f"objectives_{key}/words/{rest}" for key in _OBJECTIVES_WITH_WORDS]
    return aliases


def _fitted(
    name: str, given: LazyArray, shape: tuple[int, ...], grid: tuple[int, int] | None
) -> tuple[LazyArray, str] | None:
    """The parameter in the run's shape and how it got there; None if nothing sensible does it."""
    if given.shape == shape:
        return given, "loaded"
    if given.shape[1:] != shape[1:] or len(shape) != 2:
        return None
    old, new = given.shape[0], shape[0]
    if name.startswith("image_encoder/") and name.endswith("position_embedding") and grid:
        prefix = new - grid[0] * grid[1]
        side = math.isqrt(max(old - prefix, 0))
        if prefix < 0 or side * side != old - prefix:
            return None

        def resized() -> np.ndarray:
            return np.asarray(resize_positions(given.read(), (side, side), grid, prefix))

        return LazyArray(shape, resized), f"resized from {side}x{side} to {grid[0]}x{grid[1]}"
    if name.endswith("position_embedding/embedding") and new < old:
        return LazyArray(shape, lambda: given[:new]), f"cut from {old} to {new} positions"
    if re.search(r"type_embedding/embedding$", name) and new > old:

        def widened() -> np.ndarray:
            table = given.read()
            return np.concatenate([table, np.repeat(table[-1:], new - old, axis=0)])

        return LazyArray(shape, widened), f"{new - old} rows added, copies of the last"
    return None
