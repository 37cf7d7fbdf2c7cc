"""Retrieval over a whole split: recall at K both ways, in two stages (Li et al. 2021, ALBEF).

Every image and every text is encoded once, their embeddings rank everything, and of each query only
the nearest pairs go through the fusion, which reads the encoders' kept outputs and never the
pixels. For 5,000 images and 25,000 texts that is 1.9 million fused pairs instead of 125 million.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmflax.data.dataset import (
    Raw,
    Source,
    Subset,
    has_image,
    select_image,
    showing,
    text_of,
    whole_of,
)
from mmflax.data.image.bad_images import BadImages, OnBad
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.evaluation.corpus import Corpus, PairScorer
from mmflax.evaluation.ranking import nearest, reranked
from mmflax.metrics.retrieval import both_ways, with_equal_texts
from mmflax.tasks.task import Search


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
    equal_texts: bool = False,
    max_bad_fraction: float = 0.0,
    on_bad: OnBad | None = None,
) -> dict[str, float]:
    """Recall at K both ways over a whole split, `image_id` saying which texts are of one image.

    Args:
      source: those of equal `image_id` share the image, which is encoded once (Karpathy's splits
        have five texts an image). Examples that lack the image or the text are left out, as in
        training.
      rerank: how many of each query's nearest the fusion orders; 0 = none.
      embedding_weight: this times the cosine is added to the fusion's score (ALBEF's code 0,
        BLIP's 1).
      equal_texts: whether a text that equals one of an image's own is right for it, too, as nobody
        can tell them apart (`mmflax.metrics.retrieval.with_equal_texts`). That is how your own
        folder is counted. The published protocols go by ids alone, and COCO has captions that
        occur twice, so elsewhere it is off and figures stay comparable with published ones.
      max_bad_fraction: share of the images that may be unreadable; they are left out of both sides
        with their texts. 0 = the first one stops.
      on_bad: called once with the id and the reason of each.

    Returns:
      `i2t/recall@K`, `t2i/recall@K`, `…/median_rank`, `…/mean_rank` and `rsum` of the final order;
      with reranking also `first_stage/i2t/recall@1`, `first_stage/t2i/recall@1` and
      `first_stage/rsum` of the embeddings alone.
    """
    texts_only = (text_of(source, index) for index in range(len(source)))
    complete = [
        index
        for index, raw in enumerate(texts_only)
        if has_image(raw) and raw.get("question") is not None
    ]
    if not complete:
        raise MmflaxError(
            "No example of the split has both an image and a text, which retrieval ranks by each "
            "other; add such examples."
        )
    whole = whole_of(source) if whole_of(source) > len(source) else None
    source = Subset(source, complete)
    owner, first = images_of(source)
    scorer = PairScorer(search, params, processor, batch_size=batch_size, cache_dtype=cache_dtype)
    bad = BadImages(len(first), max_bad_fraction, on_bad, whole)
    images = scorer.images((_shown(source[index]) for index in first), bad)
    if images.places is not None and len(images) < len(first):
        number = np.full(len(first), -1)
        number[images.places] = np.arange(len(images))
        kept = np.flatnonzero(number[owner] >= 0)
        source, owner = Subset(source, kept.tolist()), number[owner[kept]]
    words = [text_of(source, index)["question"] for index in range(len(source))]
    groups = with_equal_texts(owner, words) if equal_texts else None
    return evaluate_corpora(
        scorer,
        images,
        scorer.texts(words),
        owner,
        rerank=rerank,
        embedding_weight=embedding_weight,
        groups=groups,
    )


def evaluate_corpora(
    scorer: PairScorer,
    images: Corpus,
    texts: Corpus,
    owner: np.ndarray,
    *,
    rerank: int = 64,
    embedding_weight: float = 0.0,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """`evaluate_retrieval` of corpora that are encoded; `owner` [texts] is each text's image.

    `groups` of the images and of the texts say which belong together; by default the owners do.
    """
    x, y = images.rows["embedding"], texts.rows["embedding"]
    own = np.arange(len(images))
    of_images, of_texts = (own, owner) if groups is None else groups
    plain = both_ways(reranked(x, y, of_images, of_texts), reranked(y, x, of_texts, of_images))
    if not (scorer.reranks and rerank):
        return plain
    to_text, text_scores = nearest(x, y, rerank)
    to_image, image_scores = nearest(y, x, rerank)
    # Both directions at once: a pair in both is fused once.
    image_index = np.concatenate([np.repeat(own, to_text.shape[1]), to_image.reshape(-1)])
    text_index = np.concatenate(
        [to_text.reshape(-1), np.repeat(np.arange(len(texts)), to_image.shape[1])]
    )
    match = scorer.match(images, texts, image_index, text_index)
    for_text = match[: to_text.size].reshape(to_text.shape) + embedding_weight * text_scores
    for_image = match[to_text.size :].reshape(to_image.shape) + embedding_weight * image_scores
    final = both_ways(
        reranked(x, y, of_images, of_texts, to_text, for_text),
        reranked(y, x, of_texts, of_images, to_image, for_image),
    )
    kept = ("i2t/recall@1", "t2i/recall@1", "rsum")
    return final | {f"first_stage/{name}": plain[name] for name in kept}


def _shown(raw: Raw) -> Raw:
    return {**showing(select_image(raw)), "id": raw.get("id", "image")}


def images_of(source: Source) -> tuple[np.ndarray, list[int]]:
    """Each example's image, numbered in order of appearance, and where each is seen first."""
    numbers: dict[str, int] = {}
    owner, first = np.empty(len(source), np.int64), []
    for index in range(len(source)):
        raw = text_of(source, index)
        name = str(raw.get("image_id", index))
        if name not in numbers:
            numbers[name] = len(numbers)
            first.append(index)
        owner[index] = numbers[name]
    return owner, first
