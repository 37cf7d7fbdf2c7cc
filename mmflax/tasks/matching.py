"""Image-text matching and visual entailment: whether the text is true of the image.

Two answers make the matching of ViLBERT and UNITER (Chen et al. 2020, section 3.2), judged here on
given pairs; three make SNLI-VE's entailment (Xie et al. 2019): a premise in pixels.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mmflax.tasks.classification import scorer
from mmflax.tasks.pooled import answer_task
from mmflax.tasks.task import Task


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
    """The task; fields as in `classification`.

    Metrics: `accuracy`, by type, and `accuracy/answer/<answer>` over the examples whose answer it
    is, since a model that always says "no" is half right. Over a whole split macro-F1 and AUROC.
    """
    return answer_task(
        backbone,
        num_answers,
        score=scorer(tuple(answers), positive),
        head=head,
        label_smoothing=label_smoothing,
        caption_words=caption_words,
        question_types=question_types,
        answers=answers,
        bag_of_words=bag_of_words,
    )
