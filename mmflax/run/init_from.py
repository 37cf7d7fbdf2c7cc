"""Starting a run from weights that exist: of a public checkpoint, or of another run.

``config.init`` says from where: ``from`` for the whole model, ``image_encoder.from``,
``text_encoder.from`` and ``fusion.from`` for a part (a part's goes before the whole's), ``skip``
for what starts at random all the same. Every parameter of the run is accounted for: loaded,
resized, new because ``skip`` names it, or an error that names it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmflax import paths, registry
from mmflax.checkpoints import checksums
from mmflax.checkpoints.store import Store
from mmflax.errors import MmflaxError
from mmflax.models.encoders.positions import resize_positions
from mmflax.pretrained import checkpoint
from mmflax.pretrained.checkpoint import Lazy
from mmflax.run.workdir import is_run

PARTS = ("image_encoder", "text_encoder", "fusion")
KEYS = ("from", "skip", *PARTS)
SKIP = (r"(^|/)(head|grounding)/",)
_BACKBONE = "backbone/"
# The same number under two names: a retrieval run's, a published pair of encoders'.
_NAMES = {"temperature/scale": "logit_scale", "temperature/bias": "logit_bias"}
_NAMES |= {theirs: ours for ours, theirs in _NAMES.items()}


@dataclasses.dataclass(frozen=True)
class Start:
    """What each parameter of a run starts from.

    Attributes:
      values: path -> a parameter that is read when it is placed.
      how: path -> "loaded", "resized", "rows added" or "new".
      unused: of the checkpoints' parameters, those that the run has no place for.
      sources: part (or "model") -> where it came from.
    """

    values: Mapping[str, Lazy]
    how: Mapping[str, str]
    unused: tuple[str, ...]
    sources: Mapping[str, str]

    def params(self, init: Callable[[jax.Array], Any], key: jax.Array) -> Any:
        """The whole tree: what is new is drawn as a run without a start draws it."""
        new = [path for path, how in self.how.items() if how == "new"]
        found: dict[str, Any] = dict(self.values)
        if new:
            init_key, _ = jax.random.split(key)

            def draw(key: jax.Array) -> dict[str, Any]:
                flat = paths.leaves(init(key))
                return {path: flat[path] for path in new}

            found |= {path: np.asarray(leaf) for path, leaf in jax.jit(draw)(init_key).items()}
        return paths.nested(found)

    def table(self) -> str:
        """Parts of the model, and how many of their parameters started how."""
        rows: dict[str, dict[str, int]] = {}
        for path, how in self.how.items():
            name = path.removeprefix(_BACKBONE).split("/")[0]
            row = rows.setdefault(name, {})
            row[how] = row.get(how, 0) + 1
        lines = ["started from"]
        lines += [f"  {part}: {source}" for part, source in self.sources.items()]
        for name, row in rows.items():
            counts = ", ".join(f"{count} {how}" for how, count in sorted(row.items()))
            lines.append(f"  {name:24} {counts}")
        changed = [f"{p} ({how})" for p, how in self.how.items() if how not in ("loaded", "new")]
        if changed:
            lines.append(f"  changed: {_some(changed)}")
        if self.unused:
            lines.append(f"  left in the checkpoint: {_some(self.unused)}")
        return "\n".join(lines)


def start(
    fields: Mapping[str, Any], shapes: Mapping[str, Any], *, grid: tuple[int, int] | None = None
) -> Start | None:
    """What `config.init` asks for; None where it asks for nothing. Weights are read later.

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
    skip = tuple(fields.get("skip", SKIP))
    opened = {source: parameters(source) for source in dict.fromkeys(wanted.values())}
    values: dict[str, Lazy] = {}
    how: dict[str, str] = {}
    problems: list[str] = []
    used: dict[str, set[str]] = {source: set() for source in opened}
    for path, leaf in shapes.items():
        name = path.removeprefix(_BACKBONE)
        source = wanted.get(name.split("/")[0], wanted.get("model"))
        if source is None or any(re.search(pattern, path) for pattern in skip):
            how[path] = "new"
            continue
        given, names = find(opened[source], name)
        if given is None:
            problems.append(f"{path} is not in {source}")
            continue
        used[source] |= names
        fitted = _fit(name, given, tuple(leaf.shape), grid)
        if fitted is None:
            problems.append(f"{path} is {list(given.shape)} in {source}, not {list(leaf.shape)}")
            continue
        values[path], how[path] = fitted
    if problems:
        hint = ""
        if any("word_embedding" in problem for problem in problems):
            hint = " The word table is another vocabulary's: set processor.from to the checkpoint."
        raise MmflaxError(
            f"The weights do not fit the model: {_some(problems)}.{hint} Change the model's "
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


def sources(fields: Mapping[str, Any]) -> dict[str, str]:
    """part, or "model" -> the source that the config names for it."""
    registry.check_fields("init", dict.fromkeys(fields), dict.fromkeys(KEYS))
    found = {}
    for part in PARTS:
        inner = fields.get(part) or {}
        registry.check_fields(f"init.{part}", dict.fromkeys(inner), {"from": None})
        if inner.get("from"):
            found[part] = str(inner["from"])
    if fields.get("from"):
        found["model"] = str(fields["from"])
    return found


def parameters(source: str) -> dict[str, Lazy]:
    """Every parameter of a workdir or a public checkpoint, by its path without `backbone/`."""
    root = pathlib.Path(source).expanduser()
    if is_run(root):
        return _of_workdir(root)
    found = checkpoint.inspect(source)
    lazy = found.parameters(checkpoint.shapes_of(found.model))
    return {path.removeprefix(_BACKBONE): value for path, value in lazy.items()}


def _of_workdir(root: pathlib.Path) -> dict[str, Lazy]:
    config = json.loads((root / "config.json").read_text())
    store = Store(str(root / "checkpoints"), **config.get("checkpoint", {}))
    step = store.best_or_newest()
    saved = checksums.read(store.path(step))["arrays"]
    prefix = "ema/" if any(name.startswith("ema/") for name in saved) else "params/"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(kind), sharding=device)
        for name, (shape, kind) in saved.items()
        if name.startswith(prefix)
    }

    @functools.cache
    def restored() -> dict[str, Any]:
        state, _, _ = store.restore(paths.nested(dict(wanted)), step, partial=True)
        return paths.leaves(state)

    return {
        name.removeprefix(prefix).removeprefix(_BACKBONE): Lazy(
            leaf.shape, functools.partial(lambda name: np.asarray(restored()[name]), name)
        )
        for name, leaf in wanted.items()
    }


