"""Data that changed under a run are refused in one sentence, or accepted without a leak."""

import json
import shutil

import pytest
from PIL import Image

from mmflax.config.compare import check_same_run, located
from mmflax.config.reading import load_config
from mmflax.data.dataset import Dataset
from mmflax.data.datasets.folder import build
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.run import data_record
from mmflax.run.build import Experiment


def write(root, split, names, answers=("yes", "no")):
    (root / split).mkdir(parents=True, exist_ok=True)
    with open(root / split / "metadata.jsonl", "a") as file:
        for name in names:
            color = (name % 256, name // 256, len(split))
            Image.new("RGB", (8, 8), color).save(root / split / f"{name}.png")
            row = {"file_name": f"{name}.png", "question": "what?"}
            file.write(json.dumps(row | {"answer": answers[name % len(answers)]}) + "\n")


def begin(root, workdir):
    """What a run writes of its data when it begins."""
    dataset = build(path=root)
    workdir.mkdir()
    data_record.record_of(dataset).save(workdir)
    return dataset


def again(root, workdir, *words, splits=("train", "validation")):
    former = load_config(f"configs/folder.py:vqa:{root}")
    experiment = Experiment(load_config(f"configs/folder.py:vqa:{root}", words))
    record = data_record.read_record(workdir)
    dataset = experiment.dataset(**data_record.hold_out_of(former, record))
    now, changes = data_record.compared(workdir, former, record, dataset, splits, experiment)
    return dataset, now, changes


def add(root):
    write(root, "train", range(40, 60))


def remove(root):
    file = root / "train" / "metadata.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[2:]))


def correct(root):
    file = root / "train" / "metadata.jsonl"
    file.write_text(file.read_text().replace('"yes"', '"no"', 1))


def repaint(root):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "train" / "3.png")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (add, "train: 20 rows added"),
        (remove, "train: 2 rows removed"),
        (correct, "train: 1 row added, 1 row removed"),
        (repaint, "train: 1 image changed"),
        (lambda root: write(root, "validation", [70]), "validation: 1 row added"),
    ],
    ids=["add", "remove", "correct", "repaint", "validation"],
)
def test_changed_data_are_refused_and_accepted_by_the_remedy(tmp_path, change, what):
    root, workdir = tmp_path / "data", tmp_path / "run"
    write(root, "train", range(40))
    if "validation" in what:
        write(root, "validation", [60, 61])
    first = begin(root, workdir)
    assert again(root, workdir)[2] == []
    old_train = {row["image"] for row in first.splits["train"]}
    change(root)
    with pytest.raises(MmflaxError, match=what) as caught:
        again(root, workdir)
    remedy = next(word for word in str(caught.value).split() if word.startswith("--config."))
    dataset, now, changes = again(root, workdir, remedy.rstrip(",;."))
    assert changes == [what]
    assert not old_train & {row["image"] for row in dataset.splits["validation"]}
    now.save(workdir)
    assert again(root, workdir)[2] == []


def test_growing_twice_never_moves_an_image_into_validation(tmp_path):
    root, workdir = tmp_path / "data", tmp_path / "run"
    write(root, "train", range(20))
    trained = {row["image"] for row in begin(root, workdir).splits["train"]}
    for start in (20, 50):
        write(root, "train", range(start, start + 30))
        dataset, now, _ = again(root, workdir, "--config.data.changed=accept")
        now.save(workdir)
        assert not trained & {row["image"] for row in dataset.splits["validation"]}
        trained |= {row["image"] for row in dataset.splits["train"]}
    assert len(dataset.splits["validation"]) == 2


def test_a_new_split_is_no_change_unless_it_was_trained_on(tmp_path):
    root, workdir = tmp_path / "data", tmp_path / "run"
    write(root, "train", range(20))
    begin(root, workdir)
    write(root, "test", [90, 91])
    assert again(root, workdir, splits=("train", "test"))[2] == []
    # An image of train, moved to test, under another name.
    held = set(data_record.read_record(workdir).held_out)
    name = next(f"{i}.png" for i in range(20) if f"train/{i}.png" not in held)
    shutil.move(root / "train" / name, root / "test" / "moved.png")
    for split, old, new in (("train", name, None), ("test", "90.png", "moved.png")):
        file = root / split / "metadata.jsonl"
        lines = file.read_text().splitlines()
        if new is None:
            lines = [line for line in lines if json.loads(line)["file_name"] != old]
        file.write_text("\n".join(lines).replace(old, new or old) + "\n")
    for words in ((), ("--config.data.changed=accept",)):
        with pytest.raises(MmflaxError, match="moved.png of test was train/|1 row removed"):
            again(root, workdir, *words, splits=("train", "test"))
    accept = ("--config.data.changed=accept", "--config.data.allow_leak=True")
    assert again(root, workdir, *accept, splits=("train", "test"))[2] == ["train: 1 row removed"]


