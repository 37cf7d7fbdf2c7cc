"""A folder serves every task by its columns; what is wrong with it is one sentence."""

import json
import pathlib

import pytest
from PIL import Image

from mmflax.data import pipeline
from mmflax.data.datasets.folder import columns, dataset
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError


def write(root, split, rows, csv=False):
    """Rows about ``0.png`` to ``5.png``, which differ between splits."""
    directory = root / split
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(6):
        Image.new("RGB", (8, 8 + len(split)), (index * 20, 0, 0)).save(directory / f"{index}.png")
    if csv:
        (directory / "metadata.csv").write_text("\n".join(rows))
    else:
        lines = "\n".join(json.dumps(row) for row in rows)
        (directory / "metadata.jsonl").write_text(lines)


def read(root, rows, **fields):
    write(root, "train", rows)
    return dataset.build(path=root, validation_fraction=0, **fields)


def caption(index, text, **more):
    return {"file_name": f"{index}.png", "caption": text, **more}


def test_answers_of_several_people(tmp_path):
    rows = [
        {"file_name": "0.png", "question": "what?", "answers": ["a cat", "a dog", "a dog"]},
        {"file_name": "1.png", "question": "what?", "answer": "a cat", "answers": ["a dog"]},
    ]
    first, second = (read(tmp_path, rows).source("train")[index] for index in range(2))
    assert first["answers"] == ["a cat", "a dog", "a dog"] and first["answer"] == "a dog"
    assert (second["answer"], second["answers"]) == ("a cat", ["a dog"])


def test_captions_are_learned_one_by_one_and_judged_by_image(tmp_path):
    rows = [caption(0, "a"), {"file_name": "1.png", "captions": ["b", "c"]}, caption(0, "d")]
    write(tmp_path, "test", rows)
    data = read(tmp_path, rows)
    image = str(tmp_path / "train" / "0.png")
    common = {"question": None, "question_type": "all"}
    assert data.source("train")[0] == {
        "image": image, "image_id": image, "target": "a", "references": ["a", "d"],
        "id": "train/metadata.jsonl:1", **common,
    }  # fmt: skip
    assert [raw["target"] for raw in data.source("train")] == ["a", "b", "c", "d"]
    ids = [raw["id"].split(":")[1] for raw in data.source("train")]
    assert ids == ["1", "2/0", "2/1", "3"]
    assert [raw["references"] for raw in data.source("test")] == [["a", "d"], ["b", "c"]]
    assert data.info["task"] == "captioning"
    retrieval = read(tmp_path, rows, task="retrieval")
    assert [raw["question"] for raw in retrieval.source("test")] == ["a", "b", "c", "d"]
    assert retrieval.source("test")[1]["image_id"] == str(tmp_path / "test" / "1.png")
    by_image = read(tmp_path, rows, unit="image")
    assert [raw["target"] for raw in by_image.source("train")] == ["a", "b"]


def test_statements_about_an_image(tmp_path):
    rows = [
        {"file_name": "0.png", "statement": "a dog sleeps", "label": "True"},
        {"file_name": "1.png", "statement": "a dog sleeps", "label": False},
    ]
    data = read(tmp_path, rows)
    assert data.info["task"] == "matching"
    raw = data.source("train")[1]
    assert (raw["question"], raw["answer"]) == ("a dog sleeps", "false")
    assert "group" not in raw and raw["image_id"] == raw["image"]


def test_statements_about_two_images(tmp_path):
    rows = [
        {"file_name": "0.png", "file_name_2": "1.png", "statement": "both", "label": "true"},
        {"file_name": "2.png", "file_name_2": "3.png", "statement": "both", "label": "false"},
        {"file_name": "4.png", "file_name_2": "5.png", "statement": "one", "label": "false"},
    ]
    rows[2]["group"] = "s7"
    data = read(tmp_path, rows)
    raw = data.source("train")[0]
    assert data.info["task"] == "reasoning"
    assert raw["second_image"] == str(tmp_path / "train" / "1.png")
    assert [raw["group"] for raw in data.source("train")] == ["both", "both", "s7"]
    processor = Processor.learn(data, image_size=8)
    (batch,) = pipeline.eval_batches(data.source("train"), processor, batch_size=3)
    assert batch["second_image"].shape == (3, 8, 8, 3)


def test_entailment(tmp_path):
    row = {"file_name": "0.png", "hypothesis": "it rains", "label": "neutral"}
    raw = read(tmp_path, [row]).source("train")[0]
    assert (raw["question"], raw["answer"]) == ("it rains", "neutral")


def test_classification_where_image_or_text_is_absent(tmp_path):
    rows = [
        {"file_name": None, "text": "great", "label": "good"},
        {"file_name": "0.png", "text": "", "label": "bad"},
        {"file_name": "", "text": "meh", "label": 3},
    ]
    data = read(tmp_path, rows)
    raws = list(data.source("train"))
    assert [raw["image"] is None for raw in raws] == [True, False, True]
    assert [raw["question"] for raw in raws] == ["great", None, "meh"]
    assert raws[2]["answer"] == "3"
    processor = Processor.learn(data, image_size=8)
    (batch,) = pipeline.eval_batches(data.source("train"), processor, batch_size=3)
    assert batch["image_present"].tolist() == [False, True, False]
    assert batch["text_mask"].any(axis=1).tolist() == [True, False, True]
    rows.append({"file_name": None, "text": " ", "label": "bad"})
    with pytest.raises(MmflaxError, match="line 4: file_name and text are both absent"):
        read(tmp_path, rows)


