"""Image-text retrieval: recall at K both ways, ranks, and their sum (Karpathy & Fei-Fei 2015).

A query's rank is that of its best positive among all that is not positive, so five captions of one
image do not push each other down. Ties count against us: a score that does not tell a positive from
ten others ranks it eleventh, and a NaN ranks last.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from mmflax.errors import MmflaxError

RECALL_AT = (1, 5, 10)


def retrieval(
    scores: np.ndarray,
    image_groups: Sequence[Hashable] | np.ndarray,
    text_groups: Sequence[Hashable] | np.ndarray,
    ks: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """All measures from scores [images texts]; equal groups = they belong together.

    Returns `i2t/recall@K` (an image finds its texts), `t2i/recall@K`, their `median_rank` and
    `mean_rank` (1 is best), and `rsum`, the sum of the recalls as percentages (0..600 by default).
    """
    scores = np.asarray(scores)
    images, texts = _numbered(image_groups, text_groups)
    if scores.shape != (len(images), len(texts)):
        raise MmflaxError(
            f"The scores have shape {list(scores.shape)}; expected [{len(images)}, {len(texts)}], "
            "a row for each image and a column for each text."
        )
    return both_ways(ranks(scores, images, texts), ranks(scores.T, texts, images), ks)


def both_ways(
    image_to_text: np.ndarray, text_to_image: np.ndarray, ks: Sequence[int] = RECALL_AT
) -> dict[str, float]:
    """What `retrieval` returns, from ranks [images] and [texts]."""
    scores: dict[str, float] = {}
    for way, values in (("i2t", image_to_text), ("t2i", text_to_image)):
        scores |= {f"{way}/{name}": value for name, value in summary(values, ks).items()}
    return scores | {"rsum": 100 * sum(v for name, v in scores.items() if "recall@" in name)}


def summary(values: np.ndarray, ks: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """`recall@K`, `median_rank` and `mean_rank` of ranks [q], 1 being the best."""
    recalls = {f"recall@{k}": float((values <= k).mean()) for k in ks}
    return recalls | {
        "median_rank": float(np.median(values)),
        "mean_rank": float(values.mean()),
    }


def ranks(
    scores: np.ndarray, query_groups: np.ndarray, item_groups: np.ndarray, *, rows: int = 256
) -> np.ndarray:
    """Ranks int [q] (1 = best) from scores [q items]; `rows` queries at a time, to save memory."""
    scores = np.asarray(scores)
    query_groups, item_groups = np.asarray(query_groups), np.asarray(item_groups)
    result = np.empty(len(query_groups), np.int64)
    for start in range(0, len(query_groups), rows):
        part = slice(start, start + rows)
        positive = query_groups[part, None] == item_groups[None, :]
        _check_positives(positive.any(axis=1), query_groups[part])
        best = np.where(positive, scores[part], -np.inf).max(axis=1)
        # A NaN on either side counts as ranked above.
        above = ~(scores[part] < best[:, None]) & ~positive
        result[part] = 1 + above.sum(axis=1)
    return result


def _check_positives(has: np.ndarray, groups: np.ndarray) -> None:
    if not has.all():
        raise MmflaxError(
            f"The query of group {groups[~has][0]!r} has nothing that belongs to it; give every "
            "image a text and every text its image."
        )


def _numbered(
    images: Sequence[Hashable] | np.ndarray, texts: Sequence[Hashable] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Groups as whole numbers, the same for both sides."""
    number: dict[Hashable, int] = {}
    return tuple(  # type: ignore[return-value]
        np.array([number.setdefault(group, len(number)) for group in list(groups)], np.int64)
        for groups in (images, texts)
    )
