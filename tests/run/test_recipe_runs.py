"""Whole runs of `configs/folder.py`: what the data decide is kept, whatever becomes of the data."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from mmflax.config import auto
from mmflax.config.reading import load_config
from mmflax.data.facts import facts
from mmflax.errors import MmflaxError
from mmflax.run import ablate, recipe
from mmflax.run.build import Experiment
from mmflax.run.decide import opened
from mmflax.run.evaluate import evaluate
from mmflax.run.load import load
from mmflax.run.machine import Machine
from mmflax.run.train import train

ROWS = {
    "vqa": lambda i: {"question": f"what is it {i}?", "answer": ("cat", "dog")[i % 2]},
    "captioning": lambda i: {"caption": f"a thing of number {i}"},
    "retrieval": lambda i: {"caption": f"a thing of number {i}"},
    "translation": lambda i: {"source": f"thing {i}", "target": f"ein Ding {i}"},
    "matching": lambda i: {"statement": f"it is {i}", "label": i % 2 == 0},
    "entailment": lambda i: {"hypothesis": f"it is {i}", "label": "abc"[i % 3]},
    "classification": lambda i: {"label": "abc"[i % 3]},
    "reasoning": lambda i: {
        "file_name_2": f"{i + 1}.png", "statement": f"it is {i}", "label": i % 2 == 0
    },
}  # fmt: skip
# What is left after these is decided by the data.
SMALL = (
    "train.steps=2", "train.eval_every=2", "evaluation.bootstrap=0", "model.fusion.width=32",
    "model.fusion.depth=1", "model.image_encoder.depth=1", "checkpoint.keep_best=0",
    "checkpoint.best_metric=None",
)  # fmt: skip


def write(root, task, places):
    (root / "train").mkdir(parents=True, exist_ok=True)
    with open(root / "train" / "metadata.jsonl", "a") as file:
        for i in places:
            for name in (i, i + 1):
                pixels = np.random.default_rng(name).integers(0, 255, (30, 40, 3), np.uint8)
                Image.fromarray(pixels).save(root / "train" / f"{name}.png")
            if task == "reasoning" and i % 2:
                continue  # its second image is of the row before
            file.write(json.dumps({"file_name": f"{i}.png", **ROWS[task](i)}) + "\n")


def read(root, task, *words):
    words = [f"--config.{word}" for word in (*SMALL, *words)]
    return load_config(f"configs/folder.py:{task}:{root}", words, str)


def saved(workdir):
    return json.loads((workdir / "config.json").read_text())


def test_facts_are_those_of_the_train_split(tmp_path):
    write(tmp_path, "vqa", range(20))
    experiment = Experiment(read(tmp_path, "vqa", "data.validation_fraction=0.2"))
    found = facts(experiment.dataset())
    assert (found.task, found.examples, found.evaluated, found.pictures) == ("vqa", 16, 4, 16)
    assert set(found.sizes) == {(40, 30)} and found.answers == 2 and found.words == 4
    decided = recipe.decide(found, experiment.asked, Machine())
    assert decided["processor.image_size"].value == 40
    assert "40x30 pixels" in decided["processor.image_size"].why


def test_an_experiment_is_not_built_before_its_data_are_open(tmp_path):
    write(tmp_path, "vqa", range(20))
    experiment = Experiment(read(tmp_path, "vqa"))
    with pytest.raises(MmflaxError, match="processor.image_size is 'auto' until the data are open"):
        experiment.learn_processor(experiment.dataset())


@pytest.mark.slow
@pytest.mark.parametrize("task", ROWS)
def test_a_task_trains_and_is_judged(task, tmp_path, capsys):
    write(tmp_path / "data", task, range(24))
    train(read(tmp_path / "data", task), str(tmp_path / "w"))
    size = 32 if task == "retrieval" else 40  # its patches are of 32 pixels
    assert f"processor.image_size = {size}: the pictures have 40x30" in capsys.readouterr().out
    kept = saved(tmp_path / "w")
    assert auto.undecided(kept) == () and kept["processor"]["image_size"] == size
    assert kept["recipe"]["decided"]["data.batch_size"] == kept["data"]["batch_size"]
    evaluate(str(tmp_path / "w"), "validation")
    load(str(tmp_path / "w"))


@pytest.mark.slow
def test_steps_are_estimated_and_a_run_goes_on_as_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "LEAST_STEPS", 2)
    data, workdir = tmp_path / "data", tmp_path / "w"
    write(data, "vqa", range(24))
    config = read(data, "vqa", "train.steps=auto", "recipe.minutes=1e-6")
    result = train(config, str(workdir), quiet=True)
    assert int(result.state.step) == 2
    before = saved(workdir)
    assert before["train"]["steps"] == 2 == before["recipe"]["decided"]["train.steps"]
    write(data, "vqa", range(30, 400))
    monkeypatch.setattr("mmflax.run.machine.available_cores", lambda: 64)
    train(config | {"data": {**config["data"], "changed": "accept"}}, str(workdir), quiet=True)
    assert saved(workdir) == before
    more = read(data, "vqa", "train.steps=3", "data.changed=accept")
    assert int(train(more, str(workdir), quiet=True).state.step) == 3
    with pytest.raises(MmflaxError, match="processor.image_size: 40 -> 32"):
        train(read(data, "vqa", "processor.image_size=32"), str(workdir), quiet=True)
    evaluate(str(workdir), "validation", overrides=["--config.data.changed=accept"])


@pytest.mark.slow
def test_the_arms_of_an_ablation_share_what_was_decided(tmp_path, monkeypatch):
    write(tmp_path / "data", "vqa", range(24))
    config = read(tmp_path / "data", "vqa", "mesh.data=-1")
    kinds = ["co_attention", "concat"]
    words = dict(seeds=1, split="validation", match=False)
    ablate.ablate(config, str(tmp_path / "a"), kinds, **words, log=str)
    runs = [saved(path) for path in sorted((tmp_path / "a").glob("*-seed*"))]
    assert len(runs) == 2 and runs[0]["recipe"] == runs[1]["recipe"]
    assert runs[0]["data"] == runs[1]["data"]
    monkeypatch.setattr(recipe, "MOST_BATCH", 4 * jax.device_count())
    told = []
    ablate.ablate(config, str(tmp_path / "a"), kinds, **words, log=told.append)
    assert told[0] == "2 of 2 runs are finished already"


def test_every_process_has_what_the_first_decided(tmp_path):
    write(tmp_path, "vqa", range(20))
    experiment = Experiment(read(tmp_path, "vqa"))
    found = [opened(experiment, experiment.dataset()) for _ in range(2)]
    assert found[0].decided == found[1].decided and found[0].experiment == found[1].experiment
