"""Metrics over a whole split by name, from the records that evaluation keeps (tasks/task.py)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.metrics import captions, classification, reasoning, vqa

Records = Sequence[Mapping[str, Any]]

NOT_OFFERED = {
    "spice": "SPICE is not offered, since it is a Java program with a parser of its own",
    "meteor": "METEOR is not offered, since its matches need the WordNet and paraphrase tables of "
    "its Java program, and a score without them compares with no published one",
}


def names() -> list[str]:
    """Every name that `compute` knows."""
    return sorted(_METRICS)


def compute(name: str, records: Records) -> dict[str, float]:
    """The metric's values by name, such as `compute("vqa_accuracy", records)`.

    A metric reads `predicted_answer` with `answer` or `answers` (and `group`), or `text` with
    `references`; a record without them is named.
    """
    if name not in _METRICS:
        raise MmflaxError(_unknown(name))
    keys, function = _METRICS[name]
    if not len(records):
        raise MmflaxError(f"The metric {name!r} has no records to score.")
    for row, record in enumerate(records):
        for key in keys:
            if record.get(key) is None:
                raise MmflaxError(
                    f"The metric {name!r} needs {key!r} of every record, and record "
                    f"{record.get('id', row)} has none."
                )
    return function(*([record[key] for record in records] for key in keys), records)


def _unknown(name: str) -> str:
    if name.lower() in NOT_OFFERED:
        return f"{NOT_OFFERED[name.lower()]}; known metrics: {', '.join(names())}."
    near = difflib.get_close_matches(name, _METRICS, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is not a known metric{hint}; known metrics: {', '.join(names())}."


def _accuracy(predicted: list[str], actual: list[str], _: Records) -> dict[str, float]:
    right = [ours == theirs for ours, theirs in zip(predicted, actual, strict=True)]
    return {"accuracy": sum(right) / len(right)}


def _vqa(predicted: list[str], answers: list[list[str]], records: Records) -> dict[str, float]:
    def column(key: str) -> list[str] | None:
        values = {record.get(key) for record in records}
        if None in values or values == {"all"}:
            return None
        return [str(record[key]) for record in records]

    return vqa.vqa_accuracy(predicted, answers, column("question_type"), column("answer_type"))


def _consistency(
    predicted: list[str], actual: list[str], groups: list[str], _: Records
) -> dict[str, float]:
    return reasoning.accuracy_and_consistency(predicted, actual, groups)


def _macro_f1(predicted: list[str], actual: list[str], _: Records) -> dict[str, float]:
    each = classification.per_class_f1(predicted, actual)
    mean = classification.macro_f1(predicted, actual)
    return {"macro_f1": mean} | {f"f1/{answer}": value for answer, value in each.items()}


def _caption(function: Callable[..., float], name: str) -> Callable[..., dict[str, float]]:
    return lambda texts, references, _: {name: function(texts, references)}


def _bleu(texts: list[str], references: list[list[str]], _: Records) -> dict[str, float]:
    return {f"bleu_{n}": v for n, v in enumerate(captions.bleu(texts, references), 1)}


_CAPTION_KEYS = ("text", "references")
_METRICS: dict[str, tuple[tuple[str, ...], Callable[..., dict[str, float]]]] = {
    "accuracy": (("predicted_answer", "answer"), _accuracy),
    "vqa_accuracy": (("predicted_answer", "answers"), _vqa),
    "consistency": (("predicted_answer", "answer", "group"), _consistency),
    "macro_f1": (("predicted_answer", "answer"), _macro_f1),
    "bleu": (_CAPTION_KEYS, _bleu),
    "captions": (_CAPTION_KEYS, lambda texts, refs, _: captions.caption_scores(texts, refs)),
    **{
        name: (_CAPTION_KEYS, _caption(getattr(captions, name), name))
        for name in ("rouge_l", "cider_d")
    },
}
