"""The files that people have beside the authors' own: Kaggle's table, LAVIS' lists, odd rows."""

import gzip
import json

import pytest

from mmflax.data.datasets.public import coco_captions, flickr30k, nlvr2, snli_ve, vqa_v2
from mmflax.errors import MmflaxError
from tests.data.layouts import (
    caption_image,
    nlvr2_entries,
    snli_ve_entry,
    vqa_annotation,
    vqa_question,
    write_flickr,
    write_images,
    write_json,
    write_lines,
    write_nlvr2,
    write_snli_ve,
    write_vqa,
)


@pytest.fixture
def build(tmp_path):
    def build(module, **fields):
        fields = {"partial": True, "source_dir": tmp_path / "source", **fields}
        return module.build(data_dir=tmp_path / "data", **fields)

    (tmp_path / "source").mkdir()
    return build


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


def sizes(data):
    return {name: len(part) for name, part in data.splits.items()}


def texts(data, key):
    return sorted(part[i][key] for part in data.splits.values() for i in range(len(part)))


# Flickr30k ----------------------------------------------------------------------------------------

KAGGLE = """image_name| comment_number| comment
100.jpg| 0| Two young , White males are outside near many bushes .
100.jpg| 1| A man in green holds a "guitar" , while the other man observes | him .
101.jpg| 0|  Several men in hard hats .
102.jpg| 0| A child in a pink dress .
2199200615.jpg| 3| A dog runs .
2199200615.jpg| 4   A dog runs across the grass .
"""


def test_kaggles_table_has_its_broken_row_and_drawn_splits(build, source):
    (source / "results.csv").write_bytes(b"\xef\xbb\xbf" + KAGGLE.encode())
    names = ["100.jpg", "101.jpg", "102.jpg", "2199200615.jpg"]
    write_images(source / "flickr30k_images" / "flickr30k_images", names)
    data = build(flickr30k, task="retrieval")
    assert sum(sizes(data).values()) == 6 and sizes(data).keys() == {"train", "validation", "test"}
    assert texts(data, "question") == [
        "A child in a pink dress .",
        "A dog runs .",
        "A dog runs across the grass .",
        'A man in green holds a "guitar" , while the other man observes | him .',
        "Several men in hard hats .",
        "Two young , White males are outside near many bushes .",
    ]
    assert "not those of Karpathy's splits" in data.info["splits"]
    (source / "results.csv").unlink()
    write_images(source / "flickr30k_images", names)
    token = "".join(f"{name}#{i}\tCaption {i} .\n" for name in names for i in range(5))
    (source / "results_20130124.token").write_text(token)
    assert sum(sizes(build(flickr30k, task="retrieval")).values()) == 20


def test_karpathys_file_goes_before_the_table(build, source):
    write_flickr(source)
    (source / "results.csv").write_text(KAGGLE)
    data = build(flickr30k)
    assert "splits" not in data.info and sizes(data) == {"train": 10, "validation": 2, "test": 2}


@pytest.mark.parametrize("line", ["100.jpg, 0, A dog.", "just words"])
def test_a_table_of_another_form_is_named_with_its_line(build, source, line):
    (source / "results.csv").write_text(KAGGLE + line + "\n")
    write_images(source / "flickr30k_images", ["100.jpg"])
    with pytest.raises(MmflaxError, match=r"results\.csv, line 8: found .* expected 'image"):
        build(flickr30k)


def test_lavis_lists_of_flickr_captions(build, source):
    train = [
        {"image": "flickr30k-images/1.jpg", "caption": f"a {i}", "image_id": 0} for i in range(5)
    ]
    write_json(source / "annotations" / "flickr30k_train.json", train)
    for split, name in (("val", "2"), ("test", "3")):
        entry = {"image": f"flickr30k-images/{name}.jpg", "caption": ["b", " c  d ", ""]}
        write_json(source / "annotations" / f"flickr30k_{split}.json", [entry])
    write_images(source / "flickr30k-images", ["1.jpg", "2.jpg", "3.jpg"])
    data = build(flickr30k)
    assert sizes(data) == {"train": 5, "validation": 1, "test": 1}
    assert data.source("test")[0]["references"] == ["b", "c d"]
    assert data.info["no_examples"]["test"] == {"an empty caption": 1}


# COCO ---------------------------------------------------------------------------------------------


