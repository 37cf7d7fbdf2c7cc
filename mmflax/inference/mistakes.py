"""The most confident mistakes of a model on a split, and its worst question types.

A wrong answer given with a high probability tells most about data and model: a wrong label, two
right answers, something that the picture is too small to show. Of written texts these are the ones
whose words the model found least likely, of a search the queries whose own picture lies furthest
behind the one that was chosen.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmflax.data.dataset import Source, Subset, has_image, select_image, showing, text_of
from mmflax.data.image.bad_images import BadImages
from mmflax.data.processor import Processor
from mmflax.evaluation.corpus import PairScorer
from mmflax.evaluation.engine import Evaluator, Rows
from mmflax.evaluation.retrieval import images_of
from mmflax.metrics.retrieval import in_common, with_equal_texts

_FEW = 10  # a type of fewer examples is among the worst only where there are not enough others


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One mistake; pictures are looked up when they are drawn.

    Attributes:
      place: of the example in the source.
      text: what was read, such as the question.
      wanted: the right answer or text.
      given: what the model gave, with its probability where it has one.
      chosen: place of the example whose picture was chosen instead (retrieval).
    """

    place: int
    text: str | None
    wanted: str
    given: str
    chosen: int | None = None


class Mistakes(NamedTuple):
    """The worst of `wrong` mistakes among `examples`, and the rows that were judged, if any.

    `kind` says what the task does: "answers", "texts" (it writes) or "search".
    """

    kind: str
    worst: list[Mistake]
    wrong: int
    examples: int
    rows: Rows | None = None


@dataclasses.dataclass(frozen=True)
class TypeScore:
    """A question type: its score in 0..1 over `count` examples, and that of the question prior."""

    name: str
    metric: str
    value: float
    count: int
    prior: float | None


def of_answers(engine: Evaluator, params: Any, source: Source, count: int) -> Mistakes:
    """Wrong answers, the most probable first; one that some annotator gave is not wrong."""
    rows = engine.rows(params, source)["full"]
    right = rows.metrics["accuracy"][0]
    if "vqa_score" in rows.metrics:
        right = np.maximum(right, rows.metrics["vqa_score"][0])
    wrong = [
        row
        for row in np.flatnonzero(right <= 0).tolist()
        if rows.records[row].get("answer") is not None
    ]
    wrong.sort(key=lambda row: -rows.records[row]["probability"])
    worst = []
    for row in wrong[:count]:
        record = rows.records[row]
        given = f"{record['predicted_answer']} ({record['probability']:.0%})"
        place, text = rows.places[row], record.get("question")
        worst.append(Mistake(place, text, str(record["answer"]), given))
    return Mistakes("answers", worst, len(wrong), len(rows.places), rows)


def of_texts(
    judge: Evaluator, writer: Evaluator, params: Any, source: Source, count: int
) -> Mistakes:
    """Texts that are not written as wanted, those with the least likely words first.

    Args:
      judge: evaluates the task without writing, which costs one forward pass.
      writer: evaluates it with; it sees the chosen examples alone.
    """
    rows = judge.rows(params, source)["full"]
    right, known = rows.metrics["exact"]
    surprise, words = rows.metrics["nll"]
    wrong = np.flatnonzero((right <= 0) & (known > 0))
    order = np.argsort(-(surprise[wrong] / np.maximum(words[wrong], 1)), kind="stable")
    places = [rows.places[row] for row in wrong[order][:count].tolist()]
    if not places:
        return Mistakes("texts", [], 0, len(rows.places), rows)
    written = writer.rows(params, Subset(source, places))["full"]
    worst = []
    for row, record in zip(written.places, written.records, strict=True):
        wanted = str(record.get("target") or record.get("answer"))
        worst.append(Mistake(places[row], record.get("question"), wanted, record["text"]))
    return Mistakes("texts", worst, len(wrong), len(rows.places), rows)


def of_search(
    scorer: PairScorer,
    source: Source,
    count: int,
    max_bad_fraction: float = 0.0,
    *,
    equal_texts: bool = False,
) -> Mistakes:
    """Texts whose own picture is not the nearest by embedding, those furthest behind first.

    With `equal_texts` pictures of an equal text are its own, too, as in `evaluate_retrieval`.
    """
    raws = [text_of(source, index) for index in range(len(source))]
    kept = [i for i, raw in enumerate(raws) if has_image(raw) and raw.get("question") is not None]
    if not kept:
        return Mistakes("search", [], 0, 0)
    part = Subset(source, kept)
    owner, first = images_of(part)
    bad = BadImages(len(first), max_bad_fraction, None)
    shown = (
        {**showing(select_image(part[at])), "id": raws[kept[at]].get("id", "")} for at in first
    )
    images = scorer.images(shown, bad)
    usable = np.arange(len(first)) if images.places is None else images.places
    row_of = np.full(len(first), -1)
    row_of[usable] = np.arange(len(images))
    asked = np.flatnonzero(row_of[owner] >= 0)
    words = [raws[kept[at]]["question"] for at in asked.tolist()]
    texts = scorer.texts(words)
    behind = np.empty(len(asked))
    rank, best = np.empty(len(asked), int), np.empty(len(asked), int)
    own = row_of[owner[asked]]
    shows, says = with_equal_texts(own, words) if equal_texts else (np.arange(len(images)), own)
    pictures, queries = images.rows["embedding"], texts.rows["embedding"]
    for start in range(0, len(asked), 256):
        rows = slice(start, start + 256)
        scores = queries[rows] @ pictures.T
        mine = np.where(in_common(says[rows], shows), scores, -np.inf).max(axis=1)
        best[rows] = scores.argmax(axis=1)
        behind[rows] = scores.max(axis=1) - mine
        rank[rows] = 1 + (scores > mine[:, None]).sum(axis=1)
    wrong = np.flatnonzero(rank > 1)
    worst = []
    for row in wrong[np.argsort(-behind[wrong], kind="stable")][:count].tolist():
        place = kept[int(asked[row])]
        chosen = kept[first[int(usable[best[row]])]]
        given = f"the right one (its own is number {rank[row]} of {len(images)})"
        worst.append(Mistake(place, raws[place]["question"], "the left picture", given, chosen))
    return Mistakes("search", worst, len(wrong), len(asked))


def worst_types(
    rows: Rows, metric: str, priors: Mapping[str, float], count: int = 3
) -> list[TypeScore]:
    """The question types with the lowest metric, lowest first; none where there is one type.

    Args:
      metric: ``accuracy`` or ``exact``.
      priors: ``question_prior/<metric>/<type>`` of those that are known.
    """
    sums, counts = rows.metrics[metric]
    groups: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(rows.records):
        if counts[row]:
            groups[str(record.get("question_type", "all"))].append(row)
    if len(groups) < 2:
        return []
    scores = [
        TypeScore(
            name,
            metric,
            float(sums[members].sum() / counts[members].sum()),
            len(members),
            priors.get(f"question_prior/{metric}/{name}"),
        )
        for name, members in groups.items()
    ]
    scores.sort(key=lambda one: (one.count < _FEW, one.value, one.name))
    return scores[:count]


def examples(mistakes: Sequence[Mistake], source: Source, processor: Processor) -> list[Any]:
    """The batch of each mistake's example, and of the example whose picture was chosen, or None."""
    batches = []
    for one in mistakes:
        own = processor.batch([source[one.place]])
        other = None if one.chosen is None else processor.batch([source[one.chosen]])
        batches.append((own, other))
    return batches
