"""Published models: a folder each, with the model and the table of its checkpoint's names.

A folder has `build(**fields) -> linen module` (`model.py`), or `MODEL_TYPES`, the table of names
`table(config, names)` and `fields(config, names)`, the `name` of a module and its keywords for a
config and its tensors' names (`names.py`), or both: some checkpoints are read into the model of
another family. `KEYS` says of every key of a config what it means (`config_keys.py`): the functions
are given a config that has been checked by it and has the original's defaults for what it leaves
out. `recognize(shapes)` gives the config of a weight file that comes without one, and
`preprocessing(config)` its `preprocessor_config.json`, where the original's code fixes the images'
preprocessing. A package of yours with the same functions is a family too, under its dotted path;
without `KEYS` its functions are given what the file holds.
"""

import importlib
from collections.abc import Collection, Mapping
from typing import Any

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.pretrained import rules
from mmflax.pretrained.families import config_keys


def family_module(name: str) -> Any:
    """The family of this plain name, or of this dotted path."""
    if "." not in name:
        return importlib.import_module(f"{__name__}.{name}")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the family is there, something that it imports is not
        raise MmflaxError(
            f"There is no module {name}; expected the dotted path of a family of published models."
        ) from error
    missing = [function for function in ("fields", "table") if not hasattr(module, function)]
    if missing:
        raise MmflaxError(
            f"{name} has no {' and no '.join(missing)}; a family has fields(config, names) and "
            "table(config, names)."
        )
    return module


def known_types() -> dict[str, str]:
    """The `model_type`s that have a table, and the family that has it."""
    return {
        model_type: name
        for name in registry.names(__name__, "table")
        for model_type in family_module(name).MODEL_TYPES
    }


def family_of(model_type: Any, source: str) -> str:
    """The family whose table is for this `model_type`."""
    known = known_types()
    name = str(model_type).replace("-", "_")
    if model_type is None:
        raise MmflaxError(
            f"{source} has no model_type, which says what it is; write it into its config.json, "
            'such as "model_type": "bert", or name the family as family=.'
        )
    if name not in known:
        raise MmflaxError(
            f"{source} has model_type {model_type!r}{registry.nearest(name, known)}; known: "
            f"{', '.join(known)}, or give the dotted path of a family of your own as family=."
        )
    return known[name]


def check_config(family: str, config: Mapping[str, Any], source: str) -> None:
    """Raises for a key of a config that the family does not know, or a value it cannot build."""
    keys = keys_of(family, config)
    if keys is not None:
        config_keys.checked(config, keys, source, family)


def completed(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the original's defaults for what it leaves out, if the family knows them."""
    keys = keys_of(family, config)
    return dict(config) if keys is None else config_keys.completed(config, keys)


def keys_of(family: str, config: Mapping[str, Any]) -> config_keys.Keys | None:
    """What the keys of this config mean to the family; None for one of yours without `KEYS`."""
    module = family_module(family)
    return config_keys.table_of(module.KEYS, config) if hasattr(module, "KEYS") else None


def fields_of(family: str, config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The `name` of the family's module and its keywords for a checkpoint."""
    fields: dict[str, Any] = family_module(family).fields(completed(family, config), names)
    return {"name": family, **fields}


def table_of(family: str, config: Mapping[str, Any], names: Collection[str]) -> rules.Table:
    """The family's table of a checkpoint's names."""
    table: rules.Table = family_module(family).table(completed(family, config), names)
    return table


def preprocessing_of(family: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `preprocessor_config.json` of a file that came without one, if the family knows it."""
    module = family_module(family)
    return dict(module.preprocessing(config)) if hasattr(module, "preprocessing") else None


def recognize(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The config of a file that came without one, from its tensors' names and shapes."""
    for name in registry.names(__name__, "recognize"):
        config = family_module(name).recognize(shapes)
        if config is not None:
            return dict(config)
    return None
