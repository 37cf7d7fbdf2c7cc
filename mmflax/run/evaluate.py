"""Evaluation: a run's metrics in the training loop, and on a split when it has been trained."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmflax.config import auto
from mmflax.config.compare import check_same_run
from mmflax.config.overrides import override
from mmflax.data.dataset import Dataset, Subset, spaced, text_of
from mmflax.data.processor import Processor
from mmflax.data.survey import cut_texts
from mmflax.distributed import processes
from mmflax.evaluation.question_prior import question_prior
from mmflax.files import write_file
from mmflax.run import data_record, report
from mmflax.run.assemble import Built, assemble
from mmflax.run.build import Experiment, example_batch
from mmflax.run.decide import opened
from mmflax.run.evaluator import evaluator, usable
from mmflax.run.restore import restore, which
from mmflax.run.workdir import read_config


def evaluate(
    workdir: str,
    split: str = "test",
    step: int | str | None = None,
    overrides: Sequence[str] = (),
    mistakes: str | None = None,
) -> dict[str, Any]:
    """Evaluates a trained run on a split; also written to ``eval/<split>.json``.

    Args:
      workdir: of the run.
      split: of its data.
      step: a checkpoint's; by default ("best") the best one if the run ranked them, else the
        newest; "last" is the newest.
      overrides: ``--config.a.b=VALUE`` words for what may differ from the training, such as the
        path of data that were moved.
      mistakes: a picture file for the sheet of the most confident mistakes, which costs a further
        pass over the split.

    Returns:
      ``{"split", "step", "checkpoint", "examples", "seconds", "metrics": {view: {metric: value}},
      "intervals": {metric: [low, high]}}``; the views are those of ``evaluation.views`` and, where
      the task picks an answer, majority and question_prior. Intervals (95 %) are the full view's.
      With ``mistakes`` also ``{"mistakes": path, or None, "mistakes_in_all": how many}``; with
      unreadable images also ``{"bad_images": {id: reason}}``; they count in no metric.
    """
    root = pathlib.Path(workdir)
    former = read_config(root)
    config = auto.as_before(override(former, overrides), former)
    check_same_run(former, config, root)
    experiment, built, params, step = restore(root, step, config=config)
    record = data_record.read_record(root)
    dataset = experiment.dataset(built.processor, **data_record.hold_out_of(former, record))
    _, changes = data_record.compared(root, former, record, dataset, ("train", split), experiment)
    source = dataset.source(split)
    began = time.perf_counter()
    options = experiment.evaluation
    engine = evaluator(experiment, built)
    views, intervals = engine.score(
        params, source, bootstrap=options.bootstrap, rerank=options.rerank
    )
    if "majority" in views:
        used = Subset(source, usable(source, engine.bad)) if engine.bad else source
        views["question_prior"] = question_prior(dataset.source("train"), used, built.processor)
    cut = cut_note(built.processor, dataset, split)
    notes = [note for note in (cut, image_note(built, dataset, split)) if note is not None]
    if views.get("majority", {}).get("accuracy") == 1.0:
        notes.append(
            f"every answer of {split} is the commonest of train, so an accuracy of 100 % is what "
            "a constant answer reaches"
        )
    sheet = {}
    if mistakes is not None:
        found = report.find(experiment, built, params, source)
        shown = report.write(mistakes, found, source, built, split, {})
        sheet = {"mistakes": shown.mistakes, "mistakes_in_all": shown.wrong}
        if found is None:
            notes.append("the task neither answers, writes nor searches, so it has no mistakes")
    result = {
        "split": split,
        "step": step,
        "checkpoint": which(experiment, root, step),
        "examples": len(source),
        "seconds": round(time.perf_counter() - began, 2),
        "metrics": views,
        "intervals": intervals,
        **sheet,
        **({"notes": notes} if notes else {}),
        **({"data_changed": changes} if changes else {}),
        **({"bad_images": dict(sorted(engine.bad.items()))} if engine.bad else {}),
    }
    if processes.is_main():
        path = root / "eval" / f"{split}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            write_file(path, json.dumps(result, indent=1) + "\n")
        except OSError as error:  # what was computed is worth more than its file
            reason = error.strerror or str(error)
            result["notes"] = [*notes, f"{path} could not be written ({reason})"]
    return result


def cut_note(processor: Processor, dataset: Dataset, split: str) -> str | None:
    """A sentence on the split's questions that are longer than the processor reads, if any is."""
    if split not in dataset.splits:
        return None
    source = dataset.source(split)
    texts = (text_of(source, index).get("question") for index in range(len(source)))
    return cut_texts(processor.tokenizer, processor.max_length, texts, f"of {split}")


def image_note(built: Built, dataset: Dataset, split: str) -> str | None:
    """A sentence on data for retrieval that do not say which rows show the same image."""
    source = dataset.source(split)
    if built.task.search is None or not len(source) or "image_id" in text_of(source, 0):
        return None
    return (
        f"the rows of {split} have no image_id, so each counts as an image of its own: several "
        "texts of one image would count as wrong for each other"
    )


def metric_names(config: Mapping[str, Any], split: str) -> set[str]:
    """What `evaluate` will call the full view's metrics on the split, from an untrained model."""
    experiment = Experiment(config)
    dataset = experiment.dataset()
    experiment, processor, _ = opened(experiment, dataset)
    built = assemble(experiment, processor, experiment.mesh())
    params = built.init(jax.random.key(0))
    few = spaced(dataset.source(split), experiment.evaluation.batch_size)
    rerank = experiment.evaluation.rerank
    scores = evaluator(experiment, built).score(params, few, bootstrap=0, rerank=rerank)
    example = example_batch(built.processor, 1)

    def metrics(params: Any) -> Any:
        outputs: Any = built.task.model.apply({"params": params}, example, train=False)
        return built.task.metrics(outputs, example)

    # Also those that count none of these few.
    return {*scores.metrics["full"], *jax.eval_shape(metrics, params)}
