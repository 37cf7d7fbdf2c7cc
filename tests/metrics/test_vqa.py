"""VQA accuracy against vqaEval.py (GT-Vision-Lab/VQA at a013f00) on 400 awkward questions."""

import pytest

from mmflax.errors import MmflaxError
from mmflax.metrics import vqa
from tests.metrics import golden

OFFICIAL = golden.load("vqa")
QUESTIONS = OFFICIAL["questions"]


def test_normalizes_as_the_official_code():
    """Over every contraction and number of its tables, and over the tricky answers."""
    assert len(OFFICIAL["normalised"]) > 200
    wrong = {a: b for a, b in OFFICIAL["normalised"].items() if vqa.normalize(a) != b}
    assert wrong == {}


def test_each_question_is_worth_what_it_officially_is():
    ours = [100 * vqa.score(q["p"], q["a"]) for q in QUESTIONS]
    assert ours == pytest.approx(OFFICIAL["each"], abs=1e-9)
    assert len(set(OFFICIAL["each"])) > 8  # every level occurs


def test_means_over_all_and_by_type():
    columns = [[q[key] for q in QUESTIONS] for key in "paqt"]
    found = vqa.vqa_accuracy(*columns)
    expected = {"vqa_accuracy": OFFICIAL["overall"]}
    expected |= {f"vqa_accuracy/{k}": v for k, v in OFFICIAL["question_type"].items()}
    expected |= {f"vqa_accuracy/answer_type/{k}": v for k, v in OFFICIAL["answer_type"].items()}
    assert {k: 100 * v for k, v in found.items()} == pytest.approx(expected, abs=1e-6)


def test_nothing_is_normalized_where_all_agree():
    assert vqa.score("Yes", ["yes"] * 10) == 0 and vqa.score("yes", ["yes"] * 10) == 1
    assert vqa.score("Yes", ["yes"] * 9 + ["no"]) == 1


@pytest.mark.parametrize(("agree", "worth"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_soft_scores_are_the_known_steps(agree, worth):
    scores = vqa.soft_scores(["A cat"] * agree + [f"dog {i}" for i in range(10 - agree)])
    assert scores["cat"] == pytest.approx(worth)
    assert scores["cat"] == vqa.score("the cat.", ["cat"] * agree + ["dog"] * (10 - agree))


def test_without_answers_is_one_sentence():
    with pytest.raises(MmflaxError, match="no annotators' answers"):
        vqa.score("yes", [])