def test_lavis_lists_of_coco_captions(build, source):
    names = [f"COCO_{f}2014_{i:012d}.jpg" for i, f in enumerate(("train", "val", "val", "val"))]
    train = [
        {
            "caption": f"a {name[5:8]} {i}",
            "image": f"{name[5:].split('_')[0]}/{name}",
            "image_id": "x",
        }
        for i in range(2)
        for name in names[:2]
    ]
    write_json(source / "coco_karpathy_train.json", train)
    for split, name in (("val", names[2]), ("test", names[3])):
        entry = {"image": f"val2014/{name}", "caption": ["b", "c"]}
        write_json(source / f"coco_karpathy_{split}.json", [entry])
    write_images(source / "train2014", names[:1])
    write_images(source / "val2014", names[1:])
    data = build(coco_captions)
    assert sizes(data) == {"train": 4, "validation": 1, "test": 1}
    assert [data.source("train")[i]["image_id"] for i in range(4)] == ["0", "0", "1", "1"]
    assert data.source("validation")[0]["references"] == ["b", "c"]
    assert sizes(build(coco_captions, restval=False))["train"] == 4


def test_a_list_in_place_of_karpathys_file_is_one_sentence(build, source):
    write_json(source / "dataset_coco.json", [{"image": "a.jpg", "caption": "b"}])
    for folder in ("train2014", "val2014"):
        (source / folder).mkdir()
    with pytest.raises(MmflaxError, match="dataset_coco.json holds a list; expected a JSON object"):
        build(coco_captions)


def test_karpathys_file_may_be_gzipped(build, source):
    images = [
        caption_image(f"{i}.jpg", i, split) for i, split in enumerate(("train", "val", "test"))
    ]
    content = json.dumps({"images": images}).encode()
    (source / "dataset_flickr30k.json.gz").write_bytes(gzip.compress(content))
    write_images(source / "flickr30k_images", [image["filename"] for image in images])
    assert sizes(build(flickr30k)) == {"train": 5, "validation": 1, "test": 1}
    (source / "dataset_flickr30k.json.gz").write_bytes(gzip.compress(content)[:-30])
    with pytest.raises(MmflaxError, match="gz: not valid JSON .*download it again"):
        build(flickr30k)


def test_another_split_in_karpathys_file_is_named(build, source):
    """Also when the file was prepared before and has as many bytes as then."""
    images = [
        caption_image(f"{i}.jpg", i, split, 2) for i, split in enumerate(("train", "val", "test"))
    ]
    write_json(source / "dataset_flickr30k.json", {"images": images})
    write_images(source / "flickr30k_images", [image["filename"] for image in images])
    assert sizes(build(flickr30k))["train"] == 2
    images[1]["split"] = "dev"
    write_json(source / "dataset_flickr30k.json", {"images": images})
    with pytest.raises(
        MmflaxError, match=r"image 1: split is 'dev'; expected one of train, val, t"
    ):
        build(flickr30k)


# VQAv2 --------------------------------------------------------------------------------------------


