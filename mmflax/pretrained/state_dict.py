"""Where a training program put the weights in what it saved.

A state dict is often nested (`{"state_dict": ..., "epoch": 3}`), and a whole module may be pickled
in place of one. With several state dicts in a file the first of `KEYS` that holds tensors is
taken: the trained weights go before their moving average, which is taken where it is alone. What
was passed over is said. A pickle may hold itself, so nothing is followed without end.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmflax.errors import MmflaxError
from mmflax.pretrained.unpickle import Inert, NumpyArray, View

# What programs call the weights that they save beside other things.
KEYS = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "checkpoint",
    "model_weights", "model_state", "params", "state", "backbone", "state_dict_ema", "model_ema",
    "ema_state_dict", "ema_model", "ema", "teacher", "student",
)  # fmt: skip
_DEEPEST = 4  # state dicts within state dicts


class Found(NamedTuple):
    """A state dict in a file.

    Attributes:
      where: the keys that lead to it, joined by dots.
      tensors: by name.
      others: further keys that hold state dicts.
    """

    where: str
    tensors: dict[str, View]
    others: tuple[str, ...]


def find(tree: Any, path: pathlib.Path) -> Found:
    """The state dict of what was pickled.

    Raises:
      MmflaxError: there are no tensors where a state dict is looked for.
    """
    state = tree
    keys: list[str] = []
    others: list[str] = []
    while len(keys) < _DEEPEST and (nested := _nested(state)):
        first, *rest = nested
        others += [".".join([*keys, key]) for key in rest]
        keys.append(first)
        state = state[first]
    tensors = dict(_tensors(state))
    if not tensors:
        raise MmflaxError(
            f"{path} holds no tensors{_holds(tree)}; expected a state dict, at the top or under "
            f"one of {', '.join(KEYS)}. Save it with torch.save(model.state_dict(), ...)."
        )
    return Found(".".join(keys), tensors, tuple(others))


def _nested(tree: Any) -> list[str]:
    """The keys under which there are state dicts, the one to take first; none if `tree` is one."""
    if not isinstance(tree, Mapping) or isinstance(tree, Inert):
        return []
    return [
        key
        for key in KEYS
        if isinstance(tree.get(key), Mapping) and any(_tensors(tree[key], _DEEPEST))
    ]


def _tensors(state: Any, deep: int = 0) -> Iterator[tuple[str, View]]:
    """Names and tensors of a state dict, or of a module, and of so many state dicts within."""
    if isinstance(state, Inert):
        yield from _of_module(state, "", ())
        return
    if not isinstance(state, Mapping):
        return
    for name, value in state.items():
        view = _view(value)
        if view is not None:
            yield str(name), view
        elif deep and name in KEYS:
            yield from _tensors(value, deep - 1)


def _view(value: Any) -> View | None:
    if isinstance(value, NumpyArray):
        return value.view()
    return value if isinstance(value, View) else None


def _of_module(module: Inert, prefix: str, above: tuple[Inert, ...]) -> Iterator[tuple[str, View]]:
    """Names and tensors of a pickled `torch.nn.Module`, as its `state_dict()` has them.

    The attributes of a TorchScript module are its tensors and modules themselves. What lies in
    itself, as a callback in its trainer's callbacks does, is left.
    """
    if any(module is one for one in above):
        return
    attributes = module.attributes
    parts = [attributes.get(key) for key in ("_parameters", "_buffers", "_modules")]
    if any(isinstance(part, Mapping) for part in parts):
        left_out = attributes.get("_non_persistent_buffers_set")
        left_out = left_out if isinstance(left_out, set) else set()
        members = [item for p in parts if isinstance(p, Mapping) for item in p.items()]
        members = [(name, value) for name, value in members if name not in left_out]
    else:
        members = list(attributes.items())
    for name, value in members:
        view = _view(value)
        if view is not None:
            yield prefix + str(name), view
        elif isinstance(value, Inert):
            yield from _of_module(value, f"{prefix}{name}.", (*above, module))


def _holds(tree: Any) -> str:
    """What a file without weights has in their place."""
    if isinstance(tree, Inert):
        return f" but an object of {tree.name}"
    if isinstance(tree, Mapping) and tree:
        return f" but {', '.join(map(str, list(tree)[:6]))}"
    return f" but {type(tree).__name__}"
