"""From a name in a config to the module that builds it.

``name="vit"`` in a config means the file ``vit.py`` of the right folder; ``name="my_package.vit"``
means a module of yours. Either has ``build(**fields)``, whose keywords are the config's keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import os
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from mmflax.errors import MmflaxError

Built = TypeVar("Built")


def names(package: str, function: str = "build") -> list[str]:
    """What a package has by name: its modules and folders with this function.

    A folder without it groups others, which are listed under their own names.
    """
    return sorted(_places(package, function))


def _places(package: str, function: str) -> dict[str, str]:
    """name -> the dotted path of the module that has the function."""
    places: dict[str, str] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        path = f"{package}.{info.name}"
        if hasattr(importlib.import_module(path), function):
            places[info.name] = path
        elif info.ispkg and not hasattr(importlib.import_module(path), "IS_PART_OF_ANOTHER_KIND"):
            places |= _places(path, function)
    return places


def build(package: str, where: str, fields: Mapping[str, Any], **given: Any) -> Any:
    """Calls ``build(**fields, **given)`` of the module that ``fields["name"]`` names.

    Args:
      package: the folder where plain names live, such as ``mmflax.models.fusion``.
      where: the config path of ``fields``, for messages.
      fields: a ``name`` and the keywords that the config sets.
      given: keywords that the rest of the experiment decides (such as a vocabulary's size); the
        config may not set them, and those that the builder does not take are left out.

    Raises:
      MmflaxError: an unknown name, a keyword that the builder lacks, or a value of another type.
    """
    fields = dict(fields)
    name = fields.pop("name", None)
    check_name(package, where, name)
    builder = _builder(package, where, name)
    known = keywords(builder)
    taken = {key: value for key, value in given.items() if key in known}
    clash = sorted(set(taken) & set(fields))
    if clash:
        raise MmflaxError(
            f"{where}.{clash[0]} is decided by the rest of the config; remove it from {where}."
        )
    check_fields(where, fields, {k: v for k, v in known.items() if k not in taken})
    check_required(where, {"name": name, **fields, **taken}, known)
    return builder(**fields, **taken)


def check_name(package: str, where: str, name: Any) -> None:
    """Raises unless a name is of a module with ``build``, here or by a dotted path."""
    if not isinstance(name, str) or not name:
        raise MmflaxError(f"{where}.name is missing; expected one of {', '.join(names(package))}.")
    _builder(package, where, name)


def keywords_of(package: str, where: str, name: str) -> dict[str, inspect.Parameter]:
    """Every keyword of the builder that a plain name or a dotted path points to."""
    return keywords(_builder(package, where, name))


def check_fields(
    where: str, fields: Iterable[str] | Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    """Raises for a key that is not known, naming the nearest one, or a value of another type."""
    for key in fields:
        if key not in known:
            raise MmflaxError(
                f"{where}.{key} is not a known key{nearest(key, known)}; "
                f"known here: {', '.join(sorted(known))}."
            )
        if isinstance(fields, Mapping) and isinstance(known[key], inspect.Parameter):
            check_type(f"{where}.{key}", fields[key], known[key].annotation)


def check_required(
    where: str, fields: Mapping[str, Any], known: Mapping[str, inspect.Parameter]
) -> None:
    """Raises for a keyword that has no default and is not given."""
    missing = [
        key
        for key, parameter in known.items()
        if parameter.default is inspect.Parameter.empty and key not in fields
    ]
    if missing:
        name, needed = fields.get("name"), known[missing[0]]
        kind = typing.get_origin(needed.annotation) or needed.annotation
        key = f"{needed.name}.KEY" if kind is Mapping else needed.name
        raise MmflaxError(
            f"{where}{f' ({name})' if name else ''} needs {', '.join(missing)}; add it to the "
            f"config, or give --config.{where}.{key}=VALUE."
        )


def nearest(word: str, options: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the option that looks most like the word, else nothing."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def keywords(builder: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Every keyword of a builder; ``**fields`` stands for the keywords of what it returns."""
    signature = inspect.signature(builder, eval_str=True)
    known = dict(signature.parameters)
    for key, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            del known[key]
            if inspect.isclass(signature.return_annotation):
                known = _fields(signature.return_annotation) | known
    if isinstance(builder, functools.partial):  # its keywords are other defaults
        known |= {k: known[k].replace(default=v) for k, v in builder.keywords.items()}
    return known


def _fields(cls: type) -> dict[str, inspect.Parameter]:
    """The keywords of a class, those of its flat fields in their places."""
    hints = _hints(cls)
    flats = {f.name: f.metadata["flat"] for f in _flat_fields(cls)}
    known: dict[str, inspect.Parameter] = {}
    for key, parameter in inspect.signature(cls).parameters.items():
        if key in flats:
            spec = flats[key]
            known |= {
                k: p.replace(default=spec.defaults.get(k, p.default))
                for k, p in _fields(spec.cls).items()
                if k not in spec.without
            }
        elif key not in ("parent", "name"):
            known[key] = parameter.replace(annotation=hints.get(key, parameter.annotation))
    return known


class Flat(NamedTuple):
    """See ``flat``."""

    cls: type
    without: tuple[str, ...]
    defaults: dict[str, Any]


def flat(cls: type, *, without: tuple[str, ...] = (), **defaults: Any) -> Any:
    """A dataclass field that holds a ``cls``, whose fields are keywords of the builder instead.

    Args:
      without: fields that are not keywords, because this module decides them.
      defaults: their defaults, or what is decided, where it is not the default of ``cls``.
    """
    return dataclasses.field(metadata={"flat": Flat(cls, without, defaults)})


def _flat_fields(cls: type) -> list[dataclasses.Field]:
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return [field for field in fields if "flat" in field.metadata]


def make(cls: Callable[..., Built], fields: Mapping[str, Any]) -> Built:
    """``cls(**fields)``, with the keywords of its flat fields gathered into them.

    Lists, as JSON has them, become tuples, so that what is made can be hashed.
    """
    fields = {name: _as_tuple(value) for name, value in fields.items()}
    for field in _flat_fields(cls):  # type: ignore[arg-type]
        spec = field.metadata["flat"]
        own = [f.name for f in dataclasses.fields(spec.cls) if f.name not in spec.without]
        given = {name: fields.pop(name) for name in own if name in fields}
        fields[field.name] = spec.cls(**{**spec.defaults, **given})
    return cls(**fields)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):
        return {}