def test_moved_data_are_the_same(tmp_path):
    root, workdir = tmp_path / "data", tmp_path / "run"
    write(root, "train", range(20))
    begin(root, workdir)
    shutil.copytree(root, tmp_path / "elsewhere")
    assert again(tmp_path / "elsewhere", workdir)[2] == []


def test_answers_that_a_run_does_not_know_are_said(tmp_path):
    root = tmp_path / "data"
    write(root, "train", range(8))
    processor = Processor.learn(build(path=root), image_size=8)
    write(root, "train", [100, 101, 102], answers=("maybe",))
    text = data_record.unknown_answers(build(path=root), ["train", "nowhere"], processor)
    assert text.startswith("3 examples have answers that this run does not know ('maybe')")
    assert data_record.unknown_answers(build(path=root), ["nowhere"], processor) is None


@pytest.mark.parametrize(
    ("count", "info", "what"),
    [
        (3, {"left_out": 0}, None),
        (4, {"left_out": 0}, "train: 3 examples then, 4 now"),
        (3, {"left_out": 2}, "left_out: 0 then, 2 now"),
        (3, {"other": 2}, None),
    ],
)
def test_data_that_cannot_list_their_rows_are_counted(tmp_path, count, info, what):
    def record(count, info):
        return data_record.record_of(Dataset("public", {"train": [{}] * count}, info))

    record(3, {"left_out": 0, "files": "a"}).save(tmp_path)
    old, new = data_record.read_record(tmp_path), record(count, info)

    def compare(accept):
        return data_record.check_unchanged(old, new, ["train"], accept=accept, where="run")

    if what is None:
        assert compare(False) == []
        return
    with pytest.raises(MmflaxError, match=what):
        compare(False)
    assert compare(True) == [what]


def test_a_damaged_record_is_named(tmp_path):
    assert data_record.read_record(tmp_path) is None
    for text in ("{", "[]", '{"format": 2}'):
        (tmp_path / data_record.FILE).write_text(text)
        with pytest.raises(MmflaxError, match=r"data\.json cannot be used"):
            data_record.read_record(tmp_path)


def test_runs_from_before_records_are_compared_by_their_digest(tmp_path):
    root, workdir = tmp_path / "data", tmp_path / "run"
    write(root, "train", range(20))
    workdir.mkdir()
    assert again(root, workdir)[2] == []
    known = {"dataset": {"sha256": build(path=root).info["sha256"]}}
    (workdir / "run.json").write_text(json.dumps(known))
    assert again(root, workdir)[2] == []
    add(root)
    with pytest.raises(
        MmflaxError, match=r"older than data\.json\); go on with --config\.data\.ch"
    ):
        again(root, workdir)
    assert len(again(root, workdir, "--config.data.changed=accept")[2]) == 1


@pytest.mark.parametrize("spelled", ["data", "./data", "data/", "../x/data", "~/x/data"])
def test_the_config_of_a_run_may_spell_paths_in_any_way(tmp_path, monkeypatch, spelled):
    (tmp_path / "x" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    init = {"from": spelled, "text_encoder": {"from": spelled}}

    def config(path, init=init):
        data = {"name": "folder", "path": path}
        return {"data": data, "processor": {"from": [path, "hub/name"]}, "init": init}

    absolute = str(tmp_path / "x" / "data")
    stored = located(config(spelled))
    assert stored == config(absolute, {"from": absolute, "text_encoder": {"from": absolute}})
    check_same_run(config("data"), config(spelled), tmp_path)
    check_same_run(stored, config(spelled), tmp_path)
    other = config(spelled) | {"processor": {"from": "other/name"}}
    with pytest.raises(MmflaxError, match="another config"):
        check_same_run(stored, other, tmp_path)


def test_paths_of_a_data_set_of_the_users_are_left_alone():
    config = {"data": {"name": "my.data", "path": "x/"}}
    assert located(config) == config
    with pytest.raises(MmflaxError, match="another config"):
        check_same_run(config, {"data": {"name": "my.data", "path": "x"}}, "run")
