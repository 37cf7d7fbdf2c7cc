"""Exact ranking by embeddings, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmflax.metrics.retrieval import ranks

_BLOCK = 256  # queries compared with everything at a time


def nearest(queries: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and products [q k] of each query's k largest products with items, best first.

    Of equal products at the edge of the k any may be taken; within, items' order decides.
    """
    k = min(k, len(items))
    index = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    for part, products in _blocks(queries, items):
        rows = np.arange(len(products))[:, None]
        best = np.sort(np.argpartition(-products, k - 1, axis=1)[:, :k], axis=1)
        order = np.argsort(-products[rows, best], axis=1, kind="stable")
        index[part] = np.take_along_axis(best, order, axis=1)
        scores[part] = products[rows, index[part]]
    return index, scores


def reranked(
    queries: np.ndarray,
    items: np.ndarray,
    query_groups: np.ndarray,
    item_groups: np.ndarray,
    candidates: np.ndarray | None = None,
    match: np.ndarray | None = None,
) -> np.ndarray:
    """Each query's rank [q] (1 = best) of its best positive, as `mmflax.metrics.retrieval` counts.

    Items are ordered by product with the query; with `candidates` [q k] these come before all
    others, in order of their `match` [q k].
    """
    best = np.empty(len(queries), np.int64)
    for part, products in _blocks(queries, items):
        scores = products.astype(np.float64)
        if candidates is not None and match is not None:
            values = match[part].astype(np.float64)
            finite = values[np.isfinite(values)]
            lift = scores.max() + 1.0 - (finite.min() if len(finite) else 0.0)
            np.put_along_axis(scores, candidates[part], values + lift, axis=1)
        best[part] = ranks(scores, query_groups[part], item_groups)
    return best


def _blocks(queries: np.ndarray, items: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(queries)))
        yield part, queries[part] @ items.T
