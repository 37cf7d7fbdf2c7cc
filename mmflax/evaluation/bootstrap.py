"""Bootstrap confidence intervals by percentiles (Efron & Tibshirani 1993, chapter 13).

With `groups` whole groups are resampled (the cluster bootstrap), since questions about one image
are not independent, and intervals that take them for independent are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from mmflax.errors import MmflaxError

Groups = Sequence[Hashable] | np.ndarray | None
Values = Sequence[float] | np.ndarray


def interval(
    values: Sequence[Any] | np.ndarray,
    statistic: Callable[[list[Any]], float] | None = None,
    *,
    groups: Groups = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Confidence interval (low, high) of a statistic of `values` [n], by default their mean.

    Args:
      values: numbers, or any records if there is a `statistic` of lists of them.
      groups: [n]; examples of equal group are drawn together.
      samples: resamplings; the same `seed` gives the same ones on every machine.
      level: confidence. Resamplings where the statistic is NaN (a class that was not drawn) are
        left out; NaN if none remains.
    """
    options: Any = dict(groups=groups, samples=samples, seed=seed, level=level)
    if statistic is None:
        values = np.asarray(values, np.float64)
        return mean_interval(values, np.ones_like(values), **options)
    return record_interval(values, lambda drawn: {"": statistic(drawn)}, **options)[""]


def mean_interval(
    total: Values,
    count: Values,
    *,
    groups: Groups = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Confidence interval of sum(`total`) / sum(`count`) over examples [n]; see `interval`.

    Resamplings whose count is 0 are left out.
    """
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    if total.shape != count.shape or total.ndim != 1:
        raise MmflaxError(
            f"Totals have shape {list(total.shape)} and counts {list(count.shape)}; expected the "
            "same [n]."
        )
    members = _members(groups, len(total), samples, level)
    return _ends(_means(total, count, members, samples, np.random.PCG64(seed)), level)


def record_interval(
    records: Sequence[Any] | np.ndarray,
    score: Callable[[list[Any]], Mapping[str, float]],
    *,
    groups: Groups = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Confidence interval of every metric of `score(records)`; see `interval`.

    A metric that a resampling lacks (a question type that was not drawn) is estimated from the
    resamplings that have it.
    """
    members = _members(groups, len(records), samples, level)
    bits = np.random.PCG64(seed)
    estimates: dict[str, list[float]] = {}
    for _ in range(samples):
        rows = [row for group in _draw(bits, 1, len(members))[0] for row in members[group]]
        for name, value in score([records[row] for row in rows]).items():
            estimates.setdefault(name, []).append(value)
    return {name: _ends(np.array(values, np.float64), level) for name, values in estimates.items()}


def _ends(estimates: np.ndarray, level: float) -> tuple[float, float]:
    estimates = estimates[~np.isnan(estimates)]
    if not len(estimates):
        return float("nan"), float("nan")
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _means(
    total: np.ndarray,
    count: np.ndarray,
    members: list[list[int]],
    samples: int,
    bits: np.random.PCG64,
) -> np.ndarray:
    owner = np.empty(len(total), np.int64)
    for group, rows in enumerate(members):
        owner[rows] = group
    totals = np.bincount(owner, total, len(members))
    sizes = np.bincount(owner, count, len(members))
    means = np.full(samples, np.nan)
    # A block of resamplings at a time keeps memory flat for a split of any size.
    block = max(1, (1 << 22) // len(members))
    for start in range(0, samples, block):
        draw = _draw(bits, min(block, samples - start), len(members))
        drawn, size = totals[draw].sum(axis=1), sizes[draw].sum(axis=1)
        np.divide(drawn, size, out=means[start : start + len(draw)], where=size > 0)
    return means


def _draw(bits: np.random.PCG64, samples: int, groups: int) -> np.ndarray:
    """Indices [samples groups] with replacement, from raw bits: they are the same on every numpy,
    which the methods of its generators are not."""
    raw = bits.random_raw(samples * groups) >> np.uint64(11)
    return (raw * (2.0**-53 * groups)).astype(np.int64).reshape(samples, groups)


def _members(groups: Groups, size: int, samples: int, level: float) -> list[list[int]]:
    """The rows of each group, in the order in which groups appear."""
    if not size:
        raise MmflaxError("There is nothing to resample: the list of values is empty.")
    if not 0 < level < 1 or samples < 1:
        raise MmflaxError(
            f"level is {level} and samples is {samples}; expected level between 0 and 1, and at "
            "least 1 sample."
        )
    if groups is None:
        return [[index] for index in range(size)]
    if len(groups) != size:
        raise MmflaxError(f"There are {len(groups)} groups for {size} values; give one for each.")
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups.tolist() if isinstance(groups, np.ndarray) else groups):
        members.setdefault(group, []).append(index)
    return list(members.values())