def test_translation(tmp_path):
    rows = [
        {"file_name": "0.png", "source": "ein Hund", "target": "a dog"},
        {"file_name": None, "source": "zwei Hunde", "targets": ["two dogs", "2 dogs"]},
    ]
    data = read(tmp_path, rows)
    first, second = data.source("train")
    assert (first["question"], first["target"]) == ("ein Hund", "a dog")
    assert first["references"] == ["a dog"] and "answer" not in first
    assert second["image"] is None and second["references"] == ["two dogs", "2 dogs"]
    # Texts alone are held out too.
    more = [{"file_name": None, "source": f"{n}", "target": f"{n}"} for n in range(8)]
    write(tmp_path, "train", more)
    assert len(dataset.build(path=tmp_path, validation_fraction=0.25).source("validation")) == 2


def test_lists_in_csv_are_json(tmp_path):
    rows = ["file_name,captions", '0.png,"[""a"", ""b""]"']
    write(tmp_path, "train", rows, csv=True)
    data = dataset.build(path=tmp_path)
    assert [raw["target"] for raw in data.source("train")] == ["a", "b"]


def test_what_shares_an_image_or_a_statement_is_held_out_together(tmp_path):
    rows = [
        {"file_name": f"{a}.png", "file_name_2": f"{b}.png", "statement": s, "label": "true"}
        for a, b, s in ((0, 1, "x"), (1, 2, "y"), (3, 4, "y"), (5, 5, "z"))
    ]
    write(tmp_path, "train", rows)
    # Two bundles, so one of them is held out, whatever the fraction.
    for fraction in (0.1, 0.5):
        data = dataset.build(path=tmp_path, validation_fraction=fraction)
        groups = [{raw["group"] for raw in source} for source in data.splits.values()]
        assert sorted(map(sorted, groups)) == [["x", "y"], ["z"]]
    # By the statement alone.
    write(tmp_path, "train", [rows[0] | {"statement": "y"}, rows[2], rows[3]])
    groups = [
        {raw["group"] for raw in source}
        for source in dataset.build(path=tmp_path, validation_fraction=0.9).splits.values()
    ]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (caption(0, ""), "caption is empty"),
        (caption(0, None), "caption is empty"),
        ({"file_name": "0.png", "captions": []}, r"captions is \[\]; expected a list of texts"),
        ({"file_name": "0.png", "captions": "a"}, "captions is 'a'; expected a list of texts"),
        ({"file_name": "0.png", "captions": "[a"}, r"captions is '\[a'; it is not a JSON list"),
        ({"file_name": "0.png", "captions": ["a", ["b"]]}, r"captions is \['b'\]; expected text"),
        ({"file_name": "0.png", "captoin": "a"}, "'captoin'; rename it to 'caption'"),
        ({"filename": "0.png", "caption": "a"}, "'filename'; rename it to 'file_name'"),
        ({"file_name": "0.png", "hypotesis": "a"}, "'hypotesis'; rename it to 'hypothesis'"),
        ({"file_name": "0.png", "quesiton": "a"}, "'quesiton'; rename it to 'question'"),
        ({"file_name": None, "caption": "a"}, "file_name is empty"),
        ({"file_name": "9.png", "caption": "a"}, "9.png does not exist"),
        (
            {"file_name": "0.png", "file_name_2": "9.png", "statement": "a", "label": "true"},
            "9.png does not exist",
        ),
        (
            {"file_name": "0.png", "file_name_2": "/x.png", "statement": "a", "label": "true"},
            "file_name_2 '/x.png' leads out of",
        ),
        (
            {"file_name": "0.png", "file_name_2": "1.png", "statment": "a", "label": "true"},
            "'statment'; rename it to 'statement'",
        ),
        ({"file_name": "0.png", "statement": "a", "label": "yes"}, "label is 'yes'; expected true"),
        ({"file_name": "0.png", "statement": "a"}, r"'label' is missing \(found: file_name, st"),
        ({"text": "a", "label": "b"}, r"'file_name' is missing .*needs file_name, text, label"),
        (
            {"file_name": "0.png", "source": "a"},
            "'target' is missing .*needs file_name, source, target or targets",
        ),
        (
            {"file_name": "0.png", "question": "a"},
            "'answer' is missing .*needs file_name, question, answer or answers",
        ),
        (
            {"file_name": "0.png", "zzz": 1},
            r"no column says what the task is \(found: file_name, zzz\); expected one of question ",
        ),
    ],
    ids=str,
)
def test_a_bad_row_names_file_and_line(tmp_path, row, message):
    with pytest.raises(MmflaxError, match=rf"train/metadata\.jsonl, line 1: .*{message}") as caught:
        read(tmp_path, [row])
    assert "\n" not in str(caught.value)