def find(flat: Mapping[str, Lazy], name: str) -> tuple[Lazy | None, set[str]]:
    """A parameter by name, whichever of loop and scan either side keeps its layers in."""
    for one in (name, _NAMES.get(name, name)):
        if one in flat:
            return flat[one], {one}
    parts = name.split("/")
    if "layers" in parts:
        at = parts.index("layers")
        names: list[str] = []
        while True:
            one = "/".join([*parts[:at], f"layers_{len(names)}", *parts[at + 1 :]])
            if one not in flat:
                break
            names.append(one)
        if names:
            layers = [flat[one] for one in names]
            return (
                Lazy((len(layers), *layers[0].shape), lambda: np.stack([x.read() for x in layers])),
                set(names),
            )
    for at, part in enumerate(parts):
        match = re.fullmatch(r"layers_(\d+)", part)
        scanned = "/".join([*parts[:at], "layers", *parts[at + 1 :]])
        if match and scanned in flat and int(match[1]) < flat[scanned].shape[0]:
            return _layer(flat[scanned], int(match[1])), {scanned}
    return None, set()


def _layer(stacked: Lazy, index: int) -> Lazy:
    return Lazy(stacked.shape[1:], lambda: stacked.read()[index])


def _fit(
    name: str, given: Lazy, shape: tuple[int, ...], grid: tuple[int, int] | None
) -> tuple[Lazy, str] | None:
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
        return (
            Lazy(
                shape,
                lambda: np.asarray(resize_positions(given.read(), (side, side), grid, prefix)),
            ),
            f"resized from {side}x{side} to {grid[0]}x{grid[1]}",
        )
    if name.endswith("position_embedding/embedding") and new < old:
        return Lazy(shape, lambda: given.read()[:new]), f"cut from {old} to {new} positions"
    if re.search(r"type_embedding/embedding$", name) and new > old:

        def widened() -> np.ndarray:
            table = given.read()
            return np.concatenate([table, np.repeat(table[-1:], new - old, axis=0)])

        return Lazy(shape, widened), f"{new - old} rows added, copies of the last"
    return None


def _some(items: Iterable[str], most: int = 8) -> str:
    listed: Sequence[str] = list(items)
    shown = "; ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown}; and {len(listed) - most} more"