def write_odd_vqa(source, annotations):
    write_vqa(source, sizes=(len(annotations), 1, 0))
    entries = [vqa_annotation(image + 1, 0) | more for image, more in enumerate(annotations)]
    asked = [vqa_question(image + 1, 0) for image in range(len(annotations))]
    write_json(source / "v2_mscoco_train2014_annotations.json", {"annotations": entries})
    write_json(source / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": asked})


def people(*answers):
    return [
        {"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers)
    ]


def test_an_empty_answer_is_the_commonest_other_one_or_none(build, source):
    empty = {"multiple_choice_answer": ""}
    write_odd_vqa(
        source,
        [empty | {"answers": people("", "", "cat")}, empty | {"answers": people("", " ")}, {}],
    )
    data = build(vqa_v2)
    assert [data.source("train")[i]["answer"] for i in range(2)] == ["cat", "answer 0"]
    assert data.info["no_examples"] == {"train": {"no answer": 1}}


@pytest.mark.parametrize("answer", [None, True, ["cat"]], ids=str)
def test_an_annotator_without_a_text_is_named(build, source, answer):
    write_odd_vqa(source, [{"answers": people("cat", answer)}])
    with pytest.raises(
        MmflaxError, match="question_id 1000: the annotator's answer in .* is no text"
    ):
        build(vqa_v2)


def test_test_questions_need_no_list_of_development(build, source):
    write_vqa(source, sizes=(2, 1, 2))
    (source / "v2_OpenEnded_mscoco_test-dev2015_questions.json").unlink()
    data = build(vqa_v2)
    assert len(data.source("test")) == 4 and "test_dev" not in data.splits
    assert "answer" not in data.source("test")[0]


def test_lavis_lists_of_questions(build, source):
    def entry(folder, image, **more):
        name = f"{folder}/COCO_{folder}_{image:012d}.jpg"
        return {"question_id": image * 1000, "question": "what?", "image": name, **more}

    genome = {"question_id": 1, "question": "?", "image": "image/1.jpg", "answer": ["x"]}
    answers = ["a"] * 7 + ["b"] * 3
    write_json(
        source / "vqa_train.json",
        [entry("train2014", 1, answer=answers, dataset="vqa"), {**genome, "dataset": "vg"}],
    )
    write_json(source / "vqa_val.json", [entry("val2014", 2, answer=answers)])
    write_json(source / "vqa_test.json", [entry("test2015", 3)])
    for folder, image in (("train2014", 1), ("val2014", 2), ("test2015", 3)):
        write_images(source / folder, [f"COCO_{folder}_{image:012d}.jpg"])
    data = build(vqa_v2)
    assert sizes(data) == {"train": 1, "validation": 1, "test": 1}
    raw = data.source("train")[0]
    assert (raw["id"], raw["image_id"], raw["answer"], raw["answers"]) == (
        "1000",
        "1",
        "a",
        answers,
    )
    assert "answer" not in data.source("test")[0]


# Statements ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["words", "booleans", "array"])
def test_labels_of_nlvr2(build, source, form):
    write_nlvr2(source)
    for split, count in (("train", 2), ("dev", 1), ("test1", 1)):
        entries = nlvr2_entries(split, count)
        if form != "words":
            entries = [{**entry, "label": entry["label"] == "True"} for entry in entries]
        path = source / "nlvr2" / "data" / f"{split}.json"
        (write_json if form == "array" else write_lines)(path, entries)
    data = build(nlvr2)
    assert [data.source("train")[i]["answer"] for i in range(4)] == [
        "false",
        "true",
        "true",
        "false",
    ]


@pytest.mark.parametrize("label", [1, None, "yes", ""])
def test_another_label_of_nlvr2_is_named(build, source, label):
    write_nlvr2(source)
    entries = [{**entry, "label": label} for entry in nlvr2_entries("train", 2)]
    write_lines(source / "nlvr2" / "data" / "train.json", entries)
    with pytest.raises(MmflaxError, match=r"train\.json, line 1: (the )?label is"):
        build(nlvr2)


def test_lavis_lists_of_nlvr2(build, source):
    for split, file in (("train", "train"), ("dev", "dev"), ("test1", "test")):
        folder = "images/train" if split == "train" else split
        images = [f"{split}-1-0-img{side}.png" for side in range(2)]
        entries = [
            {
                "sentence": f"s {i}",
                "label": ("True", "False")[i],
                "images": [f"{folder}/{n}" for n in images],
            }
            for i in range(2)
        ]
        write_json(source / f"nlvr_{file}.json", entries)
        write_images(source / folder, images, "PNG")
    data = build(nlvr2)
    assert sizes(data) == {"train": 2, "validation": 2, "test": 2}
    raw = data.source("test")[1]
    assert (raw["answer"], raw["group"], raw["image_id"]) == ("false", "test1-1--s 1", "test1-1-0")


def test_pairs_without_a_label_or_hypothesis_are_counted(build, source):
    write_snli_ve(source)
    rows = [
        snli_ve_entry(1, 0, "entailment"),
        snli_ve_entry(1, 1, "-"),
        snli_ve_entry(1, 2, "neutral") | {"sentence2": " "},
        {
            ("Flikr30kID" if k == "Flickr30K_ID" else k): v
            for k, v in snli_ve_entry(2, 0, "neutral").items()
        },
    ]
    write_lines(source / "snli_ve_train.jsonl", rows)
    data = build(snli_ve)
    assert sizes(data) == {"train": 2, "validation": 3, "test": 3}
    assert data.info["no_examples"]["train"] == {
        'no label that most annotators agree on ("-")': 1,
        "an empty hypothesis": 1,
    }
    assert "no label" in data.describe()


def test_lavis_lists_of_snli_ve(build, source):
    for split, image in (("train", "11"), ("dev", "12"), ("test", "13")):
        entries = [
            {"image": image, "sentence": "a", "label": "neutral"},
            {"image": f"flickr30k-images/{image}.jpg", "sentence": "b", "label": "contradiction"},
        ]
        write_json(source / f"ve_{split}.json", entries)
    write_images(source / "flickr30k_images", ["11.jpg", "12.jpg", "13.jpg"])
    data = build(snli_ve)
    assert sizes(data) == {"train": 2, "validation": 2, "test": 2}
    assert data.source("test")[1]["answer"] == "contradiction"


# Images that are not there ------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"], ids=["empty", "page"])
def test_absent_images_are_counted_and_named(build, source, content):
    write_nlvr2(source)
    place = next((source / "images" / "train").rglob("train-0-0-img1.png"))
    place.write_bytes(content)
    with pytest.raises(MmflaxError, match=r"img1\.png is not an image, or damaged .* delete it"):
        build(nlvr2)
    place.unlink()
    data = build(nlvr2)
    assert data.info["left_out"] == 2 and data.info["absent"] == ["train-0-0-img1.png"]
    assert len(data.source("train")) == 6 and "train-0-0-img1.png" in data.describe()
