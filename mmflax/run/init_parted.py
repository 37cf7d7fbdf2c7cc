"""A text encoder that reads the image in its own layers, as an encoder of words and a fusion.

BLIP's text encoder (Li et al. 2022, sec. 3.1) is two things: without an image an encoder of text,
and with one the fusion. A run whose fusion is that one (`cross_attention` of the form "blip") has
its layers under `fusion/text_encoder`, and a text encoder without layers before it, as ViLT has.
The weights and what they compute are the same under both names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mmflax.models.encoders.bert import BERT
from mmflax.models.fusion.cross_attention import CrossAttention
from mmflax.pretrained.inspect import LazyArray

_THEIRS, _OURS = "text_encoder/encoder/", "fusion/text_encoder/"


def has_parted(names: Iterable[str]) -> bool:
    """Whether parameters of these paths, without `backbone/`, have such a fusion, over a text
    encoder without layers."""
    names = list(names)
    layered = any(name.startswith(_THEIRS) for name in names)
    return not layered and any(name.startswith(_OURS) for name in names)


def parted(
    parameters: Mapping[str, LazyArray], modules: Mapping[str, Any]
) -> tuple[Mapping[str, LazyArray], Mapping[str, Any]]:
    """The parameters and the modules of a source whose text encoder reads the image, its layers as
    a fusion; those of another as they are."""
    text = modules.get("text_encoder")
    reads = any(name.startswith(_THEIRS) and "/cross_attention/" in name for name in parameters)
    if not (isinstance(text, BERT) and text.cross_attention and reads):
        return parameters, modules
    without_layers = dataclasses.replace(text.stack, depth=0)
    words = text.clone(parent=None, cross_attention=False, stack=without_layers)
    fusion = CrossAttention(width=text.width, layer=text.layer, stack=text.stack, form="blip")
    others = {name: one for name, one in modules.items() if not name.startswith("text_encoder/")}
    renamed = {
        _OURS + name.removeprefix(_THEIRS) if name.startswith(_THEIRS) else name: value
        for name, value in parameters.items()
    }
    return renamed, {**others, "text_encoder": words, "fusion": fusion}
