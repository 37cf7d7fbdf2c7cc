"""From a name in a config to the module that builds it.

``name="vit"`` in a config means the file ``vit.py`` of the right folder; ``name="my_package.vit"``
means a module of yours. Either has ``build(**fields)``, whose keywords are the config's keys.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmflax.errors import MmflaxError


def names(package: str, function: str = "build") -> list[str]:
    """What a package has by name: its modules and folders with this function.

    A folder without it groups others, which are found in it under their own names.
    """
    return sorted(_places(package, function))


def _places(package: str, function: str) -> dict[str, str]:
    """name -> the dotted path of the module that has the function."""
    found: dict[str, str] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        path = f"{package}.{info.name}"
        if hasattr(importlib.import_module(path), function):
            found[info.name] = path
        elif info.ispkg:
            found |= _places(path, function)
    return found


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
    if not isinstance(name, str) or not name:
        raise MmflaxError(f"{where}.name is missing; expected one of {', '.join(names(package))}.")
    builder = _builder(package, where, name)
    known = keywords(builder)
    taken = {key: value for key, value in given.items() if key in known}
    clash = sorted(set(taken) & set(fields))
    if clash:
        raise MmflaxError(
            f"{where}.{clash[0]} is decided by the rest of the config; remove it from {where}."
        )
    check_fields(where, fields, {k: v for k, v in known.items() if k not in taken})
    missing = [
        key
        for key, parameter in known.items()
        if parameter.default is inspect.Parameter.empty and key not in fields and key not in taken
    ]
    if missing:
        raise MmflaxError(f"{where} ({name}) needs {', '.join(missing)}; add it to the config.")
    return builder(**fields, **taken)


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


def nearest(word: str, options: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the option that looks most like the word, else nothing."""
    found = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f", did you mean {found[0]!r}?" if found else ""


def keywords(builder: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Every keyword of a builder; ``**fields`` stands for the keywords of what it returns."""
    signature = inspect.signature(builder, eval_str=True)
    found = {}
    for key, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            result = signature.return_annotation
            if inspect.isclass(result):
                inner = inspect.signature(result)
                found.update(
                    {
                        k: p.replace(annotation=_hints(result).get(k, p.annotation))
                        for k, p in inner.parameters.items()
                        if k not in ("parent", "name") and k not in found
                    }
                )
        else:
            found[key] = parameter
    # A keyword that the builder fills in itself is not required of the caller.
    return found


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


def _path(package: str, name: str) -> str:
    """Of a plain name; a package that has no such module of its own looks into its folders."""
    direct = f"{package}.{name}"
    if importlib.util.find_spec(direct) is not None:
        return direct
    return _places(package, "build").get(name, direct)


def check_type(where: str, value: Any, annotation: Any) -> None:
    """Checks the plain types that configs hold; anything richer is the builder's to judge."""
    allowed = _plain_types(annotation)
    if allowed is None:
        return
    if isinstance(value, bool):
        good = bool in allowed
    elif isinstance(value, int) and float in allowed:
        good = True
    else:
        good = isinstance(value, tuple(allowed))
    if not good:
        expected = " or ".join(sorted("None" if t is type(None) else t.__name__ for t in allowed))
        raise MmflaxError(f"{where} is {value!r} ({type(value).__name__}); expected {expected}.")


def _plain_types(annotation: Any) -> set[type] | None:
    """The plain types an annotation admits, or None where it admits others too."""
    if annotation is None:
        return {type(None)}
    if annotation in (int, float, bool, str, type(None)):
        return {annotation}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        found: set[type] = set()
        for part in typing.get_args(annotation):
            inner = _plain_types(part)
            if inner is None:
                return None
            found |= inner
        return found
    return None
