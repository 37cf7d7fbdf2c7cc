"""Texts decoded by a published tokenizer: as recorded, and as transformers gives them now."""

import json
import pathlib

import pytest

from mmflax.data.text.tokenizer import Tokenizer
from tests.golden import record_decoded as recorded

ROWS = json.loads((pathlib.Path(recorded.__file__).parent / "decoded.json").read_text("utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}-{len(row['config'])}")
def test_decoded_texts_are_those_recorded(row, tmp_path):
    recorded.write(tmp_path, row["kind"], row["config"])
    tokenizer = Tokenizer.load(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    for name, text in tokenizer.files().items():
        (again / name).write_text(text, encoding="utf-8")
    for one in (tokenizer, Tokenizer.load(again)):
        ids = [one.ids_and_types(text, 200)[0] for text in recorded.TEXTS]
        assert [one.decode(line) for line in ids] == row["decoded"]


def test_captions_have_no_spaces_of_tokenization():
    """The table holds both, so that it can fail."""
    first = {json.dumps(row["config"]): row["decoded"][1] for row in ROWS if row["kind"] == "blip"}
    assert first['{"clean_up_tokenization_spaces": true}'] == "don't"
    assert first['{"clean_up_tokenization_spaces": false}'] == "don ' t"


def test_words_of_a_vocabulary_of_our_own_stay_apart():
    tokenizer = Tokenizer.learn(["don't stop , cat ."])
    ids = tokenizer.ids_and_types("don't stop.", 20)[0]
    assert tokenizer.decode(ids) == "don ' t stop."


@pytest.mark.parity
def test_the_record_is_what_transformers_decodes():
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    assert recorded.record() == ROWS
