"""``--config.a.b=VALUE``: values of the command line in place of the file's."""

from __future__ import annotations

import ast
import copy
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mmflax import registry
from mmflax.config import schema
from mmflax.errors import MmflaxError

_EITHER = (
    ("train.steps", "train.epochs"),
    ("optim.schedule.warmup_steps", "optim.schedule.warmup_fraction"),
)
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def override(config: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The config with the values of ``--config.a.b=VALUE`` words.

    A key may be set whether the file lists it or not. Of two keys of which one may be given, such
    as ``train.steps`` and ``train.epochs``, the command line's replaces the file's.

    Raises:
      MmflaxError: a word without a value, an unknown key (the nearest is named), or a value of
        another type.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    given = dict(_split(word) for word in words)
    # A name decides which other keys there are.
    for path in sorted(given, key=lambda path: not path.endswith(".name")):
        _set(changed, path, given[path])
    for pair in _EITHER:
        for one, other in (pair, pair[::-1]):
            if one in given and other not in given:
                section, _, key = other.rpartition(".")
                here = schema.at(changed, section)
                if isinstance(here, dict):
                    here.pop(key, None)
    return changed


def paths(words: Sequence[str]) -> set[str]:
    """The keys that ``--config.a.b=VALUE`` words set, as ``a.b``."""
    return {_split(word)[0] for word in words}


def _split(word: str) -> tuple[str, str]:
    name, equals, text = word.partition("=")
    if not equals:
        raise MmflaxError(f"{word} has no value; write {name}=VALUE.")
    return name.removeprefix("--config."), text


def _set(config: dict[str, Any], path: str, text: str) -> None:
    keys = path.split(".")
    here = config
    for depth, key in enumerate(keys):
        section = ".".join(keys[:depth])
        known = schema.keywords(section, config)
        options = {**here, **(known or {})}
        if known is not None and key not in options:
            raise MmflaxError(
                f"--config.{path}: {section or 'the config'} has no key {key!r}"
                f"{registry.nearest(key, options)}; known: {', '.join(sorted(options))}."
            )
        if depth == len(keys) - 1:
            annotation = known[key].annotation if known and key in known else None
            here[key] = _parse(f"--config.{path}", text, annotation, here.get(key))
        elif isinstance(here.get(key) or {}, Mapping):
            here[key] = dict(here.get(key) or {})
            here = here[key]
        else:
            raise MmflaxError(f"--config.{path}: {'.'.join(keys[: depth + 1])} has no keys.")


def _parse(where: str, text: str, annotation: Any, former: Any) -> Any:
    """The value that the text means for a key of this type, or of the file's value's type."""
    allowed = registry.plain_types(annotation) if annotation is not None else None
    if annotation is None and isinstance(former, (bool, int, float, str)):
        allowed = {type(former), type(None)}
    value = _literal(text)
    if allowed is not None:
        if str in allowed and not isinstance(value, tuple(allowed - {str}) or ()):
            return value if isinstance(value, str) else text
        registry.check_types(where, value, allowed)
    elif isinstance(value, str) and annotation == tuple[str, ...]:
        return tuple(word.strip() for word in value.split(","))
    elif isinstance(value, str) and (_is_sequence(annotation) or isinstance(former, (tuple, list))):
        return (value,)
    elif isinstance(value, list):
        return tuple(value)
    return value


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_sequence(annotation: Any) -> bool:
    """Whether only sequences (or None) are allowed."""
    sequences = (tuple, list, Sequence)
    if (typing.get_origin(annotation) or annotation) in sequences:
        return True
    parts = typing.get_args(annotation)
    return bool(parts) and all(
        (typing.get_origin(part) or part) in (*sequences, type(None)) for part in parts
    )
