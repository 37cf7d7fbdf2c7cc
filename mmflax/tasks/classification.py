"""Classes of an image with its text: sentiment, hateful memes, genres.

Such classes are seldom even, so beside accuracy a split is judged by macro-F1 and AUROC (Kiela et
al. 2020, "The Hateful Memes Challenge").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from scipy.special import softmax

from mmflax.errors import MmflaxError, option
from mmflax.metrics.classification import auroc, auroc_one_vs_rest, average_precision, macro_f1
from mmflax.tasks.pooled import answer_task
from mmflax.tasks.task import Record, Task


def build(
    *,
    backbone: nn.Module,
    num_answers: int,
    answers: tuple[str, ...] = (),
    question_types: tuple[str, ...] = (),
    head: Mapping[str, Any] | None = None,
    positive: str | None = None,
    label_smoothing: float = 0.0,
    caption_words: float = 0.0,
    bag_of_words: int = 0,
) -> Task:
    """The task; `head` holds fields of `VQAHead`. Label `i` means `answers[i]`; -1 has zero loss
    and counts as wrong.

    `positive` names the class that AUROC and average precision are of. By default two classes are
    judged by the second, which is the rarer since answers are ordered by frequency (AUROC is the
    same for either), and more by the mean of each against the rest. `caption_words` and
    `bag_of_words`: see `vqa`.

    Metrics: `accuracy`, and by type. Over a whole split: see `scorer`.
    """
    return answer_task(
        backbone,
        num_answers,
        score=scorer(tuple(answers), positive),
        head=head,
        label_smoothing=label_smoothing,
        caption_words=caption_words,
        question_types=question_types,
        bag_of_words=bag_of_words,
    )


def scorer(
    answers: tuple[str, ...], positive: str | None = None
) -> Callable[[Sequence[Record]], dict[str, float]]:
    """`score(records)` gives `macro_f1`, `auroc` and, for one positive class, `average_precision`.

    Records without an `answer` are left out. A measure that these records do not define (AUROC of
    one class alone), or that needs logits where too many answers are scored to keep them, is not
    given.
    """
    if positive is not None and positive not in answers:
        raise MmflaxError(
            f"task.positive is {positive!r}, which is not among the answers: {', '.join(answers)}; "
            f"give one of them, as in {option('task.positive', answers[-1])}."
        )
    if positive is None and len(answers) == 2:
        positive = answers[1]

    def score(records: Sequence[Record]) -> dict[str, float]:
        known = [record for record in records if record.get("answer") is not None]
        if not known:
            return {}
        actual = [record["answer"] for record in known]
        measures = {"macro_f1": macro_f1([record["predicted_answer"] for record in known], actual)}
        if answers and all("logits" in record for record in known):
            shares = softmax(
                np.stack([record["logits"] for record in known]).astype(np.float64), axis=1
            )
            if positive is None:
                measures["auroc"] = auroc_one_vs_rest(shares, actual, answers)
            else:
                scores = shares[:, answers.index(positive)]
                is_positive = np.array([answer == positive for answer in actual])
                measures["auroc"] = auroc(scores, is_positive)
                measures["average_precision"] = average_precision(scores, is_positive)
        return {name: value for name, value in measures.items() if not np.isnan(value)}

    return score
