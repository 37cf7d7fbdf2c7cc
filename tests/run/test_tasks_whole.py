"""Every task from the embedded data to an answer: train, evaluate with modality views, predict."""

import math

import numpy as np
import pytest

from mmflax.config.reading import load_config
from mmflax.evaluation.tables import table
from mmflax.inference.search import Retriever
from mmflax.run.build import Experiment
from mmflax.run.evaluate import evaluate
from mmflax.run.load import load
from mmflax.run.train import train

SMALL = [
    "--config.data.num_scenes=60",
    "--config.data.batch_size=8",
    "--config.train.steps=3",
    "--config.train.eval_every=3",
    "--config.train.checkpoint_every=3",
    "--config.optim.schedule.warmup_steps=1",
    "--config.evaluation.batch_size=16",
    "--config.evaluation.max_examples=16",
    "--config.model.image_encoder.depth=1",
    "--config.model.fusion.depth=1",
    "--config.checkpoint.keep_best=0",
]
# What `evaluate` must report beside the sums over examples.
SCORED = {
    "captioning": "cider_d",
    "translation": "bleu_4",
    "generative_vqa": "exact_match",
    "matching": "accuracy",
    "entailment": "accuracy",
    "classification": "macro_f1",
    "nlvr": "consistency",
    "nlvr2": "consistency",
    "retrieval": "rsum",
}
EVERY_DAY = ("retrieval",)
CASES = [pytest.param(task, marks=() if task in EVERY_DAY else pytest.mark.slow) for task in SCORED]


@pytest.mark.parametrize("task", CASES)
def test_a_task_trains_is_judged_and_answers(task, shapes_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MMFLAX_DATA_DIR", str(shapes_dir))
    config = load_config(f"configs/shapes.py:{task}", SMALL)
    result = train(config, str(tmp_path / "w"), quiet=True)
    assert math.isfinite(result.metrics["validation/loss"])
    found = evaluate(str(tmp_path / "w"), "test")
    full = found["metrics"]["full"]
    assert SCORED[task] in full and all(math.isfinite(value) for value in full.values())
    # Retrieval compares an image with a text: with one of them absent there is nothing to measure.
    views = {"full"} if task == "retrieval" else {"full", "text_only", "image_only"}
    assert views == set(found["metrics"]) - {"majority", "question_prior"}
    assert task != "retrieval" or 0 <= full["rsum"] <= 600
    low, high = found["intervals"]["loss"]
    assert low <= full["loss"] <= high
    assert SCORED[task] in table(found)

    run = load(str(tmp_path / "w"), batch_size=2)
    source = Experiment(config).dataset().source("test")
    raw = source[0]
    if task == "retrieval":
        retriever = Retriever(run.task.search, run.params, run.processor, batch_size=4)
        hits = retriever.find_images(raw["question"], [source[i]["image"] for i in range(6)], top=3)
        assert len({hit.index for hit in hits}) == 3
        return
    asked = dict(second_image=raw.get("second_image"))
    prediction = run.predict(raw["image"], raw["question"], **asked)
    assert isinstance(prediction.answer, str)
    if prediction.probability is None:
        assert prediction.score is not None and np.isfinite(prediction.score)
    else:
        assert prediction.answer in run.processor.answers
    # Either side may be absent when asking, whatever training had.
    assert isinstance(run.predict(raw["image"], None, **asked).answer, str)
    if raw["question"] is not None and task != "nlvr2":
        assert isinstance(run.predict(None, raw["question"]).answer, str)
