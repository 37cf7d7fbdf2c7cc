"""Searching: which images fit a text, which texts fit an image, and how well a split is ranked.

Two stages, as in ALBEF (Li et al. 2021): every image and every text is encoded once, their
embeddings find each query's `rerank` nearest, and only those pairs go through the fusion, which
reads the encoders' kept outputs and never the pixels. For 5,000 images and 25,000 texts that is 1.9
million fused pairs instead of 125 million.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from mmflax.data.dataset import Source
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.evaluation.corpus import Corpus, CorpusEncoder, parallel
from mmflax.evaluation.ranking import nearest, reranked
from mmflax.metrics.retrieval import both_ways
from mmflax.tasks.task import Search


@dataclasses.dataclass(frozen=True)
class Found:
    """One result: its place in the corpus, the embeddings' cosine, and the fusion's score.

    `match` is the log-odds that the pair belongs together; None where it was not asked.
    """

    index: int
    similarity: float
    match: float | None


class Retriever:
    """A retrieval task's `Search`, its parameters and its processor.

        run = mmflax.load("runs/retrieval")
        retriever = Retriever(run.task.search, run.params, run.processor)
        photos = retriever.images(paths)
        retriever.find_images("a red circle", photos, top=3)

    Everything runs in padded batches of fixed sizes, so each function is compiled once a corpus
    shape, and padding changes nothing.

    Args:
      batch_size: images or texts encoded at a time.
      match_batch_size: pairs fused at a time; default 4 x `batch_size`.
      cache_dtype: how the encoders' outputs are kept, such as "bfloat16" (half the memory, and
        scores differ in the third digit); default as they come. Embeddings stay float32.
      placement: "host" gathers the rows of each batch there and sends them; "device" sends the
        corpus once and gathers there, which is faster where its memory holds it.
    """

    def __init__(
        self,
        search: Search | None,
        params: Any,
        processor: Processor,
        *,
        batch_size: int = 64,
        match_batch_size: int | None = None,
        cache_dtype: Any = None,
        placement: str = "host",
    ):
        if search is None:
            raise MmflaxError(
                "This task does not rank images and texts; train the task 'retrieval', then search."
            )
        match_batch_size = 4 * batch_size if match_batch_size is None else match_batch_size
        for name, size in (("batch_size", batch_size), ("match_batch_size", match_batch_size)):
            if size < 1:
                raise MmflaxError(f"{name} is {size}; it must be at least 1.")
        if placement not in ("host", "device"):
            raise MmflaxError(f"placement is {placement!r}; expected host or device.")
        self.match_batch_size = match_batch_size
        self.reranks = search.match is not None
        self._params, self._placement = params, placement
        self._encoder = CorpusEncoder(
            search, params, processor, batch_size=batch_size, dtype=cache_dtype
        )
        jit, spread = parallel(params)

        def match(params: Any, sides: Any, indices: Any, dtypes: Any) -> Any:
            if indices is not None:
                sides = [
                    {name: row[index] for name, row in side.items()}
                    for side, index in zip(sides, indices, strict=True)
                ]
            image, text = (
                {name: row.astype(dict(kinds)[name]) for name, row in spread(side).items()}
                for side, kinds in zip(sides, dtypes, strict=True)
            )
            return search.match(params, image, text)  # type: ignore[misc]

        self._match = jit(match, static_argnums=3)

    def images(self, images: Iterable[Any]) -> Corpus:
        """Encodes images: PIL images, paths, encoded bytes or uint8 arrays [h w 3]."""
        return self._encoder.images(images)

    def texts(self, texts: Iterable[str | None]) -> Corpus:
        """Encodes texts."""
        return self._encoder.texts(texts)

    def find_images(
        self, text: str, images: Corpus | Sequence[Any], *, top: int = 5, rerank: int = 64
    ) -> list[Found]:
        """The `top` images for a text, best first; `rerank` of them are judged by the fusion."""
        corpus = images if isinstance(images, Corpus) else self.images(images)
        return self._find(self.texts([text]), corpus, "image", top, rerank)

    def find_texts(
        self, image: Any, texts: Corpus | Sequence[str], *, top: int = 5, rerank: int = 64
    ) -> list[Found]:
        """The `top` texts for an image, best first; `rerank` of them are judged by the fusion."""
        corpus = texts if isinstance(texts, Corpus) else self.texts(texts)
        return self._find(self.images([image]), corpus, "text", top, rerank)

    def match(
        self, images: Corpus, texts: Corpus, image_index: np.ndarray, text_index: np.ndarray
    ) -> np.ndarray:
        """The fusion's scores [p] of the pairs (image_index[i], text_index[i]).

        A pair that is asked twice is computed once.
        """
        if not self.reranks:
            raise MmflaxError("This model has no fusion to match with; train with task.fused=True.")
        pairs = np.asarray(image_index, np.int64) * len(texts) + np.asarray(text_index, np.int64)
        # In order of images, so that neighbours share the rows they read.
        pairs, places = np.unique(pairs, return_inverse=True)
        scores = np.empty(len(pairs), np.float32)
        sides = [(images, pairs // len(texts)), (texts, pairs % len(texts))]
        dtypes = tuple(corpus.dtypes for corpus, _ in sides)
        stored = None
        if self._placement == "device":
            stored = [jax.device_put(dict(corpus.rows)) for corpus, _ in sides]
        size, waiting = self.match_batch_size, []
        for start in range(0, len(pairs), size):
            real = min(size, len(pairs) - start)
            take = np.minimum(np.arange(start, start + size), len(pairs) - 1)
            indices = [index[take].astype(np.int32) for _, index in sides]
            if stored is not None:
                out = self._match(self._params, stored, indices, dtypes)
            else:
                rows = [
                    {name: row[index] for name, row in corpus.rows.items()}
                    for (corpus, _), index in zip(sides, indices, strict=True)
                ]
                out = self._match(self._params, rows, None, dtypes)
            waiting.append((start, real, out))
            if len(waiting) > 1:  # one late, so that gathering overlaps with computing
                _collect(scores, waiting.pop(0))
        for item in waiting:
            _collect(scores, item)
        return scores[places.reshape(-1)]

    def _find(self, query: Corpus, items: Corpus, kind: str, top: int, rerank: int) -> list[Found]:
        if top < 1 or rerank < 0:
            raise MmflaxError(f"top is {top} and rerank {rerank}; ask for at least 1 and 0.")
        if items.kind != kind:
            raise MmflaxError(f"The corpus holds {items.kind}s; expected {kind}s.")
        depth = rerank if self.reranks else 0
        index, similarity = nearest(
            query.rows["embedding"], items.rows["embedding"], max(top, depth)
        )
        pairs = zip(index[0].tolist(), similarity[0].tolist(), strict=True)
        found = [Found(place, product, None) for place, product in pairs]
        if depth:
            first, rest = found[:depth], found[depth:]
            here, there = np.zeros(len(first), np.int64), index[0, : len(first)]
            scores = (
                self.match(query, items, here, there)
                if query.kind == "image"
                else self.match(items, query, there, here)
            )
            order = np.argsort(-scores, kind="stable").tolist()  # a NaN comes last
            found = [dataclasses.replace(first[i], match=float(scores[i])) for i in order] + rest
        return found[:top]


def evaluate_retrieval(
    search: Search,
    params: Any,
    processor: Processor,
    source: Source,
    *,
    batch_size: int = 64,
    rerank: int = 64,
    embedding_weight: float = 0.0,
    cache_dtype: Any = None,
) -> dict[str, float]:
    """Recall at K both ways over a whole split, `image_id` saying which texts are of one image.

    Args:
      source: examples with an image and a text each; those of equal `image_id` share the image,
        which is encoded once (Karpathy's splits have five texts an image).
      rerank: how many of each query's nearest the fusion judges; 0 = none.
      embedding_weight: this times the cosine is added to the fusion's score (ALBEF's code 0,
        BLIP's 1).

    Returns:
      `i2t/recall@K`, `t2i/recall@K`, `…/median_rank`, `…/mean_rank` and `rsum` of the final order;
      where the fusion judged, also `first_stage/i2t/recall@1`, `first_stage/t2i/recall@1` and
      `first_stage/rsum` of the embeddings alone.
    """
    owner, first = images_of(source)
    retriever = Retriever(search, params, processor, batch_size=batch_size, cache_dtype=cache_dtype)
    images = retriever.images(source[index].get("image") for index in first)
    texts = retriever.texts(source[index].get("question") for index in range(len(source)))
    return evaluate_corpora(
        retriever, images, texts, owner, rerank=rerank, embedding_weight=embedding_weight
    )


def evaluate_corpora(
    retriever: Retriever,
    images: Corpus,
    texts: Corpus,
    owner: np.ndarray,
    *,
    rerank: int = 64,
    embedding_weight: float = 0.0,
) -> dict[str, float]:
    """`evaluate_retrieval` of corpora that are encoded; `owner` [texts] is each text's image."""
    x, y = images.rows["embedding"], texts.rows["embedding"]
    own = np.arange(len(images))
    plain = both_ways(reranked(x, y, own, owner), reranked(y, x, owner, own))
    if not (retriever.reranks and rerank):
        return plain
    to_text, text_scores = nearest(x, y, rerank)
    to_image, image_scores = nearest(y, x, rerank)
    # Both directions at once: a pair that both ask about is fused once.
    image_index = np.concatenate([np.repeat(own, to_text.shape[1]), to_image.reshape(-1)])
    text_index = np.concatenate(
        [to_text.reshape(-1), np.repeat(np.arange(len(texts)), to_image.shape[1])]
    )
    match = retriever.match(images, texts, image_index, text_index)
    for_text = match[: to_text.size].reshape(to_text.shape) + embedding_weight * text_scores
    for_image = match[to_text.size :].reshape(to_image.shape) + embedding_weight * image_scores
    found = both_ways(
        reranked(x, y, own, owner, to_text, for_text),
        reranked(y, x, owner, own, to_image, for_image),
    )
    kept = ("i2t/recall@1", "t2i/recall@1", "rsum")
    return found | {f"first_stage/{name}": plain[name] for name in kept}


def images_of(source: Source) -> tuple[np.ndarray, list[int]]:
    """Each example's image, numbered in order of appearance, and where each is seen first."""
    numbers: dict[str, int] = {}
    owner, first = np.empty(len(source), np.int64), []
    for index in range(len(source)):
        raw = source[index]
        for key, what in (("image", "image"), ("question", "text")):
            if raw.get(key) is None:
                raise MmflaxError(
                    f"Example {raw.get('id', index)} has no {what}; retrieval is scored on "
                    "examples with both: leave it out of the split."
                )
        name = str(raw.get("image_id", index))
        if name not in numbers:
            numbers[name] = len(numbers)
            first.append(index)
        owner[index] = numbers[name]
    return owner, first


def _collect(scores: np.ndarray, item: tuple[int, int, jax.Array]) -> None:
    start, real, out = item
    scores[start : start + real] = np.asarray(jax.device_get(out), np.float32)[:real]
