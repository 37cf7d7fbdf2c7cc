"""Preparing checks everything first, then goes on where it was killed, and is done once."""

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mmflax.data.datasets.public import flickr30k, prepare, snli_ve, vqa_v2
from mmflax.errors import MmflaxError
from tests.data import layouts


@pytest.fixture
def source(tmp_path):
    layouts.write_vqa(tmp_path / "coco", sizes=(5, 2, 0))
    return tmp_path / "coco"


def build(tmp_path, **fields):
    fields = {"partial": True, "source_dir": tmp_path / "coco", **fields}
    return vqa_v2.build(data_dir=tmp_path / "data", **fields)


def written(tmp_path):
    """The prepared files and when each was written."""
    files = (tmp_path / "data" / "vqa_v2").rglob("*array_record*")
    return {str(path): path.stat().st_mtime_ns for path in files}


def examples(data):
    return {name: [source[i] for i in range(len(source))] for name, source in data.splits.items()}


def test_all_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(MmflaxError) as caught:
        build(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"vqa_v2 lacks 6 of its files in {tmp_path / 'coco'}: download ")
    assert "v2_mscoco_train2014_annotations.json (or v2_Annotations_Train_mscoco.zip)" in message
    assert "from https://visualqa.org/download.html" in message and "\n" not in message
    assert "val2014 (or val2014.zip) from https://cocodataset.org" in message
    with pytest.raises(MmflaxError, match="downloads/flickr30k: .*request form"):
        flickr30k.build(data_dir=tmp_path / "data")


