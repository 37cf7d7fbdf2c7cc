"""Search: the images that fit a text and the texts that fit an image, best first.

In two stages (`mmflax.evaluation.retrieval`): the embeddings find the nearest, and where there is a
fusion it reranks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmflax.errors import MmflaxError
from mmflax.evaluation.corpus import Corpus, PairScorer
from mmflax.evaluation.ranking import nearest


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """One result: its index in the corpus, the embeddings' cosine, and the fusion's score.

    `match` is the log-odds that the pair belongs together; None for what was not reranked.
    """

    index: int
    similarity: float
    match: float | None


class Retriever(PairScorer):
    """A retrieval task's `Search`, its parameters and its processor.

    run = mmflax.load("runs/retrieval")
    retriever = Retriever(run.task.search, run.params, run.processor)
    photos = retriever.images(paths)
    retriever.find_images("a red circle", photos, top=3)
    """

    def find_images(
        self, text: str, images: Corpus | Sequence[Any], *, top: int = 5, rerank: int = 64
    ) -> list[SearchResult]:
        """The `top` images for a text, best first; the fusion orders the nearest `rerank`."""
        corpus = images if isinstance(images, Corpus) else self.images(images)
        return self._find(self.texts([text]), corpus, "image", top, rerank)

    def find_texts(
        self, image: Any, texts: Corpus | Sequence[str], *, top: int = 5, rerank: int = 64
    ) -> list[SearchResult]:
        """The `top` texts for an image, best first; the fusion orders the nearest `rerank`."""
        corpus = texts if isinstance(texts, Corpus) else self.texts(texts)
        return self._find(self.images([image]), corpus, "text", top, rerank)

    def _find(
        self, query: Corpus, items: Corpus, kind: str, top: int, rerank: int
    ) -> list[SearchResult]:
        if top < 1 or rerank < 0:
            raise MmflaxError(f"top is {top} and rerank {rerank}; ask for at least 1 and 0.")
        if items.kind != kind:
            raise MmflaxError(f"The corpus holds {items.kind}s; expected {kind}s.")
        depth = rerank if self.reranks else 0
        index, similarity = nearest(
            query.rows["embedding"], items.rows["embedding"], max(top, depth)
        )
        pairs = zip(index[0].tolist(), similarity[0].tolist(), strict=True)
        results = [SearchResult(place, product, None) for place, product in pairs]
        if depth:
            first, rest = results[:depth], results[depth:]
            here, there = np.zeros(len(first), np.int64), index[0, : len(first)]
            scores = (
                self.match(query, items, here, there)
                if query.kind == "image"
                else self.match(items, query, there, here)
            )
            order = np.argsort(-scores, kind="stable").tolist()  # a NaN comes last
            results = [dataclasses.replace(first[i], match=float(scores[i])) for i in order] + rest
        return results[:top]
