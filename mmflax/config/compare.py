"""Comparing configs: which keys differ, and whether two belong to the same run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

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
    "train.max_skipped_in_row",
    "train.accumulate",
    "evaluation",
    "data.num_threads",
    "data.prefetch",
)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every key whose value differs, as ``a.b: old -> new``; a tuple equals the list JSON reads."""
    flat_old, flat_new = dict(flatten(_plain(old))), dict(flatten(_plain(new)))
    absent = object()
    return [
        f"{key}: {_show(flat_old, key)} -> {_show(flat_new, key)}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key, absent) != flat_new.get(key, absent)
    ]


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: Any) -> None:
    """Raises if the workdir's config is not that of this run, up to ``MAY_CHANGE``."""
    lines = [
        line
        for line in differences(old, new)
        if not any(line.startswith((f"{key}:", f"{key}.")) for key in MAY_CHANGE)
    ]
    if lines:
        shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
        raise MmflaxError(
            f"The workdir {workdir} belongs to a run with another config ({shown}); "
            "give another --workdir, or the config of that run."
        )


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