def test_prepared_once_in_parts_and_then_without_the_source(tmp_path, source, monkeypatch, capfd):
    monkeypatch.setattr(prepare, "RECORDS_PER_PART", 2)
    first = build(tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[0] == "vqa_v2: preparing 7 images ..."
    assert len(err.splitlines()) == 2
    before, content = written(tmp_path), examples(first)
    assert len(before) == 2 * (3 + 1)
    assert len(content["train"]) == 10
    shutil.rmtree(source)
    again = build(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert examples(again) == content and written(tmp_path) == before
    assert again.info == first.info


def test_parts_of_any_size_give_the_same_examples(tmp_path, source, monkeypatch):
    found = []
    for size in (1, 2, 3, 1000):
        monkeypatch.setattr(prepare, "RECORDS_PER_PART", size)
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        found.append(examples(build(tmp_path)))
    assert all(one == found[0] for one in found)


_SLOW = """
import sys, time
from mmflax.data.datasets.public import prepare, published, vqa_v2
prepare.RECORDS_PER_PART = 2
read = published.Images.read
def slow(self, name):
    time.sleep(0.05)
    return read(self, name)
published.Images.read = slow
data = vqa_v2.build(data_dir=sys.argv[1], source_dir=sys.argv[2], partial=True)
print(len(data.source('train')))
"""


def start(tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(tmp_path / "data"), str(tmp_path / "coco")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_goes_on_after_a_kill(tmp_path):
    layouts.write_vqa(tmp_path / "coco", sizes=(40, 4, 0))
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    parts = tmp_path / "data" / "vqa_v2" / "prepared_images"
    while len(list(parts.glob("*/1.0.0/dataset_info.json"))) < 4:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert not (tmp_path / "data" / "vqa_v2" / prepare.MANIFEST).exists()
    before = written(tmp_path)
    kept = {path: when for path, when in before.items() if "incomplete" not in path}
    assert 7 <= len(kept) < 2 * 22  # a part's texts come after its images
    resumed = start(tmp_path)
    out, err = resumed.communicate(timeout=60)
    assert (resumed.returncode, out) == (0, "80\n"), err
    left = int(err.split("preparing ")[1].split()[0])
    assert 0 < left < 44
    after = written(tmp_path)
    assert {path: after[path] for path in kept} == kept
    assert len(after) == 2 * 22
    assert not list((tmp_path / "data").rglob("*incomplete*"))
    # The same as if nothing had happened.
    resumed_examples = examples(build(tmp_path))
    shutil.rmtree(tmp_path / "data")
    assert examples(build(tmp_path)) == resumed_examples


def test_many_threads_read_what_one_reads(tmp_path, source, monkeypatch):
    monkeypatch.setattr(prepare, "RECORDS_PER_PART", 2)
    one = examples(build(tmp_path))["train"]
    train = build(tmp_path).source("train")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        many = list(pool.map(lambda index: train[index % len(one)], range(40 * len(one))))
    assert many == one * 40


def test_processes_that_start_together_prepare_once(tmp_path, source):
    processes = [start(tmp_path) for _ in range(3)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in results] == ["10\n"] * 3, results
    assert sum("preparing" in err for _, err in results) == 1


def test_other_annotations_are_prepared_anew_and_keep_what_is_the_same(
    tmp_path, source, monkeypatch
):
    monkeypatch.setattr(prepare, "RECORDS_PER_PART", 2)
    assert len(build(tmp_path).source("train")) == 10
    before = written(tmp_path)
    layouts.write_vqa(source, sizes=(6, 2, 0))
    assert len(build(tmp_path).source("train")) == 12
    after = written(tmp_path)
    assert {path: after[path] for path in before} == before and len(after) == len(before) + 2


def test_fewer_than_published_is_an_error_unless_partial(tmp_path, source):
    with pytest.raises(
        MmflaxError, match=r"split train: found 10 examples where 443,757 are published; .*partial"
    ):
        build(tmp_path, partial=False)
    build(tmp_path)
    # What was prepared in part does not pass for the whole later on, source or not.
    with pytest.raises(MmflaxError, match="443,757"):
        build(tmp_path, partial=False)
    shutil.rmtree(source)
    with pytest.raises(MmflaxError, match="lacks 6 of its files"):
        build(tmp_path, partial=False)


def test_as_many_as_published_is_good(tmp_path, source, monkeypatch):
    splits = [s._replace(published=n) for s, n in zip(vqa_v2._splits(), (10, 4, 0), strict=True)]
    monkeypatch.setattr(vqa_v2, "_splits", lambda: splits)
    data = build(tmp_path, partial=False)
    assert data.info["left_out"] == 0 and len(data.source("train")) == 10
    image = source / "val2014" / "COCO_val2014_000000000101.jpg"
    image.unlink()
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(
        MmflaxError,
        match=r"split validation: 1 images are named but not in .*val2014, such as ",
    ):
        build(tmp_path, partial=False)
    assert not written(tmp_path)


def test_partial_leaves_out_what_has_no_image_until_it_comes(tmp_path, source):
    image = source / "train2014" / "COCO_train2014_000000000002.jpg"
    content = image.read_bytes()
    image.unlink()
    data = build(tmp_path)
    assert data.info["left_out"] == 2
    assert {raw["image_id"] for raw in examples(data)["train"]} == {"1", "3", "4", "5"}
    image.write_bytes(content)
    assert build(tmp_path).info["left_out"] == 0
    for path in (source / "train2014").iterdir():
        path.unlink()
    with pytest.raises(MmflaxError, match="split train: there is no example with an image"):
        layouts.write_json(
            source / "v2_OpenEnded_mscoco_val2014_questions.json",
            json.loads((source / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
            | {"new": 1},
        )
        build(tmp_path)


def test_an_image_in_two_splits(tmp_path):
    root = tmp_path / "flickr"
    layouts.write_snli_ve(root)
    with open(root / "snli_ve_dev.jsonl", "a") as file:
        file.write(json.dumps(layouts.snli_ve_entry(2, 9, "neutral")) + "\n")
    with pytest.raises(MmflaxError, match=r"snli_ve: the image 2\.jpg is in train and in valid"):
        snli_ve.build(data_dir=tmp_path / "data", source_dir=root, partial=True)


def test_malformed_files_are_named(tmp_path, source):
    path = source / "v2_mscoco_train2014_annotations.json"
    whole = path.read_text()
    for content, message in (
        (whole[: len(whole) // 2], r"annotations\.json: not valid JSON .*download it again"),
        ("[]", "holds a list; expected a JSON object"),
    ):
        path.write_text(content)
        with pytest.raises(MmflaxError, match=message):
            build(tmp_path)
    path.write_text(whole)
    (source / "val2014.zip").write_bytes(b"PK half a download")
    shutil.rmtree(source / "val2014")
    with pytest.raises(MmflaxError, match=r"val2014\.zip is not a whole zip"):
        build(tmp_path)


def test_a_damaged_image_is_named_and_the_rest_kept(tmp_path, source, monkeypatch):
    monkeypatch.setattr(prepare, "RECORDS_PER_PART", 1)
    image = source / "train2014" / "COCO_train2014_000000000003.jpg"
    good = image.read_bytes()
    image.write_bytes(b"<html>404</html>")
    with pytest.raises(
        MmflaxError, match=r"000000000003\.jpg is not an image, or damaged"
    ) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)
    before = written(tmp_path)
    assert len(before) == 4
    image.write_bytes(good)
    assert len(build(tmp_path).source("train")) == 10
    assert {path: written(tmp_path)[path] for path in before} == before


def test_a_folder_that_cannot_be_written(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(MmflaxError, match="cannot be prepared in .*MMFLAX_DATA_DIR"):
        vqa_v2.build(data_dir=tmp_path / "file", source_dir=source, partial=True)


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMFLAX_DATA_DIR", str(tmp_path))
    layouts.write_vqa(tmp_path / "downloads" / "coco", sizes=(1, 1, 0))
    data = vqa_v2.build(partial=True)
    assert data.info["files"] == str(tmp_path / "vqa_v2")
    assert os.path.isdir(tmp_path / "vqa_v2")
