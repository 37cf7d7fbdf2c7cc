"""A folder of images and questions trains with no code, and each mistake in it is one sentence."""

import json

import numpy as np
import pytest
from PIL import Image

from mmflax.config.overrides import override
from mmflax.data import pipeline
from mmflax.data.datasets.folder import dataset
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from tests.hints import hints

ROW = {"file_name": "0.png", "question": "what color?", "answer": "red"}


def write(root, split, rows, images=3):
    directory = root / split
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(images):
        Image.new("RGB", (8, 8), (index * 20, 0, 0)).save(directory / f"{index}.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (directory / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def row(index, answer="red", **more):
    return {**ROW, "file_name": f"{index}.png", "answer": answer, **more}


def test_reads_the_layout(tmp_path):
    write(tmp_path, "train", [row(0), "", row(1, "größer", question_type="size"), row(2, 2)])
    write(tmp_path, "val", [row(0)])
    write(tmp_path, "test", [row(1, "2"), {**row(1), "license": "cc", "caption": "x"}])
    data = dataset.build(path=tmp_path)
    assert {split: len(source) for split, source in data.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }
    assert data.source("train")[1] == {
        "image": str(tmp_path / "train" / "1.png"),
        "question": "what color?",
        "answer": "größer",
        "question_type": "size",
        "id": "train/metadata.jsonl:3",
    }
    assert data.source("train")[2]["answer"] == "2"
    assert "train: 3 examples, e.g. 'what color?' -> 'red'" in data.describe()
    processor = Processor.learn(data, image_size=8)
    assert processor.answers == ("2", "größer", "red")
    assert processor.question_types == ("all", "size")
    (batch,) = pipeline.eval_batches(data.source("test"), processor, batch_size=2)
    assert batch["label"].tolist() == [0, 2]


def test_csv_is_the_same_data(tmp_path):
    write(tmp_path / "a", "train", [row(0), row(1, "a, b")])
    write(tmp_path / "b", "train", [row(0), row(1, "a, b")])
    (tmp_path / "b" / "train" / "metadata.jsonl").unlink()
    csv_file = tmp_path / "b" / "train" / "metadata.csv"
    csv_file.write_text(
        'file_name,question,answer\n0.png,what color?,red\n1.png,what color?,"a, b"\n'
    )
    one, two = (dataset.build(path=tmp_path / name, validation_fraction=0) for name in "ab")
    assert one.info["sha256"] == two.info["sha256"]
    csv_file.write_text("file_name,question,answer\n0.png,what color?,red, or so\n")
    with pytest.raises(MmflaxError, match=r"metadata\.csv, line 2: the row has not as many"):
        dataset.build(path=tmp_path / "b")


def test_images_may_lie_beside_the_splits_and_in_subfolders(tmp_path):
    write(tmp_path, "train", [{**ROW, "file_name": "../images/0.png"}], images=0)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "images" / "0.png")
    image = dataset.build(path=tmp_path).source("train")[0]["image"]
    assert image == str(tmp_path / "images" / "0.png")


def test_validation_is_held_out_by_image_and_keeps_every_answer_in_train(tmp_path):
    rng = np.random.default_rng(0)
    rows = [row(index, str(rng.integers(4))) for index in range(40) for _ in range(3)]
    rows += [row(7, "only here")]
    write(tmp_path, "train", rows, images=40)
    data = dataset.build(path=tmp_path, validation_fraction=0.25)
    train, held = (data.source(split) for split in ("train", "validation"))
    images = [{raw["image"] for raw in source} for source in (train, held)]
    assert len(images[1]) == 10 and not images[0] & images[1]
    assert len(train) + len(held) == len(rows)
    assert {raw["answer"] for raw in held} <= {raw["answer"] for raw in train}
    assert "only here" in {raw["answer"] for raw in train}
    # The same images again, from another place and with the rows in another order.
    write(tmp_path / "copy", "train", rows[::-1], images=40)
    again = dataset.build(path=tmp_path / "copy", validation_fraction=0.25).source("validation")
    names = [{raw["image"].rsplit("/", 1)[1] for raw in source} for source in (held, again)]
    assert names[0] == names[1]
    assert "validation" not in dataset.build(path=tmp_path, validation_fraction=0).splits


