"""Words that differ stay different, texts that are cut are counted, ids are within their tables."""

import unicodedata

import numpy as np
import pytest

from mmflax.data.dataset import in_memory
from mmflax.data.processor import Processor
from mmflax.data.regions import region_arrays
from mmflax.data.survey import cut_texts
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError

DIFFERENT = [
    ("hacía", "hacia"), ("schön", "schon"), ("año", "ano"), ("かき", "がき"), ("はは", "ぱぱ"),
    ("हाथी कहाँ है", "हाथ कह है"), ("ไม้", "ไม่"), ("कि", "कु"), ("й", "и"), ("çok", "cok"), ("vở", "vợ"),
]  # fmt: skip


def learned(texts, **fields):
    rows = [
        {
            "image": np.full((4, 4), i, np.uint8),
            "question": text,
            "answer": str(i % 2),
            "id": str(i),
        }
        for i, text in enumerate(texts)
    ]
    return Processor.learn(in_memory({"train": rows}), image_size=4, **fields)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_words_that_differ_in_marks_are_different(one, other):
    processor = learned([one, other])
    assert not np.array_equal(processor.text(one)[0], processor.text(other)[0])
    for text in (one, other):
        assert processor.tokenizer.unk_id not in processor.text(text)[0]
        for form in ("NFC", "NFD"):
            again = unicodedata.normalize(form, text)
            assert np.array_equal(processor.text(again)[0], processor.text(text)[0])


def test_a_switch_strips_accents():
    processor = learned(["hacía", "hacia"], strip_accents=True)
    assert np.array_equal(processor.text("hacía")[0], processor.text("hacia")[0])


def test_longer_questions_have_room_and_what_is_cut_is_counted():
    short = ["a red thing", "a blue thing"]
    processor = learned(short * 4 + ["one two three four five six seven eight nine ten"])
    # 10 words and two ends, a quarter more, up to a multiple of 8.
    assert processor.max_length == 16
    fitting, longer = "a " * 14, "a " * 20
    assert cut_texts(processor.tokenizer, 16, [fitting, None, *short], "of test") is None
    note = cut_texts(processor.tokenizer, 16, [fitting, longer, *short], "of test")
    assert note.startswith("1 of the 4 texts of test is longer than 16 tokens")
    assert "--config.processor.max_length=22" in note
    assert learned(short, max_length=22).max_length == 22


def test_tokens_beyond_a_table_are_known():
    tokenizer = Tokenizer.learn(["a photo of covid19"])
    size = tokenizer.vocab_size
    assert tokenizer.beyond(size) == {} == tokenizer.beyond(size + 5)
    last = tokenizer.token(size - 1)
    assert tokenizer.beyond(size - 1) == {last: size - 1}


BOXES = [[0.0, 0.1, 0.5, 1.0]]
BAD = {
    "pixels": ({"boxes": [[0, 10, 50, 100]]}, r"boxes has \[0, 10, 50, 100\].*divide pixels"),
    "corners": ({"boxes": [[0.5, 0.1, 0.2, 1.0]]}, "x1 <= x2"),
    "nan box": ({"boxes": [[np.nan, 0.1, 0.2, 1.0]]}, "NaN or an infinity in row 0"),
    "nan feature": ({"regions": [[1.0, np.inf]]}, "regions has a NaN or an infinity"),
    "class": ({"region_labels": np.array([7])}, "classes 7 to 7; expected 0 to 2"),
    "probability": ({"region_labels": [[2.0, 0.0, 0.0]]}, "expected probabilities"),
}


@pytest.mark.parametrize("kind", BAD)
def test_numbers_that_no_detector_gives_are_refused(kind):
    changed, message = BAD[kind]
    good = {"id": "x", "regions": [[1.0, 2.0]], "boxes": BOXES, "region_labels": [[0.0, 1.0, 0.0]]}
    assert region_arrays([good], 2, 2, 3, False, "")["region_mask"].tolist() == [[True, False]]
    with pytest.raises(MmflaxError, match=message):
        region_arrays([good | changed], 2, 2, 3, False, "")
