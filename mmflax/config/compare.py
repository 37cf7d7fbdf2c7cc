"""Comparing configs: which keys differ, and whether two belong to the same run."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from mmflax.config import auto
from mmflax.config.sections import PARTS
from mmflax.errors import MmflaxError

# Fields that may differ when a run goes on: none of them changes what was learned so far.
MAY_CHANGE = (
    "mesh",
    "checkpoint",
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.patience",
    "train.max_skipped_in_row",
    "train.accumulate",
    "evaluation",
    "data.num_threads",
    "data.prefetch",
    "data.changed",
    "data.max_bad_fraction",
    "recipe",
    "plan",
)
# Of a data set of mmflax also: where the data lie, since what they hold is compared by itself, and
# what is only checked.
OWN_DATA_MAY_CHANGE = (
    "data.path",
    "data.data_dir",
    "data.source_dir",
    "data.allow_leak",
    "data.allow_repeats",
    "data.unseen_answers",
)
# Paths, some of them in lists; the name of a checkpoint on a hub is no path.
_PATHS = ("data.path", "data.data_dir", "data.source_dir")
_BASES = ("init.from", *(f"init.{part}.from" for part in PARTS))
_CHECKPOINTS = ("processor.from", *_BASES)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every key whose value differs, as ``a.b: old -> new``; a tuple equals the list JSON reads,
    and ``auto`` whatever was decided."""
    old, new = auto.as_before(old, new), auto.as_before(new, old)
    flat_old, flat_new = (dict(flatten(_plain(located(one)))) for one in (old, new))
    absent = object()
    return [
        f"{key}: {_show(flat_old, key)} -> {_show(flat_new, key)}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key, absent) != flat_new.get(key, absent)
    ]


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: Any) -> None:
    """Raises if the workdir's config is not that of this run, up to ``MAY_CHANGE``."""
    keys = MAY_CHANGE + (OWN_DATA_MAY_CHANGE if _is_ours(new) else ())
    if (new.get("lora") or {}).get("rank"):
        keys += _BASES  # what lies there is compared with the base of the adapters
    lines = [
        line
        for line in differences(old, new)
        if not any(line.startswith((f"{key}:", f"{key}.")) for key in keys)
    ]
    if lines:
        shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
        raise MmflaxError(
            f"The workdir {workdir} belongs to a run with another config ({shown}); "
            "give another --workdir, or the config of that run."
        )


def located(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with absolute paths, which mean the same in another working directory.

    Changed are those of a data set of mmflax and of checkpoints that are files or folders here.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for path in (*(_PATHS if _is_ours(config) else ()), *_CHECKPOINTS):
        *sections, key = path.split(".")
        here: Any = changed
        for section in sections:
            here = here.get(section) if isinstance(here, dict) else None
        if isinstance(here, dict) and here.get(key):
            value, check = here[key], path in _CHECKPOINTS
            here[key] = (
                [_absolute(one, check) for one in value]
                if isinstance(value, (list, tuple))
                else _absolute(value, check)
            )
    return changed


def _is_ours(config: Mapping[str, Any]) -> bool:
    """Whether the data set is one of mmflax, and not of a module of the user's."""
    return "." not in str((config.get("data") or {}).get("name", "."))


def _absolute(value: Any, must_exist: bool) -> Any:
    if not isinstance(value, (str, os.PathLike)) or "://" in os.fspath(value):
        return value
    path = os.path.abspath(os.path.expanduser(value))
    return path if os.path.exists(path) or not must_exist else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """``(a.b, value)`` for every value of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _show(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "(absent)"
