"""One command from a checkpoint to a run that goes on, is judged and answers without it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mmflax import cli
from mmflax.pretrained.inspect import inspect
from mmflax.run.workdir import read_config
from tests.data.layouts import detected
from tests.run.small_sources import small


def folder(root):
    """Twenty pictures of two animals, with questions and captions."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        (root / split).mkdir(parents=True)
        rows = []
        for i in range(count):
            pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{i}.png")
            animal = ["cat", "dog"][i % 2]
            row = {"file_name": f"{i}.png", "question": "what animal is it", "answer": animal}
            row |= {"source": row["question"], "target": animal}
            rows.append(json.dumps({**row, "caption": f"{animal} {split[:2]}{i}"}))
        (root / split / "metadata.jsonl").write_text("\n".join(rows))
    return root


def source_of(family, root):
    """The arguments of `small` for blip, or blip:caption."""
    family, _, name = family.partition(":")
    return family, root, f"{family}-{name}" if name else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("families", "task"),
    [
        ("vit+bert", "vqa"), ("clip", "retrieval"), ("blip", "vqa"),
        ("blip:caption", "captioning"), ("blip:answer", "translation"),
    ],
)  # fmt: skip
def test_a_whole_run(families, task, tmp_path, capsys):
    data, sources = folder(tmp_path / "data"), tmp_path / "sources"
    source = ",".join(small(*source_of(family, sources)) for family in families.split("+"))
    workdir = str(tmp_path / "run")
    train = ["train", "--config", f"configs/finetune.py:{task}:{data}", "--workdir", workdir]
    train += ["--config.data.batch_size=8", "--config.optim.schedule.total_steps=5"]
    first = [*train, f"--config.init.from={source}", "--config.train.steps=3"]
    assert cli.main(first) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "decided by the checkpoint:" in shown and "done at step 3" in shown
    kept = read_config(tmp_path / "run")
    shutil.rmtree(sources)
    assert cli.main([*train, "--config.train.steps=5"]) == 0, capsys.readouterr().err
    assert "done at step 5" in capsys.readouterr().out
    assert read_config(tmp_path / "run")["model"] == kept["model"]
    assert cli.main(["evaluate", "--workdir", workdir]) == 0, capsys.readouterr().err
    asked = ["--image", str(data / "test" / "0.png")]
    asked += [] if task == "captioning" else ["--text", "what animal is it"]
    assert cli.main(["predict", "--workdir", workdir, *asked]) == 0, capsys.readouterr().err


def folder_of_regions(root, dim, pairs=False):
    """Twenty files of what a detector found, in place of pictures; no picture is there."""
    for split, count in (("train", 20), ("test", 6)):
        (root / split).mkdir(parents=True)
        rows = []
        for i in range(count):
            found = detected(f"{split}{i}", 3 + i % 2, dim)
            np.savez(
                root / split / f"{i}.npz",
                x=found["features"], bbox=found["boxes"], image_w=64, image_h=48,
            )  # fmt: skip
            row = {"regions": f"{i}.npz", "question": "what animal is it"}
            row |= {"answer": ["cat", "dog"][i % 2]}
            if pairs:
                row = {"regions": f"{i}.npz", "regions_2": f"{i ^ 1}.npz"}
                row |= {"statement": f"both are cats {i // 2}", "label": ["true", "false"][i % 2]}
            rows.append(json.dumps(row))
        (root / split / "metadata.jsonl").write_text("\n".join(rows))
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"), [("lxmert", "vqa"), ("visual_bert", "vqa"), ("lxmert", "reasoning")]
)
def test_a_whole_run_on_a_folder_of_regions(family, task, tmp_path, capsys):
    source = small(family, tmp_path / "sources")
    dim = inspect(source).fields["image_encoder"]["feature_dim"]
    data = folder_of_regions(tmp_path / "data", dim, task == "reasoning")
    workdir = str(tmp_path / "run")
    train = ["train", "--config", f"configs/finetune.py:{task}:{data}", "--workdir", workdir]
    train += [f"--config.init.from={source}", "--config.data.batch_size=8"]
    assert cli.main([*train, "--config.train.steps=2"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "a detector's regions" in shown and "done at step 2" in shown
    assert cli.main(["evaluate", "--workdir", workdir]) == 0, capsys.readouterr().err
    found = json.loads(next((tmp_path / "run" / "eval").glob("*.json")).read_text())
    assert found["metrics"].keys() >= {"full", "text_only", "image_only"}
    if task == "vqa":
        asked = ["--image", str(data / "test" / "0.npz"), "--text", "what animal is it"]
        assert cli.main(["predict", "--workdir", workdir, *asked]) == 0, capsys.readouterr().err
        assert "dog" in capsys.readouterr().out


@pytest.mark.slow
def test_regions_of_another_detector_are_said_before_training(tmp_path, capsys):
    data = folder_of_regions(tmp_path / "data", 7)
    source = small("lxmert", tmp_path / "sources")
    train = ["train", "--config", f"configs/finetune.py:vqa:{data}", f"--config.init.from={source}"]
    assert cli.main([*train, "--workdir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "feature_projection/kernel is [10, 16] in" in said and "not [7, 16]" in said
