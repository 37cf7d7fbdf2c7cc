"""Regions of a detector in LXMERT's layout become batches; what is wrong with a file is said."""

import base64
import dataclasses

import numpy as np
import pytest

from mmflax.data import pipeline
from mmflax.data.batch import check_batch
from mmflax.data.dataset import in_memory, text_of
from mmflax.data.datasets.public import nlvr2, prepare, vqa_v2
from mmflax.data.datasets.public.published_regions import COLUMNS, RegionFiles
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from tests.data import layouts

SIZE = np.array([64, 48, 64, 48], np.float32)
TRAIN = "train2014_obj36.tsv"


def build(tmp_path, **fields):
    fields = {"partial": True, "source_dir": tmp_path / "coco", "regions": 36, **fields}
    return vqa_v2.build(data_dir=tmp_path / "data", **fields)


def stored(tmp_path, name, boxes=36):
    """What a row of the TSV says: features, and boxes in shares of the image."""
    found = layouts.detected(name, boxes)
    return found["features"], found["boxes"] / SIZE


def test_the_prepared_data_are_the_file_and_need_no_images(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "RECORDS_PER_PART", 3)
    layouts.write_vqa_regions(tmp_path / "coco", sizes=(4, 2, 1))
    data = build(tmp_path)
    sizes = {name: len(source) for name, source in data.splits.items()}
    assert sizes == {"train": 8, "validation": 4, "test": 2, "test_dev": 1}
    folders = {"train": "train2014", "validation": "val2014", "test": "test2015"}
    for split, folder in folders.items():
        source = data.source(split)
        for index in range(len(source)):
            raw = source[index]
            features, boxes = stored(tmp_path, f"COCO_{folder}_{int(raw['image_id']):012d}")
            assert np.array_equal(raw["regions"], features)
            assert np.array_equal(raw["boxes"], boxes)
            assert raw["regions"].dtype == raw["boxes"].dtype == np.float32
            assert "image" not in raw and raw["question"]
            text = text_of(source, index)
            assert text.keys() == raw.keys() and text["regions"].shape == (36, 10)
    # From now on the file is not needed, and pixels may be prepared beside it.
    (tmp_path / "coco" / TRAIN).unlink()
    assert build(tmp_path).info == data.info
    with pytest.raises(MmflaxError, match="vqa_v2 lacks 3 .* train2014"):
        build(tmp_path, regions=0)


def test_batches_have_one_shape_and_start_anywhere(tmp_path):
    layouts.write_vqa_regions(tmp_path / "coco")
    data = build(tmp_path)
    processor = Processor.learn(data, max_length=12, soft_answers=True)
    assert (processor.num_regions, processor.region_dim, processor.image_size) == (36, 10, 0)
    shapes = {"regions": (4, 36, 10), "boxes": (4, 36, 4), "region_mask": (4, 36)}

    def batches(start):
        return pipeline.train_iterator(
            data.source("train"), processor, batch_size=4, seed=1, start=start
        )

    with batches(0) as first, batches(3) as later:
        found = [next(first) for _ in range(5)]
        again = [next(later) for _ in range(2)]
    for batch in found:
        assert "image" not in batch
        assert {key: batch[key].shape for key in shapes} == shapes
        assert batch["region_mask"].all() and 0 <= batch["boxes"].min() <= batch["boxes"].max() <= 1
    for one, other in zip(found[3:], again, strict=True):
        for key in one:
            assert np.array_equal(one[key], other[key]), key
    zeros = processor.zeros(2)
    assert {key: (v.dtype, v.shape[1:]) for key, v in zeros.items()} == {
        key: (v.dtype, v.shape[1:]) for key, v in found[0].items() if key != "id"
    }
    (only,) = pipeline.eval_batches(data.source("validation"), processor, batch_size=6)
    assert only["mask"].tolist() == [True] * 4 + [False] * 2
    processor.save(tmp_path / "run")
    assert Processor.load(tmp_path / "run") == processor


