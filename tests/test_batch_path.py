"""The path of a batch, from a row of a folder to the loss, that docs/architecture.md walks."""

import json
import pathlib
import sys
from collections.abc import Mapping

import jax
import numpy as np
from PIL import Image

from mmflax.config.reading import load_config
from mmflax.data import pipeline
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment
from mmflax.run.decide import opened

ROOT = pathlib.Path(__file__).parent.parent / "mmflax"
ARCHITECTURE = ROOT.parent / "docs" / "architecture.md"


def write_folder(root):
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        rows = []
        for i in range(20):
            name, answer = f"{i}.png", ("cat", "dog")[i % 2]
            Image.fromarray(np.full((40, 40, 3), i, np.uint8)).save(root / split / name)
            rows.append({"file_name": name, "question": "what is it?", "answer": answer})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / split / "metadata.jsonl").write_text(lines)


def holds_data(value):
    """Whether an argument is, or has in it, arrays, an image or a text of the batch."""
    if isinstance(value, Mapping):
        return any(map(holds_data, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_data, value))
    return isinstance(value, np.ndarray | jax.Array | Image.Image | str)


def files_passed(function):
    """Files of mmflax whose functions are given data while ``function`` runs."""
    passed = {}

    def profile(frame, event, argument):
        path = pathlib.Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and frame.f_code.co_name[0] != "<":
            if any(map(holds_data, list(frame.f_locals.values()))):
                passed.setdefault(path.relative_to(ROOT).as_posix(), set()).add(
                    frame.f_code.co_name
                )

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return passed


def test_a_batch_passes_at_most_twenty_files_and_the_documentation_names_them(tmp_path):
    write_folder(tmp_path)
    experiment = Experiment(
        load_config(f"{ROOT.parent}/configs/folder.py:vqa:{tmp_path}", ["--config.train.steps=9"])
        | {"mesh": {"data": 1, "fsdp": 1, "tensor": 1}}
    )
    dataset = experiment.dataset()
    mesh = experiment.mesh(jax.devices()[:1])
    experiment, processor, _ = opened(experiment, dataset, mesh=mesh)
    built = assemble(experiment, processor, mesh)
    task, source = built.task, dataset.source("train")
    key = jax.random.key(0)

    def loss(params, batch):
        rngs = {"dropout": key, "modality": key}
        return task.loss(task.model.apply({"params": params}, batch, train=True, rngs=rngs), batch)

    def walk():
        batches = pipeline.train_iterator(source, processor, batch_size=4, seed=0, num_threads=0)
        batch = {name: value for name, value in batches.next().items() if name != "id"}
        assert jax.eval_shape(loss, built.abstract.params, batch).shape == (4,)

    passed = files_passed(walk)
    assert len(passed) <= 20, sorted(passed)
    text = ARCHITECTURE.read_text().partition("\n## ")[2].partition("\n## ")[0]
    missing = {path for path in passed if f"`{path}`" not in text}
    assert not missing, "add to the path of a batch in docs/architecture.md"
