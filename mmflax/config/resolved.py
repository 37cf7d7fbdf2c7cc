"""A config with every default, and where each value comes from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmflax.config import overrides, schema
from mmflax.config.compare import flatten

SECTIONS = (
    "", "model", "model.image_encoder", "model.text_encoder", "model.fusion", "task", "data",
    "processor", "augment", "optim", "optim.schedule", "mesh", "train", "evaluation", "checkpoint",
    "init", "lora", "recipe",
)  # fmt: skip


class Value(NamedTuple):
    """One value of a config.

    Attributes:
      key: as ``a.b``.
      value: what it is.
      source: ``file``, ``command line`` or ``default``.
    """

    key: str
    value: Any
    source: str


def resolve(
    config: Mapping[str, Any], words: Sequence[str], file: Mapping[str, Any] | None = None
) -> list[Value]:
    """Every value of a config, section by section.

    Args:
      config: with the overrides, and with what a checkpoint decides.
      words: the ``--config.a.b=VALUE`` overrides.
      file: without what a checkpoint decides; None: nothing is.
    """
    given = overrides.paths(words)
    written = dict(flatten(config if file is None else file))

    def source(key: str, value: Any) -> str:
        if written.get(key, written) != value:
            return "checkpoint"
        return "command line" if _is_below(key, given) else "file"

    values = {key: Value(key, value, source(key, value)) for key, value in flatten(config)}
    for key, default in _defaults(config):
        if not any(other == key or other.startswith(f"{key}.") for other in values):
            values[key] = Value(key, default, "default")
    order = {section: place for place, section in enumerate(SECTIONS)}
    return sorted(values.values(), key=lambda value: order[_section(value.key)])


def nested(values: Sequence[Value]) -> dict[str, Any]:
    """The values as the sections of a config."""
    tree: dict[str, Any] = {}
    for key, value, _ in values:
        *parents, last = key.split(".")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return tree


def table(values: Sequence[Value]) -> str:
    """One line a value: key, value, source."""
    rows = [(value.key, repr(value.value), value.source) for value in values]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    widths[1] = min(widths[1], 60)
    return "\n".join(
        f"{key.ljust(widths[0])}  {value.ljust(widths[1])}  {source}" for key, value, source in rows
    )


def _defaults(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "seed", 0
    for section in SECTIONS[1:]:
        for key, parameter in (schema.keywords(section, config) or {}).items():
            if parameter.default is not inspect.Parameter.empty:
                yield f"{section}.{key}", parameter.default
    yield "evaluation.batch_size", schema.at(config, "data").get("batch_size")


def _section(key: str) -> str:
    """The longest of ``SECTIONS`` that holds the key."""
    return max((s for s in SECTIONS if not s or key.startswith(f"{s}.")), key=len)


def _is_below(key: str, given: set[str]) -> bool:
    return any(key == path or key.startswith(f"{path}.") for path in given)
