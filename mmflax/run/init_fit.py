"""A source's parameter under the run's name and in the run's shape."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

from mmflax.models.contracts import ImageEncoder
from mmflax.pretrained.inspect import LazyArray

BACKBONE = "backbone/"
# The same number under two names: a retrieval run's, a published pair of encoders'.
_NAMES = {"temperature/scale": "logit_scale", "temperature/bias": "logit_bias"}
_NAMES |= {theirs: ours for ours, theirs in _NAMES.items()}
# The MLM head of an objective and of a published model.
OBJECTIVE_HEAD = re.compile(r"objectives_\w+/words/")
_PUBLISHED_HEAD = "word_head/"
# Rows of a published word table that its tokenizer has no word for: padding, or BLIP's [DEC].
_MORE_WORDS = 64
_OBJECTIVES_WITH_WORDS = ("mlm", "prefix_lm")


def lookup(flat: Mapping[str, LazyArray], name: str) -> tuple[LazyArray | None, set[str]]:
    """A parameter, and the names it came from: loops and scans are read as each other."""
    for alias in aliases(name):
        if alias in flat:
            return flat[alias], {alias}
    before, middle, after = name.partition("/layers/")
    if middle:
        numbered = (f"{before}/layers_{i}/{after}" for i in itertools.count())
        if names := list(itertools.takewhile(flat.__contains__, numbered)):
            layers = [flat[one] for one in names]
            shape = (len(layers), *layers[0].shape)
            parts = tuple(layers) if any(layer.parts for layer in layers) else ()
            stacked = LazyArray(shape, lambda: np.stack([x.read() for x in layers]), parts)
            return stacked, set(names)
    if match := re.search(r"/layers_(\d+)/", name):
        scanned, index = f"{name[: match.start()]}/layers/{name[match.end() :]}", int(match[1])
        if scanned in flat and index < flat[scanned].shape[0]:
            whole = flat[scanned]
            parts = (whole,) if whole.parts else ()
            return LazyArray(whole.shape[1:], lambda: whole[index], parts), {scanned}
    return None, set()


def aliases(name: str) -> list[str]:
    """The name, and others that the same parameter may have."""
    aliases = [name]
    if name in _NAMES:
        aliases.append(_NAMES[name])
    if head := OBJECTIVE_HEAD.match(name):
        aliases.append(_PUBLISHED_HEAD + name[head.end() :])
    if name.startswith(_PUBLISHED_HEAD):
        rest = name.removeprefix(_PUBLISHED_HEAD)
        aliases += [f"objectives_{key}/words/{rest}" for key in _OBJECTIVES_WITH_WORDS]
    return aliases


def fitted(
    name: str,
    given: LazyArray,
    shape: tuple[int, ...],
    theirs: ImageEncoder | None,
    ours: ImageEncoder | None,
) -> tuple[LazyArray, str] | None:
    """The parameter in the run's shape and how it got there; None if nothing sensible does it."""
    if given.shape == shape:
        return given, "loaded"
    if given.shape[1:] != shape[1:] or len(shape) != 2:
        return None
    old, new = given.shape[0], shape[0]
    if name == "image_encoder/position_embedding" and ours is not None and ours.has_grid:
        grid = ours.position_grid()
        former = _former_grid(old, new - grid[0] * grid[1], theirs)
        if former is None:
            return None

        def resized() -> np.ndarray:
            return np.asarray(ours.resize_table(given.read().astype(np.float32), former))

        sizes = [f"{rows}x{columns}" for rows, columns in (former, grid)]
        return LazyArray(shape, resized, (given,)), f"resized from {sizes[0]} to {sizes[1]}"
    if name.endswith("word_embedding/embedding") and new < old <= new + _MORE_WORDS:
        return LazyArray(shape, lambda: given[:new]), f"cut from {old} to {new} words"
    if name.endswith("position_embedding/embedding") and new < old:
        return LazyArray(shape, lambda: given[:new]), f"cut from {old} to {new} positions"
    if re.search(r"type_embedding/embedding$", name) and new > old:

        def widened() -> np.ndarray:
            table = given.read()
            return np.concatenate([table, np.repeat(table[-1:], new - old, axis=0)])

        return LazyArray(shape, widened), f"{new - old} rows added, copies of the last"
    return None


def _former_grid(rows: int, prefix: int, theirs: ImageEncoder | None) -> tuple[int, int] | None:
    """Of a table with `rows` rows, `prefix` of them not on the grid: the source's, or a square."""
    if prefix < 0:
        return None
    if theirs is not None and theirs.has_grid:
        grid = theirs.position_grid()
        if grid[0] * grid[1] == rows - prefix:
            return grid
    side = math.isqrt(max(rows - prefix, 0))
    return (side, side) if side * side == rows - prefix else None
