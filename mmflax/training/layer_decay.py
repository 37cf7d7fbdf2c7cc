"""Layer-wise learning-rate decay: what lies deeper below the head learns more slowly.

ELECTRA (Clark et al. 2020, appendix B), BEiT (Bao et al. 2022) and MAE (He et al. 2022) fine-tune
with the rate times ``decay ** d``, where d is a parameter's depth from the top: 0 for the head (and
whatever else is in no stack of layers), 1 for the last layer, L for the first of L, L + 1 for the
embeddings below it. Here the layers of the encoders lie below those of the fusion, and these below
those of a decoder, where these have a decay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmflax.errors import MmflaxError, option

# Parts that lie above one another, from below; other parts are at the top.
_LEVELS = (("image_encoder", "text_encoder"), ("fusion",), ("decoder",))
# Of a part's parameters outside its layers those that come after them.
_AFTER = re.compile(r"((image|text|merged)_)?(norm|pooler)|output")
_COUNTED = re.compile(r"[a-z]\w*?_(\d+)(?:(?:_[a-z]+)?_(\d+))?")
_SCANNED = "layers"
# Convolutions in place of a patch embedding lie, as that does, below every layer.
_STEM = re.compile(r"\w+_stem")

Key = tuple[float, ...]


def layer_factors(
    shapes: Mapping[str, Any], decay: float | Sequence[tuple[str, float]]
) -> dict[str, Any]:
    """path -> factor of the learning rate; of a scanned stack [n 1 …], a factor for each layer.

    Args:
      shapes: path -> array or shape of every parameter.
      decay: of all, or (path regex, decay) pairs; the first that matches a parameter counts, and
        one that none matches is left at 1.

    Raises:
      MmflaxError: a decay that is not above 0 and at most 1, or a regex that matches no parameter.
    """
    rules = checked(decay)
    rows: dict[str, tuple[str, float, list[Key] | None]] = {}
    idle = {pattern for pattern, _ in rules}
    for path, leaf in shapes.items():
        rule = next((rule for rule in rules if re.search(rule[0], path)), None)
        if rule is not None:
            idle.discard(rule[0])
            part, keys = _place(path, leaf)
            rows[path] = part, rule[1], keys
    if idle:
        left = tuple(rule for rule in rules if rule[0] not in idle)
        raise MmflaxError(
            f"optim.layer_decay: {', '.join(map(repr, sorted(idle)))} decides no parameter (paths "
            f"look like {next(iter(shapes), '')!r}); correct the regex or remove it, as in "
            f"{option('optim.layer_decay', left or None)}."
        )
    order: dict[str, list[Key]] = {}
    decays: dict[str, float] = {}
    for part, value, keys in rows.values():
        decays.setdefault(part, value)
        order.setdefault(part, []).extend(keys or ())
    order = {part: sorted(set(keys)) for part, keys in order.items()}
    factors: dict[str, Any] = {}
    for path, (part, value, keys) in rows.items():
        below = math.prod(decays[one] ** len(order[one]) for one in _above(part) if one in order)
        count = len(order[part])
        if keys is None:
            top = not any(part in level for level in _LEVELS) or _is_after(path)
            factor = below if top else below * value ** (count + 1)
            if factor != 1.0:
                factors[path] = factor
            continue
        each = [below * value ** (count - order[part].index(key)) for key in keys]
        scanned = _SCANNED in path.split("/")
        axes = (len(each),) + (1,) * (len(shapes[path].shape) - 1)
        factors[path] = np.asarray(each, np.float32).reshape(axes) if scanned else each[0]
    return factors


def checked(decay: Any) -> tuple[tuple[str, float], ...]:
    """The decay as (path regex, decay) pairs."""
    pairs = (("", decay),) if isinstance(decay, (int, float)) else decay
    good = isinstance(pairs, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in pairs
    )
    if not good or isinstance(decay, bool):
        raise MmflaxError(
            f"optim.layer_decay is {decay!r}; expected a number above 0 and at most 1, such as "
            f"0.8, or (path regex, decay) pairs, as in "
            f"{option('optim.layer_decay', (('image_encoder/', 0.8),))}."
        )
    for pattern, value in pairs:
        try:
            re.compile(pattern)
        except re.error as error:
            raise MmflaxError(
                f"optim.layer_decay has {pattern!r}, which is no regex: {error}."
            ) from None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise MmflaxError(
                f"optim.layer_decay has {value!r}; expected a number above 0 and at most 1, such "
                "as 0.8 (1 leaves every layer the same rate)."
            )
    return tuple((pattern, float(value)) for pattern, value in pairs)


def _above(part: str) -> list[str]:
    """The parts whose layers lie above those of this one."""
    level = next((i for i, parts in enumerate(_LEVELS) if part in parts), len(_LEVELS))
    return [one for parts in _LEVELS[level + 1 :] for one in parts]


def _names(path: str) -> list[str]:
    return path.removeprefix("backbone/").split("/")


def _place(path: str, leaf: Any) -> tuple[str, list[Key] | None]:
    """The part of a parameter, and the places of its layers in that part, None in no layer.

    A scanned leaf is of several layers. Stages and the layers inside them count as one sequence,
    with what joins two stages (Swin's merging) after the first one's layers.
    """
    part, *names = _names(path)
    if names and _STEM.fullmatch(names[0]):
        return part, None
    key: Key = ()
    for i, name in enumerate(names):
        if name == _SCANNED:
            return part, [(*key, float(i)) for i in range(leaf.shape[0])]
        match = _COUNTED.fullmatch(name)
        if match is None:
            if key:
                break
            continue
        key = (*key, *(float(number) for number in match.groups() if number is not None))
        if name.startswith("merging_"):
            return part, [(*key, math.inf)]
        inner = names[i + 1] if i + 1 < len(names) else ""
        if inner != _SCANNED and not re.fullmatch(r"layers_\d+", inner):
            break
    return part, [key] if key else None


def _is_after(path: str) -> bool:
    """Whether a parameter outside the layers reads what they gave."""
    names = _names(path)
    return len(names) > 1 and _AFTER.fullmatch(names[1]) is not None
