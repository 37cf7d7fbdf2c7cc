"""What a split gives to a model that has learned nothing from the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from mmflax.data.dataset import Source, has_image, text_of
from mmflax.data.processor import Processor
from mmflax.evaluation.question_prior import question_prior

_RECALL = ("in_batch_recall/i2t", "in_batch_recall/t2i")


def baselines(
    names: Collection[str], train: Source, split: Source, processor: Processor, batch_size: int
) -> dict[str, float]:
    """``{baseline/metric: value}`` on ``split``, by the metrics that its evaluation has.

    Where an answer is picked ``question_prior/accuracy`` and by type; where one is written in reply
    to a text ``question_prior/exact`` likewise; where a batch is searched
    ``chance/in_batch_recall/…``. Others have none that is not a view of the model itself.

    Args:
      names: of `mmflax.evaluation.engine.Evaluator.means`.
      train: the training split.
      batch_size: rows of the evaluation's batches.
    """
    values: dict[str, float] = {}
    if "majority/accuracy" in names:
        prior = question_prior(train, split, processor)
        values |= {f"question_prior/{name}": value for name, value in prior.items()}
    elif "exact" in names and processor.reads_text:
        prior = question_prior(train, split, processor, key="target")
        values |= {
            f"question_prior/{name.replace('accuracy', 'exact', 1)}": value
            for name, value in prior.items()
        }
    if set(names) & set(_RECALL):
        chance = recall_by_chance(split, batch_size)
        values |= {f"chance/{name}": chance for name in _RECALL}
    return values


def recall_by_chance(split: Source, batch_size: int) -> float:
    """Recall at 1 in batches of successive examples for a random order.

    A query with k right items among the batch's n finds one with probability k / n; examples of one
    image are right for each other, and those without an image or a text count nowhere.
    """
    found, total = 0.0, 0
    for start in range(0, len(split), batch_size):
        rows = range(start, min(start + batch_size, len(split)))
        raws = [(row, text_of(split, row)) for row in rows]
        images = Counter(
            str(raw.get("image_id", raw.get("id", row)))
            for row, raw in raws
            if has_image(raw) and raw.get("question") is not None
        )
        number = sum(images.values())
        found += sum(k * k for k in images.values()) / max(number, 1)
        total += number
    return found / total if total else 0.0
