"""Visual question answering as classification over a fixed list of answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.batch_keys import require
from mmflax.errors import MmflaxError
from mmflax.losses import sigmoid_cross_entropy
from mmflax.metrics.vqa import vqa_accuracy
from mmflax.tasks.pooled import answer_task, by_type, soft_score
from mmflax.tasks.task import Batch, Outputs, Record, Task

LOSSES = ("softmax", "sigmoid")


def build(
    *,
    backbone: nn.Module,
    num_answers: int,
    question_types: tuple[str, ...] = (),
    head: Mapping[str, Any] | None = None,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    caption_words: float = 0.0,
    bag_of_words: int = 0,
) -> Task:
    """The task; `head` holds fields of `VQAHead`, such as `form`.

    `loss` "softmax" learns the one `label`; -1 (an answer outside the list) has zero loss and
    counts as wrong. "sigmoid" learns `answer_scores` [b a], what each answer is worth to the
    annotators, by binary cross-entropy summed over the answers (Teney et al. 2018, "Tips and Tricks
    for Visual Question Answering"), and needs `processor.soft_answers`.

    `caption_words` above 0 adds that share of `word_region_loss`: words of the picture's caption
    are grounded in its tokens, for data that has captions (and a processor with `caption_length`).
    `bag_of_words` above 0 is the width of a `mmflax.models.heads.BagOfWords` that the head reads
    beside the fused pair: small models from scratch learn faster with it.

    Metrics: `accuracy`, and `vqa_score` if the batch has `answer_scores`; each also by type, for
    `question_types` as numbered by `question_type` in the batch. Over a whole split, where every
    record has its annotators' `answers`, also the official `vqa_accuracy`, whole and by type.
    """
    if loss not in LOSSES:
        raise MmflaxError(f"task.loss is {loss!r}; known: {', '.join(LOSSES)}.")
    if loss == "sigmoid" and label_smoothing:
        raise MmflaxError(
            f"task.label_smoothing is {label_smoothing}, but loss='sigmoid' learns soft answers as "
            "they are; give --config.task.label_smoothing=0.0 or --config.task.loss=softmax."
        )

    def sigmoid_loss(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        scores = require(
            batch, "answer_scores", "task.loss 'sigmoid'", "give --config.task.loss=softmax"
        )
        return sigmoid_cross_entropy(outputs["logits"], scores)

    task = answer_task(
        backbone,
        num_answers,
        score=score,
        head=head,
        loss=sigmoid_loss if loss == "sigmoid" else None,
        label_smoothing=label_smoothing,
        caption_words=caption_words,
        question_types=question_types,
        bag_of_words=bag_of_words,
    )

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Any]:
        values = task.metrics(outputs, batch)
        if "answer_scores" in batch:
            worth = soft_score(outputs["logits"], batch["answer_scores"])
            values |= by_type("vqa_score", worth, batch, question_types)
        return values

    return task._replace(metrics=metrics)


def score(records: Sequence[Record]) -> dict[str, float]:
    """The official accuracy of `predicted_answer` against `answers`, whole and by `question_type`
    (and `answer_type`, if known); nothing where a record lacks its annotators' answers."""
    if not records or not all(record.get("answers") for record in records):
        return {}

    def column(key: str) -> list[str] | None:
        values = [record.get(key) for record in records]
        return None if None in values else [str(value) for value in values]

    types = column("question_type")
    return vqa_accuracy(
        [str(record["predicted_answer"]) for record in records],
        [list(record["answers"]) for record in records],
        None if set(types or ()) == {"all"} else types,
        column("answer_type"),
    )
