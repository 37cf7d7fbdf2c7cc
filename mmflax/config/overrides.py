"""``--config.a.b=VALUE``: values of the command line in place of the file's."""

from __future__ import annotations

import ast
import contextlib
import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmflax import registry
from mmflax.config import auto, kinds, schema
from mmflax.errors import MmflaxError

_EITHER = (
    ("train.steps", "train.epochs"),
    ("optim.schedule.warmup_steps", "optim.schedule.warmup_fraction"),
)
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def override(
    config: Mapping[str, Any],
    words: Sequence[str],
    note: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """The config with the values of ``--config.a.b=VALUE`` words.

    A key may be set whether the file lists it or not. Of two keys of which one may be given, such
    as ``train.steps`` and ``train.epochs``, the command line's replaces the file's. Another
    ``name`` (of a fusion, an encoder, a task, …) leaves out those of the file's fields that the
    chosen kind does not have, and a named size of an encoder those that it decides.

    Args:
      config: what the file gives.
      words: of the command line.
      note: called with a line about the fields that were left out; by default it is printed to
        stderr.

    Raises:
      MmflaxError: a word without a value, an unknown key (the nearest is named), or a value of
        another type.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    given = dict(_split(word) for word in words)
    # A name decides which other keys there are.
    for path in sorted(given, key=_order):
        section = path.rpartition(".")[0]
        before = changed
        if path in kinds.CHOICES:
            changed, dropped = _choose(changed, path, given)
            if dropped:
                kind = schema.at(before, section).get(path.rpartition(".")[2])
                line = (
                    f"{path}={given[path]} does not take "
                    f"{', '.join(f'{section}.{key}' for key in dropped)} of the config"
                    f"{f', which is for {kind!r}' if kind else ''}: left out"
                )
                print(line, file=sys.stderr) if note is None else note(line)
        else:
            _set(changed, path, given[path])
    for pair in _EITHER:
        for one, other in (pair, pair[::-1]):
            if one in given and other not in given:
                section, _, key = other.rpartition(".")
                here = schema.at(changed, section)
                if isinstance(here, dict):
                    here.pop(key, None)
    return changed


def _order(path: str) -> int:
    """Names first, then what depends on them."""
    return 0 if path.endswith(".name") else 1 if path in kinds.CHOICES else 2


def _choose(
    config: dict[str, Any], path: str, given: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config with a choice that decides which other fields there are."""
    section, _, key = path.rpartition(".")
    changed = copy.deepcopy(config)
    _set(changed, path, given[path])
    dropped = kinds.dropped(config, changed, section, key)
    here: Any = schema.at(changed, section)
    for name in dropped:
        del here[name]
    return changed, tuple(name for name in dropped if f"{section}.{name}" not in given)


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
            if text.strip() == auto.AUTO:
                auto.check_key(path, annotation)
            if text.strip() == auto.AUTO and auto.may_be(path):
                here[key] = auto.AUTO
            else:
                former = None if here.get(key) == auto.AUTO else here.get(key)
                here[key] = _parse(f"--config.{path}", text, annotation, former)
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
            if value is None and text.strip() == "None":
                raise MmflaxError(
                    f"{where} is None; expected a text, and this key has no None (the word itself "
                    f"is written {where}='\"None\"')."
                )
            return value if isinstance(value, str) else text
        value = _number(text, value, allowed)
        registry.check_types(where, value, allowed)
    elif isinstance(value, str) and annotation == tuple[str, ...]:
        return _words(value)
    elif isinstance(value, str) and (
        registry.is_sequence(annotation) or isinstance(former, (tuple, list))
    ):
        return _words(value) if _is_bracketed(value) else (value,)
    elif isinstance(value, list):
        return tuple(value)
    return value


def _number(text: str, value: Any, allowed: set[type]) -> Any:
    """A whole number however it is written, such as 1e3 or 007, and what is not finite."""
    if isinstance(value, float) and float not in allowed and int in allowed:
        return int(value) if value.is_integer() else value
    if isinstance(value, str) and allowed & {int, float}:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    return value


def _words(text: str) -> tuple[str, ...]:
    """Words with commas between them, in brackets or not: ``full,text_only``, ``(image,)``."""
    inner = text.strip()[1:-1] if _is_bracketed(text) else text
    words = tuple(word.strip().strip("'\"") for word in inner.split(","))
    return words[:-1] if len(words) > 1 and not words[-1] else words


def _is_bracketed(text: str) -> bool:
    """Whether it is a list of plain words, such as ``[image,fused]``."""
    return re.fullmatch(r"\s*(\([\w\s,'\"]*\)|\[[\w\s,'\"]*\])\s*", text) is not None


def _literal(text: str) -> Any:
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