def test_the_first_row_decides_unless_the_task_is_named(tmp_path):
    rows = [caption(0, "a"), {"file_name": "1.png", "text": "a", "label": "b"}]
    with pytest.raises(MmflaxError, match="line 2: the column 'caption' is missing"):
        read(tmp_path, rows)
    with pytest.raises(MmflaxError, match="line 1: the column 'label' is missing"):
        read(tmp_path, rows, task="classification")


def test_the_same_row_twice(tmp_path):
    rows = [caption(0, "a"), caption(1, "a"), caption(0, "a")]
    with pytest.raises(MmflaxError, match=r"jsonl, line 3: the same row as .*jsonl, line 1"):
        read(tmp_path, rows)
    assert len(read(tmp_path, rows, allow_repeats=True).source("train")) == 3


def test_an_image_in_two_splits_by_name(tmp_path):
    write(tmp_path, "test", [caption("../train/0", "a")])
    rows = [caption(1, "b"), caption(0, "c")]
    with pytest.raises(MmflaxError) as caught:
        read(tmp_path, rows)
    name = tmp_path / "train" / "0.png"
    assert str(caught.value).startswith(
        f"test/metadata.jsonl, line 1: the image {name} of test is {name} of train "
        "(train/metadata.jsonl, line 2)"
    )
    assert read(tmp_path, rows, allow_leak=True).info["images_in_two_splits"] == 1


@pytest.mark.parametrize("split", ["test", "val"])
def test_an_image_in_two_splits_by_content(tmp_path, split):
    write(tmp_path, split, [caption(0, "a"), caption(3, "b")])
    write(tmp_path, "train", [caption(1, "b"), caption(2, "c")])
    fields = {"path": tmp_path, "validation_fraction": 0}
    assert "images_in_two_splits" not in dataset.build(**fields).info
    copy = (tmp_path / "train" / "2.png").read_bytes()
    (tmp_path / split / "3.png").write_bytes(copy)
    with pytest.raises(
        MmflaxError, match=rf"{split}/3\.png of \w+ has the same bytes as .*train/2\.png of train"
    ):
        dataset.build(**fields)
    assert dataset.build(**fields, allow_leak=True).info["images_in_two_splits"] == 1


@pytest.mark.parametrize("content", ["empty", "page", "cut"])
def test_what_cannot_be_read_is_no_leak(tmp_path, content):
    for split in ("train", "test"):
        write(tmp_path, split, [caption(index, f"{split} {index}") for index in range(6)])
    whole = (tmp_path / "train" / "0.png").read_bytes()
    damaged = {"empty": b"", "page": b"<html>gone</html>", "cut": whole[:40]}[content]
    for split in ("train", "test"):
        (tmp_path / split / "3.png").write_bytes(damaged)
    fields = dict(path=tmp_path, validation_fraction=0, max_bad_fraction=0.2)
    assert "images_in_two_splits" not in dataset.build(**fields, allow_leak=True).info
    assert len(dataset.build(**fields).source("test")) == 6
    (tmp_path / "test" / "0.png").write_bytes(whole)
    with pytest.raises(MmflaxError, match="has the same bytes"):
        dataset.build(**fields)


def test_copies_are_not_held_out_apart(tmp_path):
    rows = [caption(index, f"{index}") for index in range(4)]
    write(tmp_path, "train", rows)
    copy = (tmp_path / "train" / "0.png").read_bytes()
    for index in range(1, 4):
        (tmp_path / "train" / f"{index}.png").write_bytes(copy)
    data = dataset.build(path=tmp_path)
    assert list(data.splits) == ["train"] and "nothing can be held out" in data.describe()
    assert "validation" in dataset.build(path=tmp_path, allow_leak=True).splits


def test_questions_count_shared_images_unless_they_are_forbidden(tmp_path):
    row = {"file_name": "../train/0.png", "question": "a", "answer": "b"}
    write(tmp_path, "test", [row])
    assert read(tmp_path, [row]).info["images_in_two_splits"] == 1
    with pytest.raises(MmflaxError, match="allow_leak=True"):
        read(tmp_path, [row], allow_leak=False)


def test_the_digest_covers_every_text(tmp_path):
    row = {"file_name": None, "source": "a", "targets": ["b", "c"]}
    digests = {
        read(tmp_path, [row | change]).info["sha256"]
        for change in ({}, {"source": "x"}, {"targets": ["b", "x"]}, {"file_name": "0.png"})
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "vga"}, "task is 'vga'; choose one of vqa, entailment"),
        ({"unit": "pair"}, "unit is 'pair'; choose 'caption', 'image' or None"),
    ],
)
def test_bad_fields(tmp_path, fields, message):
    with pytest.raises(MmflaxError, match=message):
        dataset.build(path=tmp_path, **fields)


def test_the_table_of_columns_is_whole():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for task, layout in columns.LAYOUTS.items():
        required = ", ".join(
            " or ".join(f"`{name}`" for name in column.names) for column in layout.required
        )
        optional = ", ".join(f"`{column.name}`" for column in layout.optional)
        assert f"| `{task}` | {required} | {optional}".rstrip() in text
