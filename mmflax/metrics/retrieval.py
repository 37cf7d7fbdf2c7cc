"""Image-text retrieval: recall at K both ways, ranks, and their sum (Karpathy & Fei-Fei 2015).

A query's rank is that of its best positive among all that is not positive, so five captions of one
image do not push each other down. Ties count against us: a score that does not tell a positive from
ten others ranks it eleventh, and a NaN ranks last.

The published protocols (COCO, Flickr30k) go by ids alone. Where several pictures have the very same
text, nobody can tell which of them it means: `with_equal_texts` has groups by which all are right.
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
    scores: np.ndarray,
    query_groups: np.ndarray,
    item_groups: np.ndarray,
    *,
    rows: int = 256,
) -> np.ndarray:
    """Ranks int [q] (1 = best) of each query's best positive.

    Args:
      scores: [q n], of every query with every item.
      query_groups: [q] of each query its group, or [q m] its several, -1 standing for none; an item
        is positive if they have one in common.
      item_groups: [n] or [n m], likewise of each item; one side at most has several.
      rows: queries at a time, to save memory.
    """
    scores = np.asarray(scores)
    query_groups, item_groups = np.asarray(query_groups), np.asarray(item_groups)
    result = np.empty(len(query_groups), np.int64)
    for start in range(0, len(query_groups), rows):
        part = slice(start, start + rows)
        positive = in_common(query_groups[part], item_groups)
        _check_positives(np.asarray(positive.any(axis=1)), query_groups[part])
        best = np.where(positive, scores[part], -np.inf).max(axis=1)
        # A NaN on either side counts as ranked above.
        above = ~(scores[part] < best[:, None]) & ~positive
        result[part] = 1 + above.sum(axis=1)
    return result


def with_equal_texts(owner: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Groups for `ranks` by which a picture and a text belong together if it has an equal text.

    Equal are texts that differ at most in the case of letters and in spaces. A picture's groups are
    its different texts, so without equal texts the ranks are those by `owner`. They are no chain: a
    text that two pictures share does not make the other texts of one right for the other.

    Args:
      owner: int [t], each text's picture, 0 up to i - 1; every picture has at least one.
      texts: [t], the texts themselves.

    Returns:
      The pictures' groups [i m], -1 standing for none, and the texts' [t].
    """
    owner = np.asarray(owner)
    number: dict[str, int] = {}
    forms = (" ".join(text.casefold().split()) for text in texts)
    group = np.array([number.setdefault(form, len(number)) for form in forms], np.int64)
    pairs = np.unique(np.stack([owner, group], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0])
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    images = np.full((len(counts), counts.max()), -1)
    images[pairs[:, 0], place] = pairs[:, 1]
    return images, group


def in_common(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Whether [q n] a query and an item have a group in common."""
    if items.ndim > 1:
        return in_common(items, queries).T
    found = np.zeros((len(queries), len(items)), bool)
    for one in queries.reshape(len(queries), -1).T:
        found |= one[:, None] == items[None]
    return found


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
