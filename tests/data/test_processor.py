"""One object for training and asking: learns from train alone, and comes back from disk equal."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from mmflax.data.batch import check_batch
from mmflax.data.dataset import Dataset, in_memory
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError

IMAGE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


def rows(*answers, question="What is number one?"):
    return [{"image": IMAGE, "question": question, "answer": answer} for answer in answers]


@pytest.fixture(scope="module")
def processor():
    data = in_memory({"train": rows("b", "c", "a", "c"), "test": rows("zebra")})
    return Processor.learn(data, image_size=16, mean=(0.4, 0.5, 0.6))


def test_answers_are_ordered_by_frequency_then_name(processor):
    assert processor.answers == ("c", "a", "b")
    assert processor.label("a") == 1 and processor.label("zebra") == -1
    assert processor.label(None) == -1


def test_vocabulary_is_learned_from_train_alone():
    data = in_memory({"train": rows("a"), "test": rows("a", question="xylophone qqq")})
    tokens, mask = Processor.learn(data, image_size=8).text("qqq")
    assert 1 in tokens[mask]


def test_length_fits_the_longest_training_question_and_a_quarter(processor):
    assert processor.max_length == 16  # of 7 tokens
    long = in_memory({"train": rows("a", question="one two three four five six seven")})
    assert Processor.learn(long, image_size=8).max_length == 16
    assert Processor.learn(long, image_size=8, max_length=5).max_length == 5


def test_example_is_a_batch_of_one(processor):
    raw = {**rows("b")[0], "id": "x", "question_type": "all"}
    example, batch = processor.example(raw), processor.batch([raw, raw])
    check_batch(batch)
    for key, value in example.items():
        np.testing.assert_array_equal(value, batch[key][1])
    assert example["image"].shape == (16, 16, 3) and example["image"].dtype == np.float32
    np.testing.assert_array_equal(example["image"], processor.image(Image.fromarray(IMAGE)))


def test_saved_and_loaded_is_equal(processor, tmp_path):
    processor.save(tmp_path / "run")
    loaded = Processor.load(tmp_path / "run")
    assert loaded == processor
    assert loaded != dataclasses.replace(processor, mean=(0.5, 0.5, 0.5))
    np.testing.assert_array_equal(loaded.image(IMAGE), processor.image(IMAGE))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "processor.json",
        "tokenizer.json",
    ]


def test_answers_with_their_probabilities(processor):
    best, second = processor.answer(np.log([1.0, 6.0, 3.0], dtype=np.float32), top=2)
    assert (best[0], second[0]) == ("a", "b")
    np.testing.assert_allclose((best[1], second[1]), (0.6, 0.3), rtol=1e-6)
    assert len(processor.answer(np.zeros(3), top=10)) == 3
    assert processor.answer(np.array([1e4, 0.0, -1e4]))[0] == ("c", 1.0)


@pytest.mark.parametrize("question", ["", "  \n", "\u200b", 3])
def test_an_empty_question_is_an_error(processor, question):
    with pytest.raises(MmflaxError, match="empty|expected text"):
        processor.text(question)


def test_an_error_names_the_example(processor):
    with pytest.raises(MmflaxError, match="Example train:7: The image .*nowhere.png does not"):
        processor.example({"image": "nowhere.png", "question": "what?", "id": "train:7"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "stretch"}, "'stretch'; choose one of squash, crop"),
        ({"filter": "cubic"}, "'cubic'; choose one of nearest"),
        ({"image_size": 0}, "image_size is 0"),
        ({"max_length": 2}, "max_length is 2"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"answers": ("a", "a")}, "answers lists 'a' twice"),
    ],
)
def test_bad_fields(processor, fields, message):
    with pytest.raises(MmflaxError, match=message):
        dataclasses.replace(processor, **fields)


def test_bad_logits(processor):
    with pytest.raises(MmflaxError, match=r"shape \[1, 3\]; expected \[3\]"):
        processor.answer(np.zeros((1, 3)))
    with pytest.raises(MmflaxError, match="top is 0"):
        processor.answer(np.zeros(3), top=0)


def test_bad_files_are_named(processor, tmp_path):
    with pytest.raises(MmflaxError, match="no processor.json in"):
        Processor.load(tmp_path)
    processor.save(tmp_path)
    file = tmp_path / "processor.json"
    good = json.loads(file.read_text())
    for bad in ('{"format":', "[]", json.dumps({**good, "format": 9}), json.dumps({"format": 1})):
        file.write_text(bad)
        with pytest.raises(MmflaxError, match="processor.json cannot be used"):
            Processor.load(tmp_path)


def test_in_memory_names_what_is_missing():
    with pytest.raises(MmflaxError, match="Example 1 of split 'train' has no image"):
        in_memory({"train": [rows("a")[0], {"question": "why?"}]})
    with pytest.raises(MmflaxError, match="no split 'dev'; it has train"):
        in_memory({"train": rows("a")}).source("dev")


def test_what_the_examples_have_sets_the_fields():
    raw = {"image": IMAGE, "question": "what is it", "image_id": "1"}
    plain = Processor.learn(in_memory({"train": [raw]}), image_size=8)
    assert plain.answers == () and not plain.target_length and plain.image_keys
    assert not plain.second_images and not plain.absent_images
    pair = {**raw, "second_image": IMAGE, "target": "a red dog", "answer": "yes", "id": "p"}
    lone = {"image": None, "question": None, "target": "nothing", "answer": "no", "id": "l"}
    rich = Processor.learn(
        Dataset("d", {"train": [pair, {**lone, "second_image": None}]}), image_size=8
    )
    assert rich.target_length == 8 and rich.second_images and rich.absent_images
    assert not rich.image_keys
    batch = rich.batch([pair, {**lone, "second_image": None}])
    check_batch(batch)
    assert batch["image_present"].tolist() == [True, False]
    assert batch["text_mask"].any(1).tolist() == [True, False]
    assert not batch["image"][1].any() and not batch["second_image"][1].any()
    assert batch["target_mask"].sum(1).tolist() == [5, 3]
    assert rich.decode(batch["target"][0]) == "a red dog"
    zeros = rich.zeros(3)
    assert {k: (v.shape[1:], v.dtype) for k, v in zeros.items()} == {
        k: (v.shape[1:], v.dtype) for k, v in batch.items() if k != "id"
    }


def test_equal_images_have_equal_keys():
    rows = [{"image": IMAGE, "question": "q", "image_id": name} for name in "aba"]
    learned = Processor.learn(in_memory({"train": rows}), image_size=8)
    first, second, third = learned.batch(rows)["image_key"].tolist()
    assert first == third != second


def test_an_absent_image_must_be_allowed(processor):
    with pytest.raises(MmflaxError, match="give one, or --config.processor.absent"):
        processor.batch([{"image": None, "question": "what"}])


def test_soft_scores_hold_every_annotator_against_the_others():
    # 10 annotators: yes 3, no 7. By definition the mean over annotators of min(same others / 3, 1).
    answers = ["yes"] * 3 + ["no"] * 7
    raw = {"image": IMAGE, "question": "q", "answer": "no", "answers": answers}
    other = {"image": IMAGE, "question": "q", "answer": "yes"}
    learned = Processor.learn(in_memory({"train": [raw, other]}), image_size=8, soft_answers=True)
    scores = dict(zip(learned.answers, learned.batch([raw])["answer_scores"][0], strict=True))
    for answer in ("yes", "no"):
        by_hand = np.mean(
            [
                min(sum(a == answer for j, a in enumerate(answers) if j != i) / 3, 1)
                for i in range(10)
            ]
        )
        assert scores[answer] == pytest.approx(by_hand)
    assert scores["yes"] == pytest.approx(0.9)


def test_rare_answers_can_be_left_out():
    rows = [{"image": IMAGE, "question": "q", "answer": a} for a in ("cat", "cat", "dog")]
    learned = Processor.learn(in_memory({"train": rows}), image_size=8, min_answer_count=2)
    assert learned.answers == ("cat",)
    with pytest.raises(MmflaxError, match="No answer occurs 3 times"):
        Processor.learn(in_memory({"train": rows}), image_size=8, min_answer_count=3)


def test_captions_only_on_request(processor):
    raw = {"image": np.zeros((8, 8, 3), np.uint8), "question": "what is it", "caption": "a red dog"}
    assert "caption" not in processor.batch([raw])
    asked = dataclasses.replace(processor, caption_length=8)
    batch = asked.batch([raw, {**raw, "caption": None}])
    assert batch["caption"].shape == (2, 8)
    assert batch["caption_mask"][0].sum() >= 5 and not batch["caption_mask"][1].any()
    assert list(batch["caption"][0]) == list(asked.tokenizer.encode("a red dog", 8)[0])


def test_texts_to_be_written_keep_their_accents():
    raw = {"image": IMAGE, "question": "the green thing", "target": "das grüne Dreieck ist groß"}
    learned = Processor.learn(in_memory({"train": [raw]}), image_size=8)
    batch = learned.batch([raw])
    assert learned.decode(batch["target"][0]) == "das grüne dreieck ist groß"
    cased = Processor.learn(in_memory({"train": [raw]}), image_size=8, lowercase=False)
    assert cased.decode(cased.batch([raw])["target"][0]) == raw["target"]
    plain = Processor.learn(in_memory({"train": [{**raw, "target": None}]}), image_size=8)
    np.testing.assert_array_equal(plain.text("grüne")[0], plain.text("grune")[0])
