"""Spellings of one answer are one answer, on every side of every comparison."""

import json

import numpy as np
import pytest
from PIL import Image

from mmflax.config.reading import load_config
from mmflax.data import answers
from mmflax.data.dataset import in_memory
from mmflax.data.datasets.folder import build
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.evaluation.question_prior import question_prior
from mmflax.inference.zero_shot import _checked
from mmflax.metrics.vqa import vqa_accuracy
from mmflax.run.build import Experiment
from mmflax.run.decide import opened

IMAGE = np.zeros((8, 8, 3), np.uint8)
# spellings of one answer, and of another, to the official evaluation
ONE = [
    ("yes", "Yes", "YES", " yes ", "yes.", "yes!"),
    ("2", "two", "Two"),
    ("t-shirt", "T-Shirt", "t shirt"),
    ("dog", "a dog", "the Dog"),
    ("A", "a"),
    ("don't", "dont", "Dont"),
    ("caf\u00e9", "cafe\u0301"),
    ("1000", "1,000"),
    ("?", " ? "),
]
OTHER = [("yes", "no"), ("2", "3"), ("A", "B"), ("2.5", "25"), ("The", "a"), ("cafe", "caf\u00e9")]
CASE_ONE = [("Cat", "cat"), ("new  york", "New York"), ("caf\u00e9", "Cafe\u0301")]
CASE_OTHER = [("-1", "1"), ("C++", "C"), ("one", "1"), ("class a", "class b"), ("a cat", "cat")]


def rows(*texts, **more):
    return [{"image": IMAGE, "question": "what?", "answer": text, **more} for text in texts]


def learn(examples, **fields):
    return Processor.learn(in_memory({"train": examples}), image_size=8, **fields)


@pytest.mark.parametrize("spelled", ONE, ids=str)
def test_spellings_are_one_answer_to_vqa(spelled):
    assert len({answers.vqa_form(text) for text in spelled}) == 1
    for text in spelled:
        processor = learn(rows("zebra", *spelled[:1], *spelled[:1]), normalize_answers="vqa")
        assert processor.label(text) == 0 and processor.spelled(text) == spelled[0]
        # The annotators' words and the list meet, whichever of them is spelled how.
        scored = learn(
            [*rows(spelled[0], answers=[text] * 10), *rows("no", answers=["no"] * 10)],
            soft_answers=True,
        )
        batch = scored.batch(rows(spelled[0], answers=[text] * 9 + ["zebra"]))
        assert batch["answer_scores"][0, scored.label(text)] == pytest.approx(1.0)


@pytest.mark.parametrize("pair", OTHER, ids=str)
def test_other_answers_stay_apart(pair):
    assert len({answers.vqa_form(text) for text in pair}) == 2


def test_class_names_are_one_by_case_and_blanks_alone():
    for one in CASE_ONE:
        assert len({answers.case_form(text) for text in one}) == 1, one
        assert learn(rows(*one, one[0], "other")).answers == (one[0], "other")
    for other in CASE_OTHER:
        assert len({answers.case_form(text) for text in other}) == 2, other
        assert len(learn(rows(*other)).answers) == 2


@pytest.mark.parametrize("change", [str, str.upper, str.title])
def test_respelled_data_are_the_same_arrays(change):
    people = [
        ["yes"] * 7 + ["no"] * 3,
        ["no"] * 10,
        ["two"] * 5 + ["2"] * 5,
        ["a cat", "cat", "dog"],
    ]

    def batch(change):
        examples = [
            raw
            for given in people
            for raw in rows(change(given[0]), answers=[change(text) for text in given])
        ]
        return learn(examples, soft_answers=True).batch(examples)

    plain, other = batch(str), batch(change)
    for key in ("label", "answer_scores"):
        np.testing.assert_array_equal(plain[key], other[key])
    assert plain["answer_scores"].max(1) == pytest.approx([1.0, 1.0, 1.0, 4 / 9])


def test_the_list_shows_the_commonest_spelling_and_counts_all():
    told = []
    processor = learn(
        rows(*["Yes"] * 3, *["yes"] * 2, "YES", *["no"] * 4), say=told.append, min_answer_count=4
    )
    assert processor.answers == ("Yes", "no")
    assert told == [
        "answers are normalized, by letter case and blanks: 'Yes' / 'yes' / 'YES' (3, 2, 1 "
        "examples) are one answer, 'Yes'; off with --config.processor.normalize_answers=off"
    ]


def test_nothing_is_said_where_nothing_was_merged_and_one_answer_alone_is():
    told = []
    learn(rows("yes", "no"), say=told.append)
    assert told == []
    learn(rows("Yes", "yes"), say=told.append)
    assert len(told) == 2 and told[1].startswith("every answer of the 2 training examples is 'Yes'")