def test_holding_out_stops_before_an_answer_is_gone(tmp_path):
    write(tmp_path, "train", [row(index, str(index // 2)) for index in range(40)], images=40)
    data = dataset.build(path=tmp_path, validation_fraction=0.9)
    assert {raw["answer"] for raw in data.source("train")} == {str(index) for index in range(20)}
    assert len(data.source("validation")) == 20


def test_one_image_is_never_held_out(tmp_path):
    write(tmp_path, "train", [row(0), row(0)])
    assert list(dataset.build(path=tmp_path, validation_fraction=0.9).splits) == ["train"]


def test_unseen_answers_are_an_error_or_wrong(tmp_path):
    write(tmp_path, "train", [row(0, "green"), row(1)])
    write(tmp_path, "test", [row(0, "red"), row(1, "greem")])
    with pytest.raises(
        MmflaxError,
        match=r"test/metadata\.jsonl, line 2: the answer 'greem' .*nearest: 'green'.*"
        r"--config\.data\.unseen_answers=wrong",
    ):
        dataset.build(path=tmp_path)
    data = dataset.build(path=tmp_path, unseen_answers="wrong", validation_fraction=0)
    processor = Processor.learn(data, image_size=8)
    (batch,) = pipeline.eval_batches(data.source("test"), processor, batch_size=2)
    assert batch["label"].tolist() == [1, -1]


def without(key):
    return {name: value for name, value in ROW.items() if name != key}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"file_name": "0.png", ', "not valid JSON"),
        ('["0.png", "what?", "red"]', "expected an object"),
        ({**without("question"), "qestion": "what?"}, "column 'qestion'; rename it to 'question'"),
        ({**ROW, "question_tpye": "size"}, "'question_tpye'; rename it to 'question_type'"),
        (without("answer"), r"'answer' is missing \(found: file_name, question\)"),
        ({**ROW, "question": " "}, "question is empty"),
        ({**ROW, "answer": ""}, "answer is empty"),
        ({**ROW, "answer": None}, "answer is empty"),
        ({**ROW, "answer": ["red"]}, r"answer is \['red'\]; expected text"),
        ({**ROW, "question_type": ""}, "question_type is empty"),
        ({**ROW, "file_name": "no.png"}, "no.png does not exist"),
        ({**ROW, "file_name": "text.png"}, "text.png is not an image"),
        ({**ROW, "file_name": "../../x.png"}, "leads out of"),
        ({**ROW, "file_name": "a/../../../x.png"}, "leads out of"),
        ({**ROW, "file_name": "/etc/passwd"}, "leads out of"),
        ({**ROW, "file_name": "0.png\0"}, "leads out of"),
    ],
    ids=str,
)
def test_a_bad_row_names_file_and_line(tmp_path, bad, message):
    write(tmp_path, "train", [ROW, bad])
    (tmp_path / "train" / "text.png").write_text("not a picture")
    with pytest.raises(MmflaxError, match=rf"train/metadata\.jsonl, line 2: .*{message}") as caught:
        dataset.build(path=tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_headers_are_the_pipelines_where_some_may_be_bad(tmp_path):
    write(tmp_path, "train", [row(i) for i in range(3)])
    (tmp_path / "train" / "1.png").write_bytes(b"not an image")
    with pytest.raises(
        MmflaxError, match=r"metadata\.jsonl, line 2: .*1\.png is not an image.*, or set --config"
    ):
        dataset.build(path=tmp_path)
    data = dataset.build(path=tmp_path, max_bad_fraction=0.5, validation_fraction=0)
    processor = Processor.learn(data, image_size=8)
    (batch,) = pipeline.eval_batches(
        data.source("train"), processor, batch_size=3, max_bad_fraction=0.5
    )
    assert batch["mask"].tolist() == [True, False, True]
    (tmp_path / "train" / "1.png").unlink()
    with pytest.raises(MmflaxError, match=r"line 2: .*1\.png does not exist"):
        dataset.build(path=tmp_path, max_bad_fraction=0.5)


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
@pytest.mark.parametrize(("images", "bad"), [(20, (3,)), (20, (1, 7, 8)), (6, (0,)), (3, (2,))])
def test_the_share_that_is_advised_leaves_out_the_images(tmp_path, task, images, bad):
    if task == "vqa":
        rows = [row(index % images) for index in range(2 * images)]
    else:  # an image with one caption beside those with several
        rows = [{"file_name": f"{i}.png", "text": f"{i} {j}"} for i in range(images)
                for j in range(1 if i in bad else 4)]  # fmt: skip
    write(tmp_path, "train", rows, images)
    for index in bad:
        (tmp_path / "train" / f"{index}.png").write_bytes(b"not an image")
    with pytest.raises(MmflaxError, match="is not an image") as caught:
        dataset.build(path=tmp_path)
    assert f"(and {len(bad) - 1} more)" in str(caught.value) or len(bad) == 1
    (word,) = hints(caught.value)
    config = override({"data": {"name": "folder", "path": str(tmp_path)}}, [word])
    share = config["data"]["max_bad_fraction"]
    data = dataset.build(path=tmp_path, max_bad_fraction=share)
    processor = Processor.learn(data, image_size=8)
    fields = dict(batch_size=4, max_bad_fraction=share)
    for split in data.splits:
        source = data.source(split)
        batches = pipeline.eval_batches(source, processor, **fields)
        masked = sum(int(batch["mask"].sum()) for batch in batches)
        assert masked == len(source) - len(batches.bad)
        shown = {example["image"]: example for example in source}
        list(pipeline.eval_batches(list(shown.values()), processor, **fields))
    with pipeline.train_iterator(
        data.source("train"), processor, seed=0, num_threads=0, **fields
    ) as batches:
        for _ in range(2 * len(data.source("train")) // 4):
            assert next(batches)["mask"].all()


def test_no_share_is_advised_where_none_helps(tmp_path):
    write(tmp_path, "train", [row(0), row(1)], images=2)
    for index in range(2):
        (tmp_path / "train" / f"{index}.png").write_bytes(b"not an image")
    with pytest.raises(MmflaxError, match=r"is not an image.*\(and 1 more\)\.$") as caught:
        dataset.build(path=tmp_path, validation_fraction=0)
    assert "max_bad_fraction" not in str(caught.value)


def test_a_truncated_image_is_named_when_it_is_read(tmp_path):
    write(tmp_path, "train", [ROW])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    image = tmp_path / "train" / "0.png"
    Image.fromarray(noise).save(image)
    image.write_bytes(image.read_bytes()[:5000])
    data = dataset.build(path=tmp_path)
    processor = Processor.learn(data, image_size=8)
    with pytest.raises(
        MmflaxError, match=r"Example train/metadata\.jsonl:1: .*0\.png is damaged: .*truncated"
    ):
        processor.example(data.source("train")[0])


def test_bad_folders(tmp_path):
    with pytest.raises(MmflaxError, match="no folder .*/none; expected one that holds train/"):
        dataset.build(path=tmp_path / "none")
    (tmp_path / "trian").mkdir()
    with pytest.raises(MmflaxError, match=r"has no train/ \(its folders: trian\)"):
        dataset.build(path=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(MmflaxError, match="train has neither metadata.jsonl, metadata.csv nor"):
        dataset.build(path=tmp_path)
    metadata = tmp_path / "train" / "metadata.jsonl"
    metadata.write_text("\n")
    with pytest.raises(MmflaxError, match="metadata.jsonl has no rows"):
        dataset.build(path=tmp_path)
    metadata.write_bytes('{"answer": "größer"}'.encode("latin-1"))
    with pytest.raises(MmflaxError, match="is not UTF-8 text"):
        dataset.build(path=tmp_path)
    (tmp_path / "train" / "metadata.csv").write_text("file_name\n")
    with pytest.raises(MmflaxError, match="has both"):
        dataset.build(path=tmp_path)
    write(tmp_path, "training", [ROW])
    with pytest.raises(MmflaxError, match="names for the same split"):
        dataset.build(path=tmp_path)


@pytest.mark.parametrize(
    "fields", [{"validation_fraction": 1.0}, {"validation_fraction": -1}, {"unseen_answers": "ok"}]
)
def test_bad_fields(tmp_path, fields):
    with pytest.raises(MmflaxError, match=next(iter(fields))):
        dataset.build(path=tmp_path, **fields)


def test_no_folder_given_says_how():
    with pytest.raises(MmflaxError, match="folder.py:vqa:DIR"):
        dataset.build(path="")
