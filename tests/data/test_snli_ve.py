"""SNLI-VE: the picture is the premise."""

import json

import pytest

from mmflax.data.datasets.public import snli_ve
from mmflax.errors import MmflaxError
from tests.data import layouts


def build(tmp_path):
    return snli_ve.build(data_dir=tmp_path / "data", source_dir=tmp_path / "flickr", partial=True)


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_reads_the_published_files(tmp_path, zipped):
    layouts.write_snli_ve(tmp_path / "flickr", zipped=zipped)
    data = build(tmp_path)
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 6,
        "validation": 3,
        "test": 3,
    }
    # One image's pairs, which the file scatters, are kept together.
    assert [data.source("train")[i]["image_id"] for i in range(6)] == ["1"] * 3 + ["2"] * 3
    assert data.source("train")[4] == {
        "id": "2.jpg#1r1n",
        "image_id": "2",
        "image": layouts.picture("2.jpg"),
        "question": "Hypothesis 1 of 2.",
        "answer": "neutral",
    }


def test_the_first_release_spelled_a_key_differently(tmp_path):
    layouts.write_snli_ve(tmp_path / "flickr")
    file = tmp_path / "flickr" / "snli_ve_test.jsonl"
    entry = layouts.snli_ve_entry(4, 0, "entailment")
    entry["Flikr30kID"] = entry.pop("Flickr30K_ID") + ".jpg"
    layouts.write_lines(file, [entry])
    assert build(tmp_path).source("test")[0]["image_id"] == "4"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gold_label": "none"}, "gold_label is 'none'; expected one of entailment, neutral, c"),
        ({"sentence2": None}, "sentence2 is None"),
        ({"pairID": "4.jpg#1r1n"}, "the id '4.jpg#1r1n' occurs twice"),
        ({"Flickr30K_ID": "1"}, "the image 1.jpg is in train and in test"),
    ],
    ids=str,
)
def test_lines_that_are_not_as_published(tmp_path, values, message):
    layouts.write_snli_ve(tmp_path / "flickr")
    entry = layouts.snli_ve_entry(4, 7, "neutral") | values
    with open(tmp_path / "flickr" / "snli_ve_test.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")
    with pytest.raises(MmflaxError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)
