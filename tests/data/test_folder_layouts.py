"""Folders as people have them: read as they mean it, or one sentence says what to change."""

import itertools
import json
import unicodedata

import pytest
from PIL import Image

from mmflax.config.reading import load_config
from mmflax.data.datasets.folder import build
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment

HEADER = "file_name,question,answer\n"
ROW = {"file_name": "0.png", "question": "what?", "answer": "yes"}


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 1, 2)).save(path, "PNG")


def table(root, rows, split="train", name="metadata.jsonl", images=3):
    for index in range(images):
        picture(root / split / f"{index}.png", index + 10 * len(split))
    content = rows if isinstance(rows, (str, bytes)) else "\n".join(map(json.dumps, rows))
    content = content.encode() if isinstance(content, str) else content
    (root / split / name).write_bytes(content)


def read(root, **fields):
    return build(path=root, validation_fraction=0, **fields)


def rows(root, split="train", **fields):
    return list(read(root, **fields).splits[split])


def test_class_directories(tmp_path):
    shade = itertools.count()
    for split in ("train", "valid"):
        for name in ("cat", "dog", "birds/owl"):
            for index in range(2):
                picture(tmp_path / split / name / f"{index}.JPG", next(shade))
    data = read(tmp_path)
    assert data.info["task"] == "classification" and list(data.splits) == ["train", "validation"]
    first = data.splits["train"][0]
    assert first["answer"] == "owl" and first["question"] is None
    assert first["id"] == "train/birds/owl/0.JPG"
    processor = Processor.learn(data, image_size=8)
    assert processor.answers == ("cat", "dog", "owl")
    assert not processor.example(first)["text_mask"].any()
    with pytest.raises(MmflaxError, match="serves the task classification; data.task is 'vqa'"):
        read(tmp_path, task="vqa")
    picture(tmp_path / "train" / "loose.png")
    with pytest.raises(MmflaxError, match="loose.png lies beside the folders of the classes"):
        read(tmp_path)


def test_class_directories_without_splits(tmp_path):
    for index, name in enumerate(("rain", "rain", "snow", "snow")):
        picture(tmp_path / name / f"{index}.png", index)
    assert [row["answer"] for row in rows(tmp_path)] == ["rain", "rain", "snow", "snow"]
    (tmp_path / "snow").rename(tmp_path / "trian")
    with pytest.raises(MmflaxError, match=r"has no train/ \(its folders: rain, trian\)"):
        read(tmp_path)


def test_metadata_beside_the_root(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / split / "a.png", len(split))
    file = tmp_path / "metadata.csv"
    file.write_text("file_name,text\ntest/a.png,a dog\ntrain/a.png,a cat\n")
    data = read(tmp_path)
    assert data.info["task"] == "captioning"
    assert data.splits["train"][0]["target"] == "a cat"
    assert data.splits["test"][0]["references"] == ["a dog"]
    assert data.splits["test"][0]["id"] == "metadata.csv:2"
    file.write_text("file_name,text\na.png,a cat\n")
    with pytest.raises(MmflaxError, match=r"line 2: file_name 'a.png' lies in none of the split"):
        read(tmp_path)
    (tmp_path / "train" / "metadata.jsonl").write_text("")
    with pytest.raises(MmflaxError, match="may both describe the train split; keep one"):
        read(tmp_path)


