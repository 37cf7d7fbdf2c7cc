"""From the modules of a checkpoint to the fields of a config that builds them again."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any, NamedTuple

from mmflax import registry
from mmflax.config import schema

# Fields of modules that a run decides otherwise, or that decide nothing about loaded weights.
_LEFT_OUT = frozenset(
    {
        "parent", "name", "dtype", "param_dtype", "remat", "scan_layers", "attention_impl",
        "qk_init", "any_size", "pad_token",
    }
)  # fmt: skip


def part_fields(part: str, module: Any) -> dict[str, Any]:
    """The section ``model.<part>`` that builds this module: a name, and what is not its default.

    Of several builders of the same class the one is taken that leaves the fewest fields to say.
    What the rest of an experiment decides, such as the number of words, is left out.
    """
    package, decided = schema.NAMED[f"model.{part}"]
    values = {
        name: value
        for name, value in _flat_values(module).items()
        if name not in (*_LEFT_OUT, *decided)
    }
    if values.get("crop") and not module.image_size % module.patch_size:
        del values["crop"]  # nothing is left over, so another size that leaves some is a mistake
    found: list[dict[str, Any]] = []
    own = type(module).__module__
    names = registry.names(package) if own.startswith(f"{package}.") else [own]
    for name in names:
        builder = importlib.import_module(name if "." in name else f"{package}.{name}").build
        if _built(builder) is not type(module):
            continue
        known = registry.keywords(builder)
        found.append(
            {"name": name}
            | {
                key: value
                for key, value in values.items()
                if key in known and (known[key].default != value or key == "max_length")
            }
        )
    return min(found, key=len) if found else {"name": own, **values}


def module_fields(builder: Any, module: Any) -> dict[str, Any]:
    """The keywords of a builder that make this module, but for those that are its defaults."""
    known = registry.keywords(builder)
    return {
        name: value
        for name, value in _flat_values(module).items()
        if name in known and name not in _LEFT_OUT and known[name].default != value
    }


def _flat_values(module: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if "flat" in field.metadata:
            spec = field.metadata["flat"]
            own = (f.name for f in dataclasses.fields(spec.cls) if f.name not in spec.without)
            values |= {name: getattr(value, name) for name in own}
        else:
            values[field.name] = value
    return values


def _built(builder: Any) -> Any:
    """The class that a builder says it returns."""
    function = getattr(builder, "func", builder)
    return inspect.signature(function, eval_str=True).return_annotation


def field_of(module: Any, name: str) -> Any:
    """The value of a field that not every module has, or None."""
    return getattr(module, name) if name in (f.name for f in dataclasses.fields(module)) else None


class Sizes(NamedTuple):
    """Of the layers of a part."""

    width: int
    num_heads: int
    depth: int


def sizes_of(module: Any) -> Sizes | None:
    """Of a part with equal layers; None for a convolutional one, or one whose stages differ."""
    layer, stack = getattr(module, "layer", None), getattr(module, "stack", None)
    if layer is None or stack is None or not isinstance(getattr(module, "width", None), int):
        return None
    return Sizes(module.width, layer.num_heads, stack.depth)


def fusion_on_top(image: Any, text: Sizes) -> dict[str, Any]:
    """A co-attention as METER's, as wide as the encoders and half as deep, at most 6 layers.

    Pre-norm, which trains better from scratch than the published post-norm.

    Args:
      image: the image encoder.
      text: the sizes of the text encoder.
    """
    own = sizes_of(image)
    wider = own is not None and own.width > text.width
    width, heads = (own.width, own.num_heads) if own is not None and wider else text[:2]
    pool = "cls" if getattr(image, "cls_token", False) else "gap"
    return dict(
        name="co_attention", form="meter", norm_style="pre", width=width, num_heads=heads,
        depth=max(1, min(6, text.depth // 2)), dropout_rate=0.1, image_pool=pool,
    )  # fmt: skip
