"""Metrics by name, from records."""

import pytest

from mmflax import metrics
from mmflax.errors import MmflaxError

RECORDS = [
    {
        "id": str(i),
        "predicted_answer": ours,
        "answer": theirs,
        "answers": [theirs] * 9 + ["other"],
        "question_type": kind,
        "group": kind,
        "text": f"a {ours} cat",
        "references": [f"a {theirs} cat", "one cat"],
    }
    for i, (ours, theirs, kind) in enumerate(
        [("yes", "yes", "x"), ("no", "yes", "x"), ("no", "no", "y"), ("red", "red", "y")]
    )
]


def test_every_name_computes():
    found = {name: metrics.compute(name, RECORDS) for name in metrics.names()}
    assert found["accuracy"] == {"accuracy": 0.75}
    assert found["vqa_accuracy"] == {
        "vqa_accuracy": 0.75, "vqa_accuracy/x": 0.5, "vqa_accuracy/y": 1.0,
    }  # fmt: skip
    assert found["consistency"] == {"accuracy": 0.75, "consistency": 0.5}
    assert found["macro_f1"]["f1/red"] == 1.0
    assert found["captions"]["bleu_1"] == found["bleu"]["bleu_1"]
    values = [value for result in found.values() for value in result.values()]
    assert len(metrics.names()) == 8 and all(isinstance(value, float) for value in values)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(MmflaxError, match="did you mean 'rouge_l'.*cider_d, consistency"):
        metrics.compute("rouge", RECORDS)


@pytest.mark.parametrize("name", ["spice", "SPICE", "meteor", "METEOR"])
def test_what_is_not_offered_is_named_with_the_reason(name):
    with pytest.raises(MmflaxError, match=f"{name.upper()} is not offered.*Java.*known metrics"):
        metrics.compute(name, RECORDS)


def test_a_missing_field_is_named():
    records = [*RECORDS, {"id": "last", "predicted_answer": "yes"}]
    with pytest.raises(MmflaxError, match="needs 'answers' of every record, and record last"):
        metrics.compute("vqa_accuracy", records)
