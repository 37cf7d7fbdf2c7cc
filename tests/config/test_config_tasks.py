"""Every task that the shipped configs name fits together: data, processor, model, loss."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from mmflax.config.reading import load_config
from mmflax.data.dataset import Dataset
from mmflax.errors import MmflaxError
from mmflax.run.assemble import apply_fn
from mmflax.run.build import Experiment, example_batch
from mmflax.run.decide import opened

ROOT = pathlib.Path(__file__).parents[2] / "configs"


def arguments(name, table):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(getattr(module, table))


IMAGE = np.zeros((8, 8, 3), np.uint8)
# What the data of each kind of task holds, by a part of the argument's name.
RAW = {
    "reasoning": dict(second_image=IMAGE, answer="true", group="g"),
    "nlvr2": dict(second_image=IMAGE, answer="true", group="g"),
    "caption": dict(question=None, target="a dog", references=["a dog"]),
    "translation": dict(target="ein Hund", references=["ein Hund"]),
    "generative": dict(target="dog", references=["dog"]),
    "vqa": dict(answer="dog", answers=["dog"] * 10),
}
CASES = [("folder", arg) for arg in arguments("folder", "TASKS")]
CASES += [("shapes", arg) for arg in arguments("shapes", "TASKS")]
CASES += [("public", arg) for arg in arguments("public", "RUNS")]
CASES += [
    (name, arg)
    for name in ("bridgetower", "vilt", "clip", "siglip")
    for arg in arguments(name, "RUNS")
]


def dataset(arg):
    more = next((values for key, values in RAW.items() if key in arg), dict(answer="yes"))
    raw = {"image": IMAGE, "image_id": "1", "question": "what is it?", "caption": "a dog"}
    rows = [{**raw, "id": str(i), **more} for i in range(20)]
    return Dataset("made", {"train": rows, "validation": rows})


@pytest.mark.parametrize(("name", "arg"), CASES)
def test_a_named_task_builds_and_has_a_loss(name, arg):
    config = load_config(f"configs/{name}.py:{arg}")
    for part in ("image_encoder", "text_encoder", "fusion"):
        if part != "image_encoder" or name != "vilt":  # its images pass no layer
            config["model"][part]["depth"] = 1  # all layers are alike
    config["train"] = {**config["train"], "steps": 1000}  # then no work is estimated
    experiment, processor, _ = opened(Experiment(config), dataset(arg))
    experiment.augment()
    task = experiment.task(processor)
    batch = example_batch(processor, 2)

    def run(key):
        params = task.model.init(key, batch, train=False)["params"]
        outputs = apply_fn(task)(params, batch, key, True)
        return task.loss(outputs, batch), task.metrics(outputs, batch)

    loss, metrics = jax.eval_shape(run, jax.random.key(0))
    assert loss.shape == (2,)
    ranked = experiment.config["checkpoint"].get("best_metric")
    assert ranked is None or ranked.removeprefix("validation/") in metrics


def test_a_task_whose_data_lacks_what_it_needs_says_so():
    with pytest.raises(MmflaxError, match="needs an 'answer' of every training example"):
        opened(Experiment(load_config("configs/folder.py:vqa")), dataset("captioning"))
    with pytest.raises(MmflaxError, match="target"):
        opened(Experiment(load_config("configs/folder.py:captioning")), dataset("vqa"))


@pytest.mark.parametrize("name", ["shapes", "folder", "public", "clip", "vilt"])
def test_an_unknown_task_lists_the_known(name):
    with pytest.raises(MmflaxError, match="one of") as found:
        load_config(f"configs/{name}.py:dancing")
    assert "Traceback" not in str(found.value) and "\n" not in str(found.value)
