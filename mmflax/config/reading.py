"""Reading a config file with its argument and its overrides, and comparing configs."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mmflax.errors import MmflaxError
from mmflax.registry import nearest

# Fields that may differ when a run goes on: none of them changes what was learned so far.
MAY_CHANGE = (
    "mesh",
    "checkpoint",
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.max_skipped_in_row",
    "train.accumulate",
    "evaluation",
    "data.num_threads",
    "data.prefetch",
)


def load_config(source: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain dict that ``file.py[:arg]`` returns, with ``--config.a.b=value`` applied.

    Args:
      source: a Python file with ``get_config(arg=None)``; text behind a colon is its argument. A
        path that is not there is also looked for among the configs that mmflax brings.
      overrides: ``--config.a.b=value`` words, as on the command line.

    Raises:
      MmflaxError: a missing file, an error in it, an unknown key (the nearest is named), or a
        value of another type.
    """
    path, colon, argument = _locate(source)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    config = _parse(values, [f"--config={path}{colon}{argument}"], path)
    # `from` and where it may stand are the same for every config, so no file need list them.
    anywhere = ("--config.init.", "--config.processor.from=")
    begun = [word for word in overrides if word.startswith(anywhere)]
    overrides = [word for word in overrides if word not in begun]
    for word in overrides:
        _check_override(word, config)
    if overrides:
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
        config = _parse(values, [f"--config={path}{colon}{argument}", *overrides], path)
    return _with_init(config.to_dict(), begun)


def _with_init(config: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The config with `init.…` and `processor.from` set, which need not be in its file."""
    for word in words:
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            raise MmflaxError(f"{word} has no value; write {word}=VALUE.")
        *parents, last = name.split(".")
        here = config
        for key in parents:
            here[key] = dict(here.get(key) or {})
            here = here[key]
        if last == "skip":
            try:
                found = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found = value
            here[last] = (found,) if isinstance(found, str) else tuple(found)
        else:
            here[last] = value
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every key whose value differs, as ``a.b: old -> new``; a tuple equals the list JSON reads."""
    flat_old, flat_new = dict(_flatten(_plain(old))), dict(_flatten(_plain(new)))
    absent = object()
    return [
        f"{key}: {_show(flat_old, key)} -> {_show(flat_new, key)}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key, absent) != flat_new.get(key, absent)
    ]


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: Any) -> None:
    """Raises if the workdir's config is not that of this run, up to ``MAY_CHANGE``."""
    found = [
        line
        for line in differences(old, new)
        if not any(line.startswith((f"{key}:", f"{key}.")) for key in MAY_CHANGE)
    ]
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise MmflaxError(
            f"The workdir {workdir} belongs to a run with another config ({shown}); "
            "give another --workdir, or the config of that run."
        )


def _locate(source: str) -> tuple[str, str, str]:
    path, colon, argument = source, "", ""
    if not os.path.exists(path) and ":" in path:
        path, colon, argument = source.partition(":")
    if os.path.isfile(path):
        return path, colon, argument
    package = pathlib.Path(__file__).parents[1]
    for folder in (package.parent / "configs", package / "configs"):
        shipped = folder / pathlib.Path(path).name
        if shipped.is_file() and pathlib.Path(path).parent.name in ("", "configs"):
            return str(shipped), colon, argument
    known = sorted(
        {
            p.name
            for folder in (package.parent / "configs", package / "configs")
            for p in folder.glob("*.py")
            if folder.is_dir()
        }
    )
    raise MmflaxError(
        f"There is no config file {path!r}{nearest(pathlib.Path(path).name, known)}; expected the "
        f"path of a Python file with get_config(), such as configs/{known[0] if known else 'x.py'}."
    )


def _parse(values: flags.FlagValues, words: list[str], path: str) -> ConfigDict:
    former = sys.argv
    try:
        # ml_collections finds overrides in sys.argv, not in the words it is given.
        sys.argv = ["mmflax", *words]
        values(sys.argv)
        config = values.config
    except MmflaxError:
        raise
    except flags.Error as error:
        if "Traceback (most recent call last)" in str(error):
            # A ValueError of the file's own, which absl takes for a bad flag and quotes whole.
            last = str(error).strip().splitlines()[-1]
            raise MmflaxError(f"The config {path} failed with {last.strip()}") from error
        raise MmflaxError(f"The config {path} cannot take {words[-1]}: {error}") from error
    except Exception as error:  # whatever a user's file raises
        text = f"{type(error).__name__}: {error}".strip()
        raise MmflaxError(f"The config {path} failed with {text}") from error
    finally:
        sys.argv = former
    if not isinstance(config, ConfigDict):
        raise MmflaxError(
            f"get_config() in {path} returned {type(config).__name__}; expected a ConfigDict."
        )
    return config


def _check_override(word: str, config: ConfigDict) -> None:
    """ml_collections names the key that is missing, not the one that was meant."""
    name, equals, _ = word.partition("=")
    keys = name.removeprefix("--config.").split(".")
    if not equals:
        raise MmflaxError(f"{word} has no value; write {name}=VALUE.")
    here: Any = config
    for depth, key in enumerate(keys):
        if isinstance(here, ConfigDict) and key not in here:
            where = ".".join(keys[:depth]) or "config"
            raise MmflaxError(
                f"--config.{'.'.join(keys)}: {where} has no key {key!r}"
                f"{nearest(key, list(here.keys()))}; known: {', '.join(sorted(here.keys()))}."
            )
        here = here[key] if isinstance(here, ConfigDict) else None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "(absent)"