def test_a_flat_folder_is_training_data_or_says_its_splits(tmp_path):
    for index in range(3):
        picture(tmp_path / f"{index}.png", index)
    file = tmp_path / "metadata.csv"
    file.write_text("file_name,text\n0.png,a\n1.png,b\n2.png,c\n")
    assert len(rows(tmp_path, task="retrieval")) == 3
    file.write_text("file_name,text,split\n0.png,a,val\n1.png,b,Train\n2.png,c,test\n")
    data = read(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 1, "validation": 1, "test": 1,
    }  # fmt: skip
    file.write_text("file_name,text,split\n0.png,a,extra\n")
    with pytest.raises(MmflaxError, match="split is 'extra'; expected one of train, validation"):
        read(tmp_path)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table(tmp_path, "")
    (tmp_path / "train" / "metadata.jsonl").unlink()
    columns = {
        "file_name": ["0.png", "1.png", "2.png"],
        "question": ["what?"] * 3,
        "answer": ["a", None, "c"],
        "answers": [None, ["b", "b"], None],
        "question_type": pyarrow.array([float("nan"), None, 3.0]),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "train" / "metadata.parquet")
    read_rows = rows(tmp_path)
    assert [row["answer"] for row in read_rows] == ["a", "b", "c"]
    assert [row["question_type"] for row in read_rows] == ["all", "all", "3"]
    assert read_rows[0]["id"] == "train/metadata.parquet:1"
    (tmp_path / "train" / "metadata.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(MmflaxError, match="metadata.parquet is not a Parquet file"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["Train", "training", "TRAIN"])
@pytest.mark.parametrize("other", ["val", "Dev", "valid", "validation"])
def test_names_of_splits(tmp_path, name, other):
    table(tmp_path, [ROW], split=name)
    table(tmp_path, [ROW], split=other)
    assert list(read(tmp_path).splits) == ["train", "validation"]


CSV = {
    "byte order mark": (HEADER + "0.png,what?,yes\n").encode("utf-8-sig"),
    "CRLF": (HEADER + "0.png,what?,yes\n").replace("\n", "\r\n"),
    "semicolons": "file_name;question;answer\n0.png;what?;yes\n",
    "tabs": "file_name\tquestion\tanswer\n0.png\twhat?\tyes\n",
    "blanks in the header": "file_name, question, answer\n0.png,what?,yes\n",
    "line break in quotes": HEADER + '0.png,"what\n?",yes\n',
    "empty optional columns": HEADER[:-1] + ",answers,question_type\n0.png,what?,yes,,\n",
    "answers alone": HEADER[:-1] + ',answers\n0.png,what?,,"[""yes"", ""yes"", ""no""]"\n',
    "answers of pandas": "file_name,question,answers\n0.png,what?,\"['yes', 'yes']\"\n",
}  # fmt: skip


@pytest.mark.parametrize("content", CSV.values(), ids=CSV)
def test_csv(tmp_path, content):
    table(tmp_path, content, name="metadata.csv")
    (row,) = rows(tmp_path)
    assert row["question"].replace("\n", "") == "what?" and row["answer"] == "yes"
    assert row["question_type"] == "all"


@pytest.mark.parametrize("word", ["null", "NA", "None", "nan", "007", "2.0", "TRUE"])
def test_words_of_a_csv_file_are_words(tmp_path, word):
    table(tmp_path, f"{HEADER}0.png,what?,{word}\n", name="metadata.csv")
    assert rows(tmp_path)[0]["answer"] == word


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"answer": 3}, "3"),
        ({"answer": 2.0}, "2"),
        ({"answer": 2.5}, "2.5"),
        ({"answer": True}, "true"),
        ({"answer": " yes "}, "yes"),
        ({"answer": "None"}, "None"),
        ({"answers": None}, "yes"),
        ({"answer": None, "answers": ["no", "no", "yes"]}, "no"),
        ({"answers": [{"answer": "no", "answer_id": 1}], "answer": None}, "no"),
        ({"question_type": None}, "yes"),
        ({"question_type": float("nan")}, "yes"),
        ({"question": "[MASK] is it?"}, "yes"),
    ],
    ids=str,
)
def test_values_that_are_understood(tmp_path, change, answer):
    table(tmp_path, [ROW | change])
    assert rows(tmp_path)[0]["answer"] == answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "answer is empty; fill it in"),
        (
            {"file_name": ..., "image": "0.png"},
            "found the column 'image'; rename it to 'file_name'",
        ),
        ({"answer": ["yes"]}, "expected text in quotes; a list goes into answers"),
        ({"answer": '["yes", "no"]'}, "expected text in quotes; a list goes into answers"),
        ({"answer": float("inf")}, "answer is inf; expected text"),
        ({"answer": {"a": 1}}, "expected text in quotes"),
        ({"answers": []}, "expected a list of texts"),
        ({"answers": ["a", None]}, "answers is empty"),
        ({"file_name": "http://a.b/0.png"}, "is a web address; download"),
        ({"file_name": "0.jpg"}, r"0.jpg does not exist; did you mean '0.png'\?"),
        ({"file_name": "0"}, r"0 does not exist; did you mean '0.png'\?"),
        ({"split": "Test"}, "the row's split is 'Test', and it stands in train; move it"),
        ({"file_name": "0.jpg.png"}, r"0.jpg.png does not exist; did you mean '0.png'\?"),
    ],
    ids=str,
)
def test_values_that_are_refused(tmp_path, change, message):
    table(tmp_path, [{key: value for key, value in (ROW | change).items() if value is not ...}])
    with pytest.raises(MmflaxError, match=rf"metadata\.jsonl, line 1: .*{message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("row", "images"),
    [
        ({"file_names": ["0.png", "1.png"]}, 2),
        ({"file_names": '["0.png", "1.png"]'}, 2),
        ({"left_file_name": "0.png", "right_file_name": "1.png"}, 2),
        ({"file_names": ["0.png"]}, 1),
        ({"photo_file_name": "0.png"}, 1),
    ],
    ids=str,
)
def test_other_names_for_images(tmp_path, row, images):
    table(tmp_path, [row | {"statement": "it is", "label": 1}])
    (raw,) = rows(tmp_path)
    assert raw["answer"] == "true" and raw["image"].endswith("0.png")
    assert ("second_image" in raw) == (images == 2)
    names = {"file_names": ["0.png", "1.png", "2.png"], "statement": "it is", "label": "no"}
    table(tmp_path, [names])
    with pytest.raises(MmflaxError, match="the row names 3 images"):
        read(tmp_path)


