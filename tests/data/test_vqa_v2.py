"""VQAv2 as published becomes raw examples; a file that is not as published is one sentence."""

import json
import zipfile

import pytest

from mmflax.data import pipeline
from mmflax.data.dataset import text_of
from mmflax.data.datasets.public import vqa_v2
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from tests.data import layouts


def build(tmp_path, **fields):
    fields = {"partial": True, "source_dir": tmp_path / "coco", **fields}
    return vqa_v2.build(data_dir=tmp_path / "data", **fields)


@pytest.mark.parametrize("zipped", [False, True], ids=["folders", "zips"])
def test_reads_the_published_files(tmp_path, zipped):
    layouts.write_vqa(tmp_path / "coco", zipped=zipped)
    data = build(tmp_path)
    assert {name: len(source) for name, source in data.splits.items()} == {
        "train": 8,
        "validation": 4,
        "test": 4,
        "test_dev": 2,
    }
    name = "COCO_train2014_000000000002.jpg"
    assert data.source("train")[3] == {
        "id": "2001",
        "image_id": "2",
        "image": layouts.picture(name),
        "question": "What is number 1 here?",
        "answer": "answer 1",
        "answers": ["answer 1"] * 8 + ["a cat"] * 2,
        "question_type": "yes/no",
    }
    test = data.source("test_dev")[1]
    assert (test["id"], test["image_id"], test["question_type"]) == ("202001", "202", "all")
    assert "answer" not in test and test["image"][:2] == b"\xff\xd8"
    processor = Processor.learn(data, image_size=8, soft_answers=True)
    assert processor.question_types == ("all", "other", "yes/no")
    (batch,) = pipeline.eval_batches(data.source("validation"), processor, batch_size=4)
    assert batch["id"].tolist() == ["101000", "101001", "102000", "102001"]
    assert (batch["label"] >= 0).all() and batch["answer_scores"].max() == 1


def test_question_types(tmp_path):
    layouts.write_vqa(tmp_path / "coco")
    found = [
        build(tmp_path, question_type=kind).source("train")[0]["question_type"]
        for kind in vqa_v2.QUESTION_TYPES
    ]
    assert found == ["other", "what is", "all"]
    with pytest.raises(MmflaxError, match="question_type is 'words'; choose one of answer_type"):
        build(tmp_path, question_type="words")


def test_annotations_may_stay_in_their_zips(tmp_path):
    root = tmp_path / "coco"
    layouts.write_vqa(root)
    for archive, members in {
        "v2_Questions_Train_mscoco.zip": ["v2_OpenEnded_mscoco_train2014_questions.json"],
        "v2_Annotations_Train_mscoco.zip": ["v2_mscoco_train2014_annotations.json"],
        "v2_Questions_Test_mscoco.zip": [
            "v2_OpenEnded_mscoco_test2015_questions.json",
            "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        ],
    }.items():
        with zipfile.ZipFile(root / archive, "w") as file:
            for member in members:
                file.write(root / member, member)
                (root / member).unlink()
    data = build(tmp_path)
    assert len(data.source("train")) == 8 and len(data.source("test_dev")) == 2


def test_test_splits_are_optional(tmp_path):
    layouts.write_vqa(tmp_path / "coco", sizes=(2, 1, 0))
    assert list(build(tmp_path).splits) == ["train", "validation"]
    # Its questions alone are not enough: they are asked about images.
    layouts.write_vqa(tmp_path / "coco", sizes=(2, 1, 1))
    (tmp_path / "coco" / "test2015").rename(tmp_path / "elsewhere")
    with pytest.raises(MmflaxError, match=r"lacks 1 .*test2015 \(or test2015.zip\) from https"):
        build(tmp_path)


def test_texts_can_be_read_without_their_images(tmp_path):
    layouts.write_vqa(tmp_path / "coco")
    data = build(tmp_path)
    for source in data.splits.values():
        for index in range(len(source)):
            assert text_of(source, index) == source[index] | {"image": b""}


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def drop_last(key):
    return lambda value: value[key].pop()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("questions", drop_last("questions"), "question_id 4001 is annotated, but not asked"),
        ("annotations", drop_last("annotations"), "question_id 1000 is missing"),
        (
            "annotations",
            lambda value: value["annotations"][0].update(image_id=1),
            "question_id 4001 is about another image",
        ),
        (
            "annotations",
            lambda value: value["annotations"].append(value["annotations"][0]),
            "question_id 4001 is annotated twice",
        ),
        (
            "annotations",
            lambda value: value["annotations"][0].pop("multiple_choice_answer"),
            "4001: there is no 'multiple_choice_answer'",
        ),
        ("questions", lambda value: value.pop("questions"), "there is no 'questions'"),
        (
            "questions",
            lambda value: value["questions"][0].update(question=7),
            "question_id 1000: question is 7; expected str",
        ),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, file, change, message):
    layouts.write_vqa(tmp_path / "coco")
    (path,) = (tmp_path / "coco").glob(f"*train2014_{file}.json")
    edit(path, change)
    with pytest.raises(MmflaxError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    assert not (tmp_path / "data" / "vqa_v2" / "prepared_images").exists()


def test_a_question_asked_twice(tmp_path):
    layouts.write_vqa(tmp_path / "coco")
    path = tmp_path / "coco" / "v2_OpenEnded_mscoco_test2015_questions.json"
    edit(path, lambda value: value["questions"].append(value["questions"][0]))
    with pytest.raises(MmflaxError, match="split test: the id '201000' occurs twice"):
        build(tmp_path)


def test_test_dev_is_part_of_test(tmp_path):
    layouts.write_vqa(tmp_path / "coco")
    path = tmp_path / "coco" / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    edit(path, lambda value: value["questions"][0].update(question_id=5))
    with pytest.raises(MmflaxError, match="question_id 5 is not in .*test2015"):
        build(tmp_path)
