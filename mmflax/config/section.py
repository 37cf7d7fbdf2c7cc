"""What every typed section of a config does: known keys, types and ranges, one sentence each."""

from __future__ import annotations

import dataclasses
import math
import operator
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from mmflax import registry
from mmflax.errors import MmflaxError


def ranged(default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A dataclass field with limits: ``least``, ``most``, ``above``, ``below`` or ``choices``."""
    return dataclasses.field(default=default, metadata=limits)


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a config; making one checks the type and the range of every value."""

    section: ClassVar[str]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From what a config holds, with defaults for the rest.

        Raises:
          MmflaxError: an unknown key (the nearest is named), a missing one, or a bad value.
        """
        if not isinstance(values, Mapping):
            raise MmflaxError(f"{cls.section} is {values!r}; expected keys with values.")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        registry.check_fields(cls.section, values.keys(), fields)
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and values.get(name) is None:
                key = f"{cls.section}.{name}"
                raise MmflaxError(f"The config has no {key}; give --config.{key}=VALUE.")
        return cls(**values)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            where, value = f"{self.section}.{field.name}", getattr(self, field.name)
            registry.check_type(where, value, hints[field.name])
            check_range(where, value, **field.metadata)


def check_range(
    where: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> None:
    """Raises for a number outside its limits or not finite, or a value that is no choice."""
    if value is None:
        return
    if choices is not None and value not in choices:
        raise MmflaxError(f"{where} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    if not isinstance(value, (int, float)):
        return
    limits = (
        ("at least", least, operator.ge),
        ("above", above, operator.gt),
        ("at most", most, operator.le),
        ("below", below, operator.lt),
    )
    asked = [(words, limit, holds) for words, limit, holds in limits if limit is not None]
    if not math.isfinite(value) or not all(holds(value, limit) for _, limit, holds in asked):
        expected = " and ".join(f"{words} {limit}" for words, limit, _ in asked)
        raise MmflaxError(f"{where} is {value!r}; expected a number {expected}.")
