"""Another kind in a section of a config: which fields go on, and which the new kind does not have.

A config file describes one kind of fusion, encoder, task, data set, optimizer or schedule. When
another one is chosen, the fields that both have keep the file's values, and the others are left
out.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from mmflax import registry
from mmflax.config import auto, schema
from mmflax.errors import MmflaxError

# Sections whose ``name`` decides what else they hold.
SECTIONS = (*schema.NAMED, "optim", "optim.schedule")
ENCODERS = ("model.image_encoder", "model.text_encoder")
# Keys whose value decides which others their section holds.
CHOICES = (
    *(f"{section}.name" for section in SECTIONS),
    *(f"{section}.variant" for section in ENCODERS),
    "task.decode.method",
)
# What a named size of an encoder decides.
SIZES = (
    "width", "depth", "num_heads", "mlp_dim", "patch_size", "depths", "widths", "block",
    "width_factor", "depth_factor",
)  # fmt: skip


def switch(
    config: Mapping[str, Any], section: str, name: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config with this ``name`` in a section, and the names of the fields left out there."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    here: Any = schema.at(changed, section)
    here["name"] = name
    left = dropped(config, changed, section, "name")
    for key in left:
        del here[key]
    return changed, left


def dropped(
    old: Mapping[str, Any], new: Mapping[str, Any], section: str, key: str
) -> tuple[str, ...]:
    """The fields of a section that another value of ``key`` leaves without a meaning.

    Of a ``name``: a field that the former kind knows and the new one does not, or knows with
    values of another type or with other choices. A field that neither knows stays, so that the
    check of the config names it. A name that does not exist leaves out nothing.

    Args:
      old: the config with the former value.
      new: with the new one.
      section: such as ``model.fusion``.
      key: one of ``CHOICES`` without its section.
    """
    former, here = schema.at(old, section), schema.at(new, section)
    if former.get(key) == here.get(key):
        return ()
    if key == "variant":
        fields = set(SIZES) & set(former)
        fields |= {"stem"} if former.get("stem") == auto.AUTO else set()
        return tuple(sorted(fields)) if _has_variant(section, here) else ()
    if key == "method":
        methods = importlib.import_module("mmflax.tasks.generation_model").METHODS
        mine = {**methods, "sample": {**methods["sample"], "seed": 0}}
        was, now = mine.get(former.get(key)), mine.get(here[key])
        return tuple(sorted(set(former) & set(was) - set(now))) if was and now else ()
    known, knows = schema.keywords(section, old), schema.keywords(section, new)
    if known is None or knows is None:
        return ()
    left = [
        name
        for name, value in former.items()
        if name in known and name not in ("name", "schedule")
        if not (value == auto.AUTO and name in knows and _types(known[name]) == _types(knows[name]))
        if not (_takes(knows, name, value) and _may_be(section, here["name"], name, value))
    ]
    if "variant" in here and "variant" in knows and not _has_variant(section, here):
        left.append("variant")
    return tuple(sorted(set(left)))


def _takes(known: schema.Keywords, key: str, value: Any) -> bool:
    """Whether a kind has the field, with values of this type."""
    if key not in known:
        return False
    annotation = known[key].annotation
    if registry.is_sequence(annotation):
        return value is None or isinstance(value, (list, tuple))
    try:
        registry.check_type(key, value, annotation)
    except MmflaxError:
        return False
    return True


def _types(field: inspect.Parameter) -> set[str]:
    """The types that a field takes, None aside: what is decided for one suits its equal."""
    whole = field.annotation
    parts = typing.get_args(whole) if isinstance(whole, types.UnionType) else (whole,)
    named = [part.__name__ if isinstance(part, type) else str(part) for part in parts]
    return {one.strip() for name in named for one in name.split("|")} - {"None", "NoneType"}


def _may_be(section: str, name: str, key: str, value: Any) -> bool:
    """Whether a text is one of those that the kind has for the field, where they are known."""
    if section not in schema.NAMED or not isinstance(value, str):
        return True
    choices = registry.choices_of(schema.NAMED[section][0], section, name, key)
    return choices is None or value in choices


def _has_variant(section: str, fields: Mapping[str, Any]) -> bool:
    """Whether the encoder of this name has this variant."""
    package, decided = schema.NAMED[section]
    only = {key: fields.get(key) for key in ("name", "variant")}
    try:
        registry.build(package, section, only, **dict.fromkeys((*decided, "max_length"), 64))
    except (MmflaxError, TypeError, ValueError):
        return False
    return True