NFC, NFD = (unicodedata.normalize(form, "\u00dcbung.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("disk", "written"),
    [
        (NFD, NFC),
        (NFC, NFD),
        ("IMG.JPG", "img.jpg"),
        ("sub/a.png", "sub\\a.png"),
        ("sub/A.png", "Sub/a.PNG"),
        ("a b.png", "./a b.png"),
        ("back\\slash.png", "back\\slash.png"),
    ],
)
def test_names_are_found_however_they_are_written(tmp_path, disk, written):
    picture(tmp_path / "train" / disk)
    table(tmp_path, [ROW | {"file_name": written}], images=0)
    data = read(tmp_path)
    assert data.splits["train"][0]["image"] == str(tmp_path / "train" / disk)
    (name,) = data.origin.contents()["train"].images
    assert name == unicodedata.normalize("NFC", f"train/{disk}")


def test_a_name_that_may_be_two_files_is_none(tmp_path):
    for name in ("a.JPG", "A.jpg"):
        picture(tmp_path / "train" / name)
    table(tmp_path, [ROW | {"file_name": "a.jpg"}], images=0)
    with pytest.raises(MmflaxError, match=r"'A\.jpg' and 'a\.JPG' differ from it by letter case"):
        read(tmp_path)


def test_what_is_no_folder_of_data_is_said(tmp_path):
    (tmp_path / "train.zip").write_bytes(b"PK")
    with pytest.raises(MmflaxError, match=r"holds train\.zip, which is not read; unpack it"):
        read(tmp_path)
    with pytest.raises(MmflaxError, match=r"data\.path is the file .*unpack an archive"):
        read(tmp_path / "train.zip")
    table(tmp_path, json.dumps([ROW], indent=1))
    with pytest.raises(MmflaxError, match="this file is one JSON list"):
        read(tmp_path)
    table(tmp_path, "file_name,answer,answer\n0.png,a,b\n", name="metadata.csv")
    with pytest.raises(MmflaxError, match=r"has both metadata\.jsonl and metadata\.csv; keep one"):
        read(tmp_path)
    (tmp_path / "train" / "metadata.jsonl").unlink()
    with pytest.raises(MmflaxError, match="the column 'answer' is there twice"):
        read(tmp_path)


def test_empty_files_that_are_tolerated_are_no_leak(tmp_path):
    for split in ("train", "test"):
        table(
            tmp_path,
            [{"file_name": f"{i}.png", "caption": f"{split} {i}"} for i in range(3)],
            split,
        )
        (tmp_path / split / "2.png").write_bytes(b"")
    assert len(rows(tmp_path, max_bad_fraction=0.5)) == 3


def test_why_nothing_is_held_out_is_said(tmp_path):
    table(tmp_path, [ROW | {"file_name": f"{i}.png", "answer": str(i)} for i in range(3)])
    data = build(path=tmp_path)
    with pytest.raises(
        MmflaxError, match=r"no split 'validation'; it has train \(nothing can be h"
    ):
        data.source("validation")
    assert "no_validation: nothing can be held out" in data.describe()
    assert "no_validation" not in read(tmp_path).info


def test_a_folder_that_is_one_too_high_is_said(tmp_path):
    table(tmp_path / "mine", [ROW])
    with pytest.raises(
        MmflaxError, match=r"no train/, but .*/mine has; give --config\.data\.path=.*/mine"
    ):
        read(tmp_path)


def test_a_table_of_another_name_is_said(tmp_path):
    picture(tmp_path / "train" / "0.png")
    (tmp_path / "train" / "metadata.json").write_text("[]")
    with pytest.raises(MmflaxError, match=r"found metadata\.json, which is not read by that name"):
        read(tmp_path)


def test_a_name_from_the_root_on_is_said(tmp_path):
    table(tmp_path, [ROW | {"file_name": "train/0.png"}])
    with pytest.raises(MmflaxError, match=r"is relative to the metadata file; write '0\.png'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "task"),
    [
        ([{"label": "a", "text": "x"}], [{"label": "b", "text": "x"}], "classification"),
        ([{"caption": "a"}], [{"caption": "b", "file_name": "../train/0.png"}], "captioning"),
        ([{"caption": "a"}, {"caption": "a"}], [{"caption": "b"}], "captioning"),
    ],
    ids=["unseen_answers", "allow_leak", "allow_repeats"],
)
def test_remedies_work_as_they_are_printed(tmp_path, train, test, task):
    for split, given in (("train", train), ("test", test)):
        table(tmp_path, [{"file_name": "0.png"} | row for row in given], split)
    name, given = f"configs/folder.py:{task}:{tmp_path}", ["--config.data.validation_fraction=0"]
    with pytest.raises(MmflaxError, match="--config") as caught:
        Experiment(load_config(name, given)).dataset()
    remedy = next(word for word in str(caught.value).split() if word.startswith("--config."))
    Experiment(load_config(name, [*given, remedy.rstrip(",;.")])).dataset()
