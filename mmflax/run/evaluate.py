"""Evaluation of a trained run on a split."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from mmflax.distributed import processes
from mmflax.evaluation.question_prior import question_prior
from mmflax.files import write_file
from mmflax.run import scoring
from mmflax.run.build import Experiment, assemble
from mmflax.run.restore import restore


def evaluate(workdir: str, split: str = "test", step: int | None = None) -> dict[str, Any]:
    """Evaluates a trained run on a split; also written to ``eval/<split>.json``.

    Returns:
      ``{"split", "step", "examples", "seconds", "metrics": {view: {metric: value}}, "intervals":
      {metric: [low, high]}}``; the views are full, text_only, image_only and, where the task picks
      an answer, majority and question_prior. Intervals (95 %) are the full view's.
    """
    root = pathlib.Path(workdir)
    experiment, built, params, step = restore(root, step)
    dataset = experiment.dataset()
    source = dataset.source(split)
    began = time.perf_counter()
    views, intervals = scoring.score_split(experiment, built, dataset, split, params)
    if "majority" in views:
        views["question_prior"] = question_prior(dataset.source("train"), source)
    result = {
        "split": split,
        "step": step,
        "examples": len(source),
        "seconds": round(time.perf_counter() - began, 2),
        "metrics": views,
        "intervals": intervals,
    }
    if processes.is_main():
        path = root / "eval" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        write_file(path, json.dumps(result, indent=1) + "\n")
    return result


def metric_names(config: Mapping[str, Any], split: str) -> set[str]:
    """What evaluating this experiment on the split will report, without training it."""
    experiment = Experiment(config)
    dataset = experiment.dataset()
    built = assemble(experiment, experiment.learn_processor(dataset), experiment.mesh())
    return scoring.metric_names(experiment, built, dataset, split)
