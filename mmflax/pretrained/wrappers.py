"""Names of tensors without what training programs put before them.

`torch.compile`, FSDP and activation checkpointing put a part into the middle of names, which no
model has of its own; data parallelism and training frameworks put `module.` or `model.` before
them, which some models do have: it goes only where the names are the family's without it. Tensors
of the program itself, such as a metric's, lie beside and keep their names.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator

from mmflax.errors import MmflaxError
from mmflax.pretrained.rules import some_of
from mmflax.pretrained.tensors import Tensors

_INSIDE = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_BEFORE = (
    "module", "model", "net", "network", "_model", "ema_model", "base_model",
    "averaged_model", "backbone", "student", "teacher",
)  # fmt: skip
_DEEPEST = 3


def unwrapped(tensors: Tensors, count_known: Callable[[Tensors], int]) -> Tensors:
    """The tensors under the names that the family knows best.

    Args:
      tensors: of a file.
      count_known: how many of their names the family has.

    Raises:
      MmflaxError: the tensors are an adapter's, without the weights of its model.
    """
    adapter = [name for name in tensors if re.search(r"(^|\.)lora_[AB](\.|$)", name)]
    if adapter:
        raise MmflaxError(
            f"{tensors.source} holds a LoRA adapter ({some_of(adapter, 2)}); merge it into its "
            "model with merge_and_unload() of peft and save that."
        )
    candidates = list(_candidates(tensors))
    if len(candidates) == 1:
        return candidates[0]
    known = [count_known(candidate) for candidate in candidates]
    return candidates[known.index(max(known))]


def _candidates(tensors: Tensors) -> Iterator[Tensors]:
    """The tensors as they are, and without one, two or three parts before most of their names."""
    if any(map(_INSIDE.search, tensors)):
        tensors = _renamed(tensors, lambda name: _INSIDE.sub("", name))
    yield tensors
    for _ in range(_DEEPEST):
        firsts = collections.Counter(name.partition(".")[0] for name in tensors if "." in name)
        first, count = max(firsts.items(), key=lambda item: item[1], default=("", 0))
        if first not in _BEFORE:
            return
        start = re.compile(rf"^{re.escape(first)}\.")
        cut = {name: start.sub("", name) for name in tensors}
        if len({*cut.values()}) < len(cut) and count < len(cut):
            return  # names of the model's own
        tensors = _renamed(tensors, cut.__getitem__)
        yield tensors


def _renamed(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    """Raises MmflaxError where two tensors come to have one name."""
    renamed = tensors.renamed(rename)
    if len(renamed) != len(tensors):
        raise MmflaxError(
            f"{tensors.source} holds tensors twice, with and without what a wrapper puts into "
            "their names; save the state dict of the model itself."
        )
    return renamed