def test_the_remedy_that_is_printed_works(tmp_path):
    folder(tmp_path, train=["Yes", "yes", "no", "YES"])
    name = f"configs/folder.py:vqa:{tmp_path}"
    told = []
    steps = "--config.train.steps=1"  # then nothing is estimated
    experiment = Experiment(load_config(name, [steps]))
    learned = opened(experiment, experiment.dataset(), say=told.append).processor
    assert learned.answers == ("YES", "no") and learned.normalize_answers == "vqa"
    remedy = told[0].rpartition("off with ")[2]
    experiment = Experiment(load_config(name, [steps, remedy]))
    told.clear()
    learned = opened(experiment, experiment.dataset(), say=told.append).processor
    assert learned.answers == ("YES", "Yes", "no", "yes")
    assert not any("one answer" in note for note in told)
    assert learned.label("yEs") == -1


def test_off_compares_as_written_on_both_sides():
    processor = learn(
        rows("Two", answers=["Two", "Two", "Two", "2"]), soft_answers=True, normalize_answers="off"
    )
    batch = processor.batch(rows("Two", answers=["Two", "Two", "Two", "2"]))
    assert batch["answer_scores"].tolist() == [[pytest.approx(0.75)]]
    with pytest.raises(MmflaxError, match="normalize_answers is 'yes'; choose one of vqa, case"):
        learn(rows("a"), normalize_answers="yes")


def test_a_file_of_an_older_run_means_what_it_meant(tmp_path):
    learn(rows("Yes", "no"), soft_answers=True).save(tmp_path)
    file = tmp_path / "processor.json"
    values = json.loads(file.read_text())
    del values["normalize_answers"]
    file.write_text(json.dumps(values))
    old = Processor.load(tmp_path)
    assert old.answers == ("Yes", "no") and old.label("yes") == -1 and old.label("Yes") == 0
    people = ["Yes", "Yes", "Yes", "no"]
    assert old.batch(rows("Yes", answers=people))["answer_scores"].tolist() == [[0.0, 0.25]]


def test_predictions_and_baselines_are_compared_in_one_spelling():
    processor = learn(rows("Yes", "Yes", "no", answers=["Yes"] * 3))
    judged = processor.judged(rows("YES", answers=["yes", "maybe"])[0])
    assert judged["answer"] == "Yes" and judged["answers"] == ["Yes", "maybe"]
    assert vqa_accuracy(["Yes"], [processor.judged(rows("x", answers=["yes"] * 10)[0])["answers"]])[
        "vqa_accuracy"
    ] == pytest.approx(1.0)
    prior = question_prior(rows("Yes", "yes", "no"), rows("YES", "yes"), processor)
    assert prior["accuracy"] == 1.0


def test_labels_of_zero_shot_are_different_texts():
    assert _checked(["cat", "dog"]) == ["cat", "dog"]
    with pytest.raises(MmflaxError, match="labels hold 'Cat' and 'cat'; expected different texts"):
        _checked(["cat", "Cat"])


def folder(root, **splits):
    for number, (split, given) in enumerate(splits.items()):
        (root / split).mkdir(parents=True)
        lines = []
        for index, answer in enumerate(given):
            name, key = f"{index}.png", "answers" if isinstance(answer, list) else "answer"
            Image.new("RGB", (8, 8), (index, number, 0)).save(root / split / name)
            lines.append(json.dumps({"file_name": name, "question": "what?", key: answer}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))


def test_a_folder_takes_another_spelling_for_known(tmp_path):
    folder(tmp_path, train=["Yes", "two", ["No", "no", "NO", "Yes"]], test=["yes", "2", "no"])
    data = build(path=tmp_path, validation_fraction=0)
    assert data.splits["train"][2]["answer"] == "No"
    processor = Processor.learn(data, image_size=8)
    batch = processor.batch(list(data.splits["test"]))
    assert [processor.answers[label] for label in batch["label"]] == ["Yes", "two", "No"]
    with pytest.raises(MmflaxError, match=r"the answer 'yes' does not occur in train \(nearest"):
        build(path=tmp_path, validation_fraction=0, normalize_answers="off")


def test_a_class_may_be_named_in_another_spelling(tmp_path):
    folder(tmp_path, train=["Yes", "no", "no"], test=["yes"])

    def task(positive):
        words = ["--config.task.name=classification", f"--config.task.positive={positive}"]
        words.append("--config.train.steps=1")
        experiment = Experiment(load_config(f"configs/folder.py:vqa:{tmp_path}", words))
        experiment, processor, _ = opened(experiment, experiment.dataset())
        return experiment.task(processor)

    task("YES")
    with pytest.raises(MmflaxError, match="task.positive is 'maybe'"):
        task("maybe")


def test_answers_that_are_numbers_keep_their_labels():
    processor = learn(rows(2, 3, 3, True))
    assert processor.answers == (3, 2, True)
    assert [processor.label(answer) for answer in (3, "2", "TRUE", 4)] == [0, 1, 2, -1]
