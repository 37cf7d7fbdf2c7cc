"""Question prior: the commonest training answer of each question text, as a baseline."""

from __future__ import annotations

from collections import Counter, defaultdict

from mmflax.data.dataset import Source, text_of
from mmflax.data.processor import Processor


def question_prior(
    train: Source, split: Source, processor: Processor | None = None, key: str = "answer"
) -> dict[str, float]:
    """Accuracy of the commonest training answer of the same question text, without a model.

    An unseen question falls back to the commonest answer of its type (Goyal et al. 2017, section 3,
    "language priors"). Two spellings are one answer where they are one to the processor. `key` is
    "answer", or "target" where the answer is written; an example without one is never right.

    Returns:
      ``{"accuracy": …, "accuracy/<question type>": …}`` on ``split``, without types where there is
      only "all".
    """
    judged = dict if processor is None else processor.judged
    by_text: dict[str | None, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(len(train)):
        raw = judged(text_of(train, index))
        if (answer := raw.get(key)) is not None:
            by_text[raw.get("question")][answer] += 1
            by_type[raw.get("question_type", "all")][answer] += 1
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for index in range(len(split)):
        raw = judged(text_of(split, index))
        question_type = raw.get("question_type", "all")
        known = by_text.get(raw.get("question")) or by_type.get(question_type) or Counter([""])
        # Ties go to the first in the alphabet, whatever the order of the examples.
        guess = min(known, key=lambda answer: (-known[answer], answer))
        for name in ("accuracy", f"accuracy/{question_type}"):
            right[name] += guess == raw.get(key)
            total[name] += 1
    names = {"accuracy"} if set(total) == {"accuracy", "accuracy/all"} else set(total)
    return {name: right[name] / total[name] for name in sorted(names)}
