"""A folder is what it holds: how its path is written, and where it lies, changes nothing."""

import json
import os
import shutil
import unicodedata

import pytest
from PIL import Image

from mmflax.data.contents import fingerprint
from mmflax.data.datasets.folder import build
from mmflax.data.datasets.folder.dataset import former_digest
from mmflax.data.datasets.folder.splits import hold_out


def write(root, count=20, split="train", start=0):
    (root / split).mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(start, start + count):
        name = f"{index}.png"
        Image.new("RGB", (8, 8), (index, len(split), 0)).save(root / split / name)
        lines.append({"file_name": name, "question": "what?", "answer": ("yes", "no")[index % 2]})
    with open(root / split / "metadata.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return root


def held(path, **fields):
    return build(path=path, validation_fraction=0.3, **fields).origin.held_out


def test_every_spelling_of_the_path_holds_out_the_same(tmp_path, monkeypatch):
    write(tmp_path / "x" / "data")
    (tmp_path / "link").symlink_to(tmp_path / "x" / "data")
    write(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    spelled = ["data", "./data", "data/", "../x/data", "data/../data", "~/x/data", "~/moved"]
    spelled += [str(tmp_path / name) for name in ("x/data", "moved", "link")]
    first = held("data")
    assert len(first) == 6 and all(name.startswith("train/") for name in first)
    assert {path: held(path) for path in spelled} == dict.fromkeys(spelled, first)
    monkeypatch.chdir(tmp_path / "x" / "data")
    assert held(".") == first
    digests = {build(path=path).info["sha256"] for path in (".", tmp_path / "moved")}
    assert len(digests) == 1
    assert build(path=".").origin.contents() == build(path=tmp_path / "moved").origin.contents()
    assert build(path=".").info["path"] == str(tmp_path / "x" / "data")


def test_composed_and_decomposed_names_are_one(tmp_path):
    for form in ("NFC", "NFD"):
        write(tmp_path / form)
        for split in (tmp_path / form / "train",):
            for file in sorted(split.glob("*.png")):
                file.rename(file.with_stem(unicodedata.normalize(form, f"\u00dcbung{file.stem}")))
            text = (split / "metadata.jsonl").read_text()
            for index in range(20):
                name = unicodedata.normalize(form, f"\u00dcbung{index}.png")
                text = text.replace(f'"{index}.png"', json.dumps(name, ensure_ascii=False))
            (split / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert held(tmp_path / "NFC") == held(tmp_path / "NFD")


def test_a_hold_out_is_drawn_again_by_its_names(tmp_path):
    root = write(tmp_path)
    first = held(root)
    assert held(root, held_out=first) == first
    assert held(root, held_out=()) == ()
    write(root, count=10, start=20)
    data = build(path=root, held_out=first)
    assert data.origin.held_out == first
    assert len(data.splits["train"]) == 24 and len(data.splits["validation"]) == 6


@pytest.mark.parametrize("spelled", ["data", "./data", "../x/data", "."])
def test_a_run_from_before_keeps_its_hold_out(tmp_path, monkeypatch, spelled):
    root = write(tmp_path / "x" / "data")
    monkeypatch.chdir(root if spelled == "." else tmp_path / "x")
    rows = list(build(path=root, validation_fraction=0).splits["train"])
    # As it was: the order is that of the names with the path before them.
    before = str(os.path.join(spelled, "")).removeprefix("./")
    import hashlib

    names = sorted(
        (f"train/{index}.png" for index in range(20)),
        key=lambda name: hashlib.sha256((before + name).encode()).hexdigest(),
    )
    _, taken = hold_out(root, rows, 0.3, former_path=spelled)
    assert sorted(row["image"] for row in taken) == sorted(str(root / n) for n in names[:6])
    data = build(path=root, former_path=spelled)
    assert former_digest(data, str(root)) == data.info["sha256"]


def test_fingerprints_see_both_ends(tmp_path):
    file = tmp_path / "x"
    marks = set()
    for size in (0, 10, 200_000):
        for change in (None, 0, -1):
            content = bytearray(size)
            if change is not None and size:
                content[change] = 1
            file.write_bytes(content)
            marks.add(fingerprint(file))
    assert len(marks) == 7


def test_copies_of_an_image_are_held_out_together(tmp_path):
    root = write(tmp_path)
    lines = []
    for index in range(20):
        shutil.copy(root / "train" / f"{index}.png", root / "train" / f"copy{index}.png")
        lines.append({"file_name": f"copy{index}.png", "question": "what?", "answer": "no"})
    with open(root / "train" / "metadata.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    names = [
        name.removeprefix("train/").removesuffix(".png") for name in held(root, allow_leak=False)
    ]
    assert len(names) == 12
    assert {n.removeprefix("copy") for n in names} == {n for n in names if "copy" not in n}
    assert "images_in_two_splits" not in build(path=root, allow_leak=False).info
