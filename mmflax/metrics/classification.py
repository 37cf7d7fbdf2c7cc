"""Classification metrics beside accuracy: F1 by class, AUROC, average precision.

On the host, over a whole split. Values are those of scikit-learn's functions of the same meaning
(`f1_score`, `roc_auc_score`, `average_precision_score`) with their default settings.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from mmflax.errors import MmflaxError

Column = Sequence[Any] | np.ndarray  # a class for each example: text or number


def per_class_f1(
    predicted: Column,
    actual: Column,
    classes: Sequence[Hashable] | None = None,
) -> dict[Hashable, float]:
    """2 TP / (2 TP + FP + FN) of each class; 0 for one that is neither given nor predicted.

    `classes` are by default those that occur on either side.
    """
    if not len(predicted) or len(predicted) != len(actual):
        raise MmflaxError(
            f"There are {len(predicted)} predictions for {len(actual)} answers; expected as many, "
            "and at least one."
        )
    if classes is None:
        classes = list(dict.fromkeys([*actual, *predicted]))
    result = {}
    for name in classes:
        ours = np.array([value == name for value in predicted])
        theirs = np.array([value == name for value in actual])
        marked = int(ours.sum() + theirs.sum())
        result[name] = float(2 * (ours & theirs).sum() / marked) if marked else 0.0
    return result


def macro_f1(
    predicted: Column,
    actual: Column,
    classes: Sequence[Hashable] | None = None,
) -> float:
    """The unweighted mean of `per_class_f1`."""
    return float(np.mean(list(per_class_f1(predicted, actual, classes).values())))


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of scores [n]: how often a positive outscores a negative.

    A tie is worth a half (Mann-Whitney U by mid-ranks). NaN where one of the two is missing.
    """
    scores, positive = _pair(scores, positive)
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return float("nan")
    _, inverse, count = np.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(count) - (count - 1) / 2.0
    above = mid_rank[inverse][positive].sum() - hits * (hits + 1) / 2.0
    return float(above / (hits * misses))


def auroc_one_vs_rest(scores: np.ndarray, actual: Column, classes: Sequence[Hashable]) -> float:
    """The unweighted mean of each class's `auroc` against the rest, from scores [n classes].

    Classes that all or none of the examples have are left out; NaN if that leaves none.
    """
    scores = np.asarray(scores)
    each = [
        auroc(scores[:, index], np.array([value == name for value in actual]))
        for index, name in enumerate(classes)
    ]
    known = [value for value in each if value == value]
    return float(np.mean(known)) if known else float("nan")


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Precision averaged over the steps of recall, tied scores forming one step; NaN without
    positives."""
    scores, positive = _pair(scores, positive)
    if not positive.any():
        return float("nan")
    values, inverse = np.unique(-scores, return_inverse=True)
    hits = np.bincount(inverse, weights=positive, minlength=len(values))
    seen = np.bincount(inverse, minlength=len(values))
    precision = np.cumsum(hits) / np.cumsum(seen)
    return float((precision * hits).sum() / hits.sum())


def _pair(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if scores.shape != positive.shape or scores.ndim != 1 or not len(scores):
        raise MmflaxError(
            f"Scores of shape {list(scores.shape)} for labels of shape {list(positive.shape)}; "
            "expected the same [n], n at least 1."
        )
    if not np.isfinite(scores).all():
        raise MmflaxError("A score is not finite, so it has no rank; look for NaN in the logits.")
    return scores, positive