def test_fewer_boxes_are_padded_and_masked(tmp_path):
    root = tmp_path / "coco"
    layouts.write_vqa_regions(root, sizes=(2, 1, 0))
    name = "COCO_train2014_000000000002"
    rows = [layouts.region_row(name, boxes=20), layouts.region_row(name[:-1] + "1")]
    (root / TRAIN).write_text("\n".join("\t".join(row) for row in rows))  # no end of line at last
    data = build(tmp_path)
    processor = Processor.learn(data, max_length=8)
    train = data.source("train")
    batch = processor.batch([train[0], train[2]])
    assert batch["region_mask"].sum(axis=1).tolist() == [36, 20]
    features, boxes = stored(tmp_path, name, boxes=20)
    assert np.array_equal(batch["regions"][1, :20], features) and not batch["regions"][1, 20:].any()
    assert np.array_equal(batch["boxes"][1, :20], boxes)


def test_nlvr2_has_the_regions_of_both_images(tmp_path):
    root = tmp_path / "nlvr2"
    layouts.write_nlvr2_regions(root)
    layouts.write_lines(root / "nlvr2" / "data" / "test2.json", layouts.nlvr2_entries("test2", 1))
    fields = dict(data_dir=tmp_path / "data", source_dir=root, partial=True)
    data = nlvr2.build(regions=36, **fields)
    assert list(data.splits) == ["train", "validation", "test"]
    raw = data.source("train")[3]
    left, right = (layouts.detected(f"{raw['image_id']}-img{side}") for side in range(2))
    assert np.array_equal(raw["regions"], left["features"])
    assert np.array_equal(raw["second_regions"], right["features"])
    assert np.array_equal(raw["second_boxes"], right["boxes"] / SIZE)
    processor = Processor.learn(data)
    assert processor.second_images and "image" not in processor.zeros(1)
    batch = processor.batch([raw])
    assert batch["second_regions"].shape == (1, 36, 10) and batch["second_region_mask"].all()


def test_what_is_missing_is_named_with_its_origin(tmp_path):
    layouts.write_vqa_regions(tmp_path / "coco")
    (tmp_path / "coco" / TRAIN).unlink()
    with pytest.raises(
        MmflaxError,
        match=r"vqa_v2_obj36 lacks 1 .*train2014_obj36\.tsv from https://nlp\.cs\.unc\.edu.*unpack",
    ):
        build(tmp_path)
    with pytest.raises(MmflaxError, match=r"val2014_obj10\.tsv from the extraction"):
        build(tmp_path, regions=10)
    with pytest.raises(MmflaxError, match=r"data\.regions is -1; expected the boxes"):
        build(tmp_path, regions=-1)


def test_an_image_that_has_no_row(tmp_path, monkeypatch):
    root = tmp_path / "coco"
    layouts.write_vqa_regions(root)
    splits = [s._replace(published=n) for s, n in zip(vqa_v2._splits(), (8, 4, 0), strict=True)]
    monkeypatch.setattr(vqa_v2, "_splits", lambda: splits)
    rows = (root / TRAIN).read_text().splitlines()
    (root / TRAIN).write_text("\n".join(rows[1:]))
    with pytest.raises(
        MmflaxError, match=r"1 images are named but not in .*train2014_obj36\.tsv, such as COCO_tr"
    ):
        build(tmp_path, partial=False)
    assert build(tmp_path).info["left_out"] == 2


def cell(column, value):
    def change(row):
        row[COLUMNS.index(column)] = value
        return row

    return change


def shortened(column, letters):
    def change(row):
        place = COLUMNS.index(column)
        row[place] = row[place][:-letters]
        return row

    return change


WIDE = base64.b64encode(np.full((36, 4), 65, np.float32).tobytes()).decode()
NAN = base64.b64encode(np.full((36, 10), np.nan, np.float32).tobytes()).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row[:-1], "found 9 columns; expected 10 .img_id to features"),
        (cell("num_boxes", "35"), r"boxes has 576 bytes; expected 560 for 35 boxes of 4 float32"),
        (cell("num_boxes", "37"), r"num_boxes is 37; expected at most 36"),
        (cell("num_boxes", "many"), r"num_boxes is b'many'; expected a whole number above 0"),
        (cell("img_w", "0"), r"img_w is b'0'; expected a whole number above 0"),
        (
            shortened("features", 100),
            r"features has 1365 bytes; expected 1440 for 36 boxes of 10 f",
        ),
        (shortened("boxes", 4), r"boxes has 573 bytes; expected 576 for 36"),
        (cell("boxes", "*" * 768), r"boxes is no base64 of float32"),
        (cell("boxes", WIDE), r"a box reaches beyond its image of 64 x 48 pixels"),
        (cell("features", NAN), r"features has a number that is not finite"),
    ],
)
def test_a_damaged_row_is_named_before_training(tmp_path, change, message):
    path = tmp_path / "coco" / TRAIN
    layouts.write_vqa_regions(tmp_path / "coco")
    rows = [row.split("\t") for row in path.read_text().splitlines()]
    rows[2] = change(rows[2])
    path.write_text("\n".join("\t".join(row) for row in rows))
    with pytest.raises(MmflaxError, match=rf"train2014_obj36\.tsv, row 3: .*{message}") as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_are_found_without_keeping_them(tmp_path):
    names = [f"image{number}" for number in range(5)]
    layouts.write_regions(tmp_path / "a.tsv", names, boxes=3)
    files = RegionFiles([tmp_path / "a.tsv"], 3, "test")
    assert len(files) == 5 and files.shape == (3, 10) and "image4.jpg" in files
    assert "other.jpg" not in files
    for name in names[::-1]:
        found = files.row(f"{name}.png")
        expected = layouts.detected(name, boxes=3)
        assert found["regions"] == expected["features"].tobytes()
    files.close()