def _builder(package: str, where: str, name: str) -> Callable[..., Any]:
    target = name if "." in name else _path(package, name)
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not target.startswith(error.name):
            raise  # the module is there, something that it imports is not
        known = names(package)
        raise MmflaxError(
            f"{where}.name is {name!r}, which does not exist{nearest(name, known)}; known: "
            f"{', '.join(known)}, or the dotted path of a module of your own with build(...)."
        ) from None
    if not hasattr(module, "build"):
        raise MmflaxError(
            f"{where}.name is {name!r}: the module {target} has no function build(...)."
        )
    return module.build


def choices_of(package: str, where: str, name: str, field: str) -> Mapping[str, Any] | None:
    """What a field may be in the module of a name, which has a table ``FIELDS`` of it, or None."""
    builder = _builder(package, where, name)
    builder = builder.func if isinstance(builder, functools.partial) else builder
    return getattr(inspect.getmodule(builder), f"{field.upper()}S", None)


def _path(package: str, name: str) -> str:
    """Of a plain name; a package that has no such module of its own looks into its folders."""
    direct = f"{package}.{name}"
    if importlib.util.find_spec(direct) is not None:
        return direct
    return _places(package, "build").get(name, direct)


def check_type(where: str, value: Any, annotation: Any) -> None:
    """Checks the plain types that configs hold; others are checked by the builder."""
    allowed = plain_types(annotation)
    if allowed is not None:
        check_types(where, value, allowed)


def check_types(where: str, value: Any, allowed: set[type]) -> None:
    """Raises unless the value is of one of the types; an int is a float, a bool is no int."""
    if isinstance(value, bool):
        good = bool in allowed
    elif isinstance(value, int) and float in allowed:
        good = True
    else:
        good = isinstance(value, tuple(allowed))
    if not good:
        words = {type(None): "None", bool: "True or False"}
        expected = " or ".join(sorted(words.get(kind, kind.__name__) for kind in allowed))
        raise MmflaxError(f"{where} is {value!r} ({type(value).__name__}); expected {expected}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise MmflaxError(f"{where} is {value!r}; expected a finite number.")


def plain_types(annotation: Any) -> set[type] | None:
    """The plain types an annotation admits, or None where it admits others too."""
    if annotation is None:
        return {type(None)}
    if annotation in (int, float, bool, str, type(None)):
        return {annotation}
    kind = typing.get_origin(annotation) or annotation
    if inspect.isclass(kind) and issubclass(kind, os.PathLike):
        return {str, os.PathLike}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        allowed: set[type] = set()
        for part in typing.get_args(annotation):
            inner = plain_types(part)
            if inner is None:
                return None
            allowed |= inner
        return allowed
    return None


def is_sequence(annotation: Any) -> bool:
    """Whether only sequences (or None) are allowed."""
    sequences = (tuple, list, Sequence)
    if (typing.get_origin(annotation) or annotation) in sequences:
        return True
    parts = typing.get_args(annotation)
    return bool(parts) and all(
        (typing.get_origin(part) or part) in (*sequences, type(None)) for part in parts
    )
