"""Data that are probably not as they were meant: one sentence each, and nothing of good data."""

import io

import numpy as np
import pytest
from PIL import Image

from mmflax.data import sanity
from mmflax.data.dataset import in_memory
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError


def picture(number, width=40, height=30):
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def rows(images, **more):
    return [{"image": image, "question": "what?", "id": str(i), **more} for i, image in images]


def many(count=24, **size):
    return rows((i, picture(i, **size)) for i in range(count))


def on_disk(tmp_path, images):
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(image)
    return rows((i, str(tmp_path / f"{i}.png")) for i in range(len(images)))


CASES = {
    "good": lambda path: many(),
    "few": lambda path: many(8),
    "one": lambda path: many(1),
    "same object": lambda path: rows((i, picture) for i, picture in enumerate([picture(0)] * 24)),
    "same pixels": lambda path: rows((i, picture(0)) for i in range(24)),
    "same bytes": lambda path: rows((i, encoded(picture(0))) for i in range(24)),
    "same files": lambda path: on_disk(path, [encoded(picture(0))] * 24),
    "other bytes, same pixels": lambda path: on_disk(
        path, [encoded(picture(0), compress_level=i % 9) for i in range(24)]
    ),
    "one differs": lambda path: on_disk(
        path, [encoded(picture(0))] * 23 + [encoded(picture(1))]
    ),
    "unreadable": lambda path: on_disk(path, [b"\x89PNG"] * 24),
    "sizes": lambda path: many(18) + many(6, width=400, height=300),
    "small ones": lambda path: many(18) + many(6, width=4, height=3),
    "two sizes": lambda path: many(12) + many(12, width=80, height=60),
    "one large": lambda path: many(99) + many(1, width=400, height=300),
    "no picture": lambda path: rows((i, None) for i in range(24)),
}  # fmt: skip
SAID = {
    "few": "the train split has 8 examples, too few",
    "one": "the train split has 1 example, too few",
    "same object": "are the same", "same pixels": "are the same", "same bytes": "are the same",
    "same files": "of all 24 training examples that were compared are the same",
    "other bytes, same pixels": "are the same",
    "sizes": "0 are more than 4 times smaller and 6 more than 4 times larger than the typical "
    "40x30, and all become 32x32",
    "small ones": "6 are more than 4 times smaller and 0 more",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_of_each_and_nothing_of_good_data(case, tmp_path):
    found = sanity.notes(CASES[case](tmp_path), 32)
    assert len(found) == (case in SAID), found
    assert not found or SAID[case] in found[0]


def learn(train, **fields):
    told = []
    Processor.learn(in_memory({"train": train}), image_size=8, say=told.append, **fields)
    return told


def test_answers_with_one_example_are_counted():
    train = many(30)
    for i, row in enumerate(train):
        row["answer"] = f"rare {i}" if i < 4 else ("yes", "no")[i % 2]
    (note,) = learn(train)
    assert note.startswith("4 of the 6 answers have one training example ('rare 0', 'rare 1', ")
    assert learn(train, min_answer_count=2) == [note] or "min_answer_count=2" in note
    assert learn(train[4:]) == []


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([""] * 3, r"questions of 3 training examples have no word \(such as that of 0\)"),
        (["what?", " ", "\u200b"], r"questions of 2 training examples have no word \(such as ' '"),
    ],
)
def test_questions_without_words_are_an_error_before_training(questions, message):
    train = many(3)
    for row, question in zip(train, questions, strict=True):
        row |= {"question": question, "answer": "yes"}
    with pytest.raises(MmflaxError, match=message):
        learn(train)


def test_no_question_is_no_mistake():
    train = many(20)
    for i, row in enumerate(train):
        row |= {"question": None, "answer": ("a", "b")[i % 2]}
    assert learn(train) == []
