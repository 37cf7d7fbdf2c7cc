"""Weights of transformers' Flax classes under PyTorch's names and in its layout, and back.

The Flax classes (BERT, RoBERTa, ViT and CLIP among them; transformers had them up to version 4)
have the modules of the PyTorch classes. Only the last part of a name and the axes of kernels
differ:

    a/b/kernel [in, out]                 a.b.weight [out, in]
    a/b/kernel [height, width, in, out]  a.b.weight [out, in, height, width]
    a/b/scale, a/b/embedding             a.b.weight
    a/b/mean, a/b/var of batch_stats     a.b.running_mean, a.b.running_var

so the tables of the families hold for both. A word head has no decoder of its own where it is
tied, and its bias lies beside the decoder.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

from mmflax.errors import MmflaxError
from mmflax.pretrained.rules import CONV, LINEAR, LINEAR_OUT, Rule

ENDING = ".msgpack"
# The families whose published classes have Flax counterparts of the same names.
WRITTEN = ("bert", "roberta", "vit", "clip")
_COLLECTIONS = ("params", "batch_stats")
_LAST = dict(
    kernel="weight", scale="weight", embedding="weight", mean="running_mean", var="running_var"
)
_KERNELS = {op.name for op in (LINEAR, LINEAR_OUT, CONV)}
# PyTorch's classes keep the bias of a word head inside its decoder too.
_DECODER_BIAS = ".decoder.bias"


def torch_name(path: Sequence[str]) -> str:
    """PyTorch's name of the parameter at a path of Flax, with or without its collection."""
    *modules, last = path[1:] if path[0] in _COLLECTIONS else path
    return ".".join([*modules, _LAST.get(last, last)])


def torch_axes(path: Sequence[str], ndim: int) -> tuple[int, ...]:
    """The axes of the parameter at a path of Flax in PyTorch's order."""
    if path[-1] != "kernel":
        return tuple(range(ndim))
    return (3, 2, 0, 1) if ndim == 4 else tuple(reversed(range(ndim)))


def read_flax_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """PyTorch's name -> array in its layout, of a msgpack file; kernels are views.

    The parameters are the tree itself or lie under `params`, as in a train state, beside
    `batch_stats`.

    Raises:
      MmflaxError: a file that is truncated, corrupt or not a tree of arrays.
    """
    try:
        tree = msgpack_restore(path.read_bytes())
    except Exception as error:  # whatever msgpack and numpy make of damaged bytes
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise MmflaxError(
            f"{path} is truncated, corrupt, or not a Flax file ({reason}); download it again and "
            "compare its size."
        ) from error
    arrays: dict[str, np.ndarray] = {}
    for place, leaf in _leaves(tree):
        if not isinstance(leaf, (np.ndarray, np.generic)):
            where = f" at {'/'.join(place)}" if place else ""
            raise MmflaxError(
                f"{path} holds {type(leaf).__name__}{where}; expected a tree of arrays, as "
                "save_pretrained of a Flax class writes it."
            )
        name, array = torch_name(place), np.asarray(leaf)
        if name in arrays:
            raise MmflaxError(f"{path} holds two arrays that PyTorch calls {name}; expected one.")
        arrays[name] = array.transpose(torch_axes(place, array.ndim))
    if not arrays:
        raise MmflaxError(f"{path} holds no arrays; expected the parameters of a Flax class.")
    return arrays


def _leaves(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and leaves of the parameters and their statistics."""
    statistics = None
    while isinstance(tree, dict) and isinstance(tree.get("params"), dict):
        statistics = tree.get("batch_stats", statistics)
        tree = tree["params"]
    for part in (tree, statistics):
        if isinstance(part, dict):
            for place, leaf in flatten_dict(part).items():
                yield tuple(map(str, place)), leaf
        elif part is not None:
            yield (), part


def flax_bytes(tensors: Iterable[tuple[Rule, np.ndarray]]) -> bytes:
    """The msgpack file of tensors, each with the row of the table that it comes from.

    Raises:
      MmflaxError: a tensor that no Flax class has.
    """
    leaves = dict(_flax_leaf(rule, array) for rule, array in tensors)
    data: bytes = msgpack_serialize(unflatten_dict(leaves))
    return data


def _flax_leaf(rule: Rule, array: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Path and array of Flax for a tensor in PyTorch's layout."""
    if len(rule.paths) > 1:
        raise MmflaxError(
            f"The checkpoint keeps {len(rule.paths)} of our parameters in one tensor "
            f"({rule.theirs}), which no Flax class of transformers does; expected the layout of "
            "transformers: save it with to='hf' or to='mmflax'."
        )
    if rule.theirs.endswith(_DECODER_BIAS):
        rule = rule._replace(theirs=rule.theirs.removesuffix(_DECODER_BIAS) + ".bias")
    *modules, last = rule.theirs.split(".")
    if last != "weight":
        return (*modules, last), array
    if rule.op.name in _KERNELS:
        axes = np.argsort(torch_axes(("kernel",), array.ndim))
        return (*modules, "kernel"), array.transpose(axes)
    return (*modules, "scale" if rule.paths[0].endswith("/scale") else "embedding"), array


def check_written(config: Mapping[str, Any]) -> None:
    """Raises MmflaxError for a checkpoint of a family without Flax classes."""
    if config["family"] not in WRITTEN:
        raise MmflaxError(
            f"to is 'flax' and {config['source']} is of the family {config['family']}; the "
            f"families with a Flax layout are {', '.join(WRITTEN)}: save it with to='hf' or "
            "to='mmflax'."
        )
