"""Karpathy's splits become captions to generate, captions to read, or images with references."""

import json
import zipfile

import pytest

from mmflax.data.datasets.public import coco_captions, flickr30k
from mmflax.errors import MmflaxError
from tests.data import layouts


def build(tmp_path, **fields):
    return coco_captions.build(
        data_dir=tmp_path / "data", source_dir=tmp_path / "coco", partial=True, **fields
    )


def sizes(data):
    return {name: len(source) for name, source in data.splits.items()}


@pytest.mark.parametrize("zipped", [False, True], ids=["folders", "zips"])
def test_captioning_learns_by_caption_and_is_judged_by_image(tmp_path, zipped):
    layouts.write_coco(tmp_path / "coco", zipped=zipped)
    data = build(tmp_path)
    assert sizes(data) == {"train": 21, "validation": 2, "test": 2}
    name = "COCO_train2014_000000000000.jpg"
    references = [f"A dog, number 0, said {which}." for which in range(6)]
    assert data.source("train")[5] == {
        "image": layouts.picture(name),
        "question": None,
        "target": references[5],
        "references": references,
        "image_id": "500",
        "id": "5",
    }
    # After the train split's own two images come those of restval.
    assert [data.source("train")[i]["image_id"] for i in (6, 10, 11, 16)] == [
        "504", "504", "501", "505",
    ]  # fmt: skip
    judged = data.source("test")[1]
    assert (judged["id"], judged["image_id"], len(judged["references"])) == ("507", "507", 5)
    assert judged["question"] is None


def test_retrieval_reads_every_caption(tmp_path):
    layouts.write_coco(tmp_path / "coco")
    data = build(tmp_path, task="retrieval", restval=False)
    assert sizes(data) == {"train": 11, "restval": 10, "validation": 10, "test": 10}
    raw = data.source("validation")[3]
    assert raw["question"] == raw["references"][3] == "A dog, number 2, said 3."
    assert raw["image_id"] == "502" and "target" not in raw
    assert sizes(build(tmp_path, task="retrieval", unit="image"))["train"] == 4
    assert sizes(build(tmp_path, unit="caption"))["test"] == 10


def test_options_share_the_prepared_files(tmp_path, capfd):
    layouts.write_coco(tmp_path / "coco")
    build(tmp_path)
    capfd.readouterr()
    build(tmp_path, task="retrieval", unit="image", restval=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "vqa"}, "task is 'vqa'; choose one of captioning, retrieval"),
        ({"unit": "pair"}, "unit is 'pair'; choose one of image, caption, or None"),
    ],
)
def test_bad_fields(tmp_path, fields, message):
    with pytest.raises(MmflaxError, match=message):
        build(tmp_path, **fields)


def change(index, **values):
    images = layouts.coco_images()
    images[index] |= values
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (change(0, sentences=[]), r"image 0 \(COCO_train2014_000000000000.jpg\) has no sentences"),
        (change(0, sentences=[{"raw": "A dog."}]), "there is no 'sentid'"),
        (change(0, sentences=[{"sentid": 1, "raw": ""}]), "raw is ''; expected str"),
        (change(4, sentences=layouts.coco_images()[0]["sentences"]), "the id '0' occurs twice"),
        (change(4, filename="COCO_train2014_000000000000.jpg"), "is listed twice"),
        (change(3, filename="COCO_val2014_000000000002.jpg"), "is in validation and in test"),
        (change(1, filename=None), "image 1: filename is None"),
        ([{"imgid": 0}], "image 0: there is no 'split'"),
    ],
    ids=["bare", "no sentid", "empty", "id", "image", "leak", "name", "split"],
)
def test_files_that_are_not_as_published(tmp_path, images, message):
    layouts.write_coco(tmp_path / "coco")
    layouts.write_json(tmp_path / "coco" / "dataset_coco.json", {"images": images})
    with pytest.raises(MmflaxError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)


def test_counts_are_held_against_the_published_ones(tmp_path):
    layouts.write_coco(tmp_path / "coco")
    with pytest.raises(MmflaxError, match="found 11 examples where 414,113 are published"):
        coco_captions.build(data_dir=tmp_path / "data", source_dir=tmp_path / "coco")
    assert sum(captions for *_, captions in coco_captions._TABLE) == 616_767  # COCO 2014's
    assert sum(captions for *_, captions in flickr30k._TABLE) == 5 * 31_014


def test_flickr30k_from_the_zip_of_captions(tmp_path):
    root = tmp_path / "flickr"
    layouts.write_flickr(root)
    file = root / "dataset_flickr30k.json"
    with zipfile.ZipFile(root / "caption_datasets.zip", "w") as archive:
        archive.writestr("dataset_coco.json", json.dumps({"images": []}))
        archive.write(file, "dataset_flickr30k.json")
    file.unlink()
    (root / "flickr30k_images").rename(root / "flickr30k-images")
    data = flickr30k.build(data_dir=tmp_path / "data", source_dir=root, partial=True)
    assert sizes(data) == {"train": 10, "validation": 2, "test": 2}
    raw = data.source("train")[7]
    assert (raw["target"], raw["image_id"]) == ("A dog, number 3, said 2.", "3")
    assert raw["image"] == layouts.picture("3.jpg")