def example(count=2, dim=3, **more):
    regions = np.ones((count, dim), np.float32)
    return {"question": "what?", "regions": regions, "boxes": np.zeros((count, 4)), **more}


def test_regions_in_memory_and_what_does_not_fit():
    data = in_memory({"train": [example(answer="a"), example(4, answer="b")]})
    processor = Processor.learn(data, max_length=6)
    assert (processor.num_regions, processor.region_dim) == (4, 3)
    for raw, message in (
        (example(5), r"regions is \[5, 3\]; expected \[n 3\] with n from 1 to 4"),
        (example(dim=2), r"regions is \[2, 2\]; expected \[n 3\]"),
        (example(boxes=np.zeros((1, 4))), r"boxes is \[1, 4\]; expected \[2 4\]"),
        ({"question": "what?"}, "there are no regions; give a detector's features"),
    ):
        with pytest.raises(MmflaxError, match=f"Example x: .*{message}"):
            processor.batch([{"id": "x", **raw}])
    with pytest.raises(MmflaxError, match="num_regions is 4 and region_dim 0"):
        dataclasses.replace(processor, region_dim=0)


def test_an_absent_picture_has_no_region():
    rows = [example(answer="a"), {"question": "what?", "image": None, "answer": "b"}]
    processor = Processor.learn(in_memory({"train": rows}), max_length=6)
    batch = processor.batch(rows)
    assert batch["image_present"].tolist() == [True, False]
    assert batch["region_mask"].tolist() == [[True, True], [False, False]]


def test_each_image_of_a_pair_may_be_absent():
    second = {f"second_{key}": example(3)[key] for key in ("regions", "boxes")}
    rows = [
        {"question": "what?", "id": "a", **example(), **second},
        {"question": "what?", "id": "b", **example()},
        {"question": "what?", "id": "c", "image": None, **second},
    ]
    processor = Processor.learn(in_memory({"train": rows}), max_length=6)
    assert processor.second_images and processor.absent_images
    batch = processor.batch(rows)
    check_batch(batch)
    assert batch["image_present"].tolist() == [True, True, False]
    assert batch["second_image_present"].tolist() == [True, False, True]
    assert batch["region_mask"].sum(axis=1).tolist() == [2, 2, 0]
    assert batch["second_region_mask"].sum(axis=1).tolist() == [3, 0, 3]


@pytest.mark.parametrize("certain", [True, False])
def test_the_detectors_classes_are_a_distribution_of_each_region(certain):
    labels = np.array([2, 0]) if certain else np.array([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    row = example(region_labels=labels)
    processor = Processor.learn(in_memory({"train": [row]}), max_length=6)
    assert processor.region_classes == 3
    batch = processor.batch([row])
    check_batch(batch)
    expected = [[0, 0, 1], [1, 0, 0]] if certain else labels.tolist()
    assert batch["region_labels"][0].tolist() == expected
    assert processor.zeros(2)["region_labels"].shape == (2, 2, 3)
    with pytest.raises(MmflaxError, match=r"region_labels is \[1, 3\]; expected \[2 3\], a row"):
        processor.batch([example(region_labels=labels[:1])])
    with pytest.raises(MmflaxError, match=r"region_labels is \[\]; expected \[2 3\]"):
        processor.batch([example()])
