"""A folder whose rows name files of regions: read as they are, lazily, and each mistake is said."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mmflax.data import augment, pipeline
from mmflax.data.dataset import text_of
from mmflax.data.datasets.folder import dataset
from mmflax.data.datasets.folder import regions as folder_regions
from mmflax.data.processor import Processor
from mmflax.data.region_files import RegionFile, check_regions, read_regions
from mmflax.errors import MmflaxError
from tests.data.layouts import detected

SIZE = np.array([64, 48, 64, 48], np.float32)


def arrays(name="0", boxes=3, dim=5):
    """As bottom-up-attention.pytorch names them, with its dict of Python objects."""
    found = detected(name, boxes, dim)
    info = {"objects_id": np.arange(boxes), "cls_prob": np.ones((boxes, 2), np.float32)}
    return {
        "x": found["features"], "bbox": found["boxes"], "num_bbox": boxes, "image_h": 48,
        "image_w": 64, "info": np.array(info, dtype=object),
    }  # fmt: skip


def write(root, split, rows, names=("0", "1", "2")):
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        np.savez_compressed(folder / f"{name}.npz", **arrays(name))
        Image.new("RGB", (64, 48), (int(name) * 20, 0, 0)).save(folder / f"{name}.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def row(index, answer="red", **more):
    return {"regions": f"{index}.npz", "question": "what color?", "answer": answer, **more}


FORMS = {
    "bottom-up-attention.pytorch": lambda a: a,
    "features and boxes": lambda a: {
        "features": a["x"], "boxes": a["bbox"], "width": np.float64(64), "height": np.array([48]),
    },
    "shares of the image": lambda a: {"features": a["x"], "boxes": a["bbox"] / SIZE},
    "shares beside a size": lambda a: {**a, "bbox": a["bbox"] / SIZE},
    "MCAN, transposed": lambda a: {**a, "x": a["x"].T},
    "UNITER, half precision": lambda a: {
        "norm_bb": np.concatenate([a["bbox"] / SIZE, a["bbox"][:, :2] / 64], 1).astype(np.float16),
        "features": a["x"].astype(np.float16), "soft_labels": np.ones((3, 4), np.float16),
    },
    "padded": lambda a: {
        **a, "x": np.pad(a["x"], ((0, 4), (0, 0))), "bbox": np.pad(a["bbox"], ((0, 4), (0, 0))),
    },
    "padded boxes of float64": lambda a: {**a, "bbox": np.pad(a["bbox"] * 1.0, ((0, 4), (0, 0)))},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_detection(form, tmp_path):
    known = arrays()
    np.savez(tmp_path / "a.npz", **FORMS[form](known))
    assert check_regions(tmp_path / "a.npz") == RegionFile(str(tmp_path / "a.npz"), 3, 5)
    found = read_regions(tmp_path / "a.npz")
    half = "half" in form
    assert found["regions"].dtype == found["boxes"].dtype == np.float32
    expected = known["x"].astype(np.float16 if half else np.float32)
    assert np.array_equal(found["regions"], expected)
    np.testing.assert_allclose(found["boxes"], known["bbox"] / SIZE, atol=1e-3 if half else 1e-7)


def spoiled(**changes):
    found = {**arrays(), **changes}
    return {key: value for key, value in found.items() if value is not None}


MISTAKES = {
    "no features": (spoiled(x=None), r"no array of features \(its arrays: bbox, .*features or x"),
    "no boxes": (spoiled(bbox=None), r"no array of boxes .*named boxes, bbox or norm_bb"),
    "no width": (spoiled(image_w=None), r"bbox is in pixels \(up to \d.* no width .*image_w and"),
    "no height": (spoiled(image_h=None), r"the file has no height of the image"),
    "a width of 0": (spoiled(image_w=0), r"image_w is int64 \[\]; expected one number above 0"),
    "two widths": (spoiled(image_w=[64, 64]), r"image_w is int64 \[2\]; expected one number"),
    "other rows": (spoiled(x=np.ones((2, 5), "f")), r"x is float32 \[2, 5\]; .*\[3 f\], a row for"),
    "a map": (spoiled(x=np.ones((3, 5, 1), "f")), r"x is float32 \[3, 5, 1\]; expected floating"),
    "whole numbers": (spoiled(x=np.ones((3, 5), int)), r"x is int64 \[3, 5\]; expected floating"),
    "five columns": (spoiled(bbox=np.ones((3, 5), "f")), r"bbox is float32 \[3, 5\]; .*x1 y1 x"),
    "no region": (spoiled(bbox=np.ones((0, 4), "f")), r"bbox is float32 \[0, 4\]; .*at least one"),
    "fewer boxes": (spoiled(num_bbox=9), r"bbox has 3 rows, .*there are 9 boxes"),
    "NaN": (spoiled(bbox=np.full((3, 4), np.nan)), r"bbox has a NaN or an infinity"),
    "another image": (spoiled(image_w=20, image_h=20), r"beyond the image of 20 x 20 pixels"),
    "x y w h": (spoiled(bbox=np.array([[30.0, 30, 9, 9]] * 3)), r"no corners .*x1 <= x2"),
    "objects": (spoiled(bbox=np.array([{}, {}, {}])), r"plain arrays that can be read \(Object"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_file_is_one_sentence_with_its_row(name, tmp_path):
    content, message = MISTAKES[name]
    write(tmp_path, "train", [row(0), row(1)])
    np.savez(tmp_path / "train" / "1.npz", **content)
    with pytest.raises(MmflaxError, match=rf"jsonl, line 2: /.*/1\.npz.*{message}") as error:
        dataset.build(path=tmp_path)
    assert str(error.value).count(". ") <= 1 and str(error.value).endswith(".")


def test_files_that_are_none_are_said(tmp_path):
    write(tmp_path, "train", [row(0), row(1)])
    file = tmp_path / "train" / "1.npz"
    for content in (b"", b"\x93NUMPY", pickle.dumps({"x": 1}), file.read_bytes()[:-30]):
        file.write_bytes(content)
        with pytest.raises(MmflaxError, match=r"line 2: /.*1\.npz is no .npz file of plain arrays"):
            dataset.build(path=tmp_path)
    file.unlink()
    with pytest.raises(MmflaxError, match=r"line 2: The file of regions /.*1.npz does not exist"):
        dataset.build(path=tmp_path)
    np.savez(file, **arrays("1", dim=4))
    with pytest.raises(MmflaxError, match=r"line 2: .*1.npz has features of 4 .*0.npz of 5; "):
        dataset.build(path=tmp_path)
    with pytest.raises(MmflaxError, match=r"line 1: .*file_name.*, or regions in place of file_n"):
        write(tmp_path, "train", [{"question": "a", "answer": "b"}])
        dataset.build(path=tmp_path)


def test_rows_are_read_when_their_turn_comes(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        folder_regions, "read_regions", lambda path: read.append(path) or read_regions(path)
    )
    write(tmp_path, "train", [row(0), row(1, "blue"), row(2)])
    data = dataset.build(path=tmp_path, validation_fraction=0)
    processor = Processor.learn(data)
    train = data.source("train")
    text = text_of(train, 1)
    assert text["regions"].shape == (3, 5) and text["boxes"].shape == (3, 4)
    assert not read and (processor.num_regions, processor.region_dim) == (3, 5)
    assert processor.image_size == 0
    raw = train[1]
    assert read == [str(tmp_path / "train" / "1.npz")] and raw.keys() == text.keys()
    assert "image" not in raw and raw["answer"] == "blue"
    (batch,) = pipeline.eval_batches(train, processor, batch_size=3, num_threads=0)
    for index in range(3):
        known = detected(str(index), 3, 5)
        assert np.array_equal(batch["regions"][index], known["features"])
        np.testing.assert_allclose(batch["boxes"][index], known["boxes"] / SIZE, rtol=1e-6)
    assert batch["region_mask"].all() and "image" not in batch
    np.savez(tmp_path / "train" / "1.npz", x=np.zeros((3, 5), np.float32))
    with pytest.raises(MmflaxError, match=r"train/metadata.jsonl, line 2: .*no array of boxes"):
        train[1]


def test_what_the_model_reads_is_taken_of_a_row_with_both(tmp_path):
    write(tmp_path, "train", [row(i, file_name=f"{i}.png") for i in range(3)])
    for reads, keys in ((True, {"regions"}), (False, {"image"}), (None, {"image", "regions"})):
        data = dataset.build(path=tmp_path, validation_fraction=0, reads_regions=reads)
        assert data.source("train")[0].keys() & {"image", "regions"} == keys
    # A picture's model never opens the files, and one of regions never the pictures.
    (tmp_path / "train" / "0.npz").unlink()
    assert dataset.build(path=tmp_path, reads_regions=False).source("train")[0]["image"]
    # A column of one's own that only resembles it stays ignored.
    write(tmp_path / "own", "train", [{**row(0, file_name="0.png", region="EU"), "regions": None}])
    assert "regions" not in dataset.build(path=tmp_path / "own").source("train")[0]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_pairs_have_a_second_file(ending, tmp_path):
    write(tmp_path, "train", [])
    fields = dict(regions="0.npz", regions_2="1.npz", statement="both are red", label="true")
    (tmp_path / "train" / "metadata.jsonl").unlink()
    text = json.dumps(fields)
    if ending == "csv":
        text = "\n".join(",".join(part) for part in (fields.keys(), fields.values()))
    (tmp_path / "train" / f"metadata.{ending}").write_text(text)
    data = dataset.build(path=tmp_path)
    assert data.info["task"] == "reasoning"
    raw = data.source("train")[0]
    assert np.array_equal(raw["regions"], detected("0", 3, 5)["features"])
    assert np.array_equal(raw["second_regions"], detected("1", 3, 5)["features"])
    assert raw["second_boxes"].shape == (3, 4) and raw["image_id"].endswith("1.npz")
    fields = Processor.learn(data)
    assert fields.second_images and not fields.absent_images


def test_captions_share_the_file_and_the_hold_out_goes_by_it(tmp_path):
    rows = [{"regions": f"{i}.npz", "caption": f"a {i} {j}"} for i in range(3) for j in range(2)]
    write(tmp_path, "train", rows)
    data = dataset.build(path=tmp_path, validation_fraction=0.3)
    assert data.origin.held_out and data.origin.held_out[0].endswith(".npz")
    assert len(data.source("validation")) == 1 and len(data.source("train")) == 4
    assert len(data.source("train")[0]["references"]) == 2
    again = dataset.build(path=tmp_path, held_out=data.origin.held_out)
    assert again.info == data.info
    before = data.origin.contents()["train"]
    np.savez(tmp_path / "train" / "0.npz", **arrays("9"))
    changed = dataset.build(path=tmp_path).origin.contents()["train"].changes_from(before)
    assert changed == ["1 image changed"]
    with pytest.raises(MmflaxError, match=r"the image .*0.npz of validation has the same bytes as"):
        write(tmp_path, "validation", [{"regions": "0.npz", "caption": "b"}], names=())
        (tmp_path / "validation" / "0.npz").write_bytes((tmp_path / "train" / "1.npz").read_bytes())
        dataset.build(path=tmp_path)


def test_one_table_for_all_splits_goes_by_the_files_folder(tmp_path):
    write(tmp_path, "train", [])
    write(tmp_path, "test", [])
    for split in ("train", "test"):
        (tmp_path / split / "metadata.jsonl").unlink()
    rows = [row(0) | {"regions": f"{split}/0.npz"} for split in ("train", "test")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = dataset.build(path=tmp_path)
    assert {name: len(source) for name, source in data.splits.items()} == {"train": 1, "test": 1}


def test_regions_have_no_mirror():
    swap = augment.build(flip="swap", flip_rate=1.0)
    seen = {"regions": np.ones((3, 5), np.float32), "boxes": np.zeros((3, 4), np.float32)}
    raw = {**seen, "question": "what is on the left?", "answer": "a cat"}
    assert swap(raw, np.random.default_rng(0))["question"] == "what is on the left?"
