"""A task judged on a split: sums inside the training loop; row by row, with intervals, afterwards.

Both see three views of every example (all of it, its text only, its image only), and where a task
picks among answers also the commonest one, because a score means little until it stands beside what
a blind model reaches (Goyal et al. 2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmflax.data import pipeline
from mmflax.data.dataset import PICTURES, Dataset, Subset, text_of
from mmflax.distributed import mesh as meshes
from mmflax.evaluation.bootstrap import mean_interval, record_interval
from mmflax.evaluation.exact import make_evaluate
from mmflax.evaluation.modality_views import VIEWS, blind_eval_step, seen
from mmflax.inference.search import evaluate_retrieval
from mmflax.run.build import Built, Experiment, apply_fn, example_batch
from mmflax.training.step import make_eval_step, sum_rows

_KEEP_LOGITS = 64  # answers; more are reduced to the best one as soon as they arrive
_SCORE_SAMPLES = 100  # a score over records (CIDEr-D, AUROC) is costly to resample


def evaluator(
    experiment: Experiment, built: Built, dataset: Dataset, split: str
) -> Callable[[Any], dict[str, float]]:
    """``fn(params) -> {metric: value}`` on a split, compiled once: what the loop calls."""
    source: Any = dataset.source(split)
    limit = experiment.evaluation.max_examples
    if limit is not None and limit < len(source):
        # Evenly spaced, so that every kind of example is among them.
        source = Subset(source, np.linspace(0, len(source) - 1, limit).round().astype(int).tolist())
    task, majority = built.task, _majority(built)

    def majority_sums(batch: dict[str, Any]) -> dict[str, Any]:
        assert majority is not None
        return sum_rows(jnp.zeros(batch["mask"].shape), task.metrics(majority(batch), batch), batch)

    step = blind_eval_step(
        make_eval_step(apply_fn(task), task.loss, task.metrics),
        majority_sums if majority is not None else None,
        image_tokens=task.model.backbone.image_encoder.num_tokens(),
    )
    run = make_evaluate(step, built.mesh)

    def evaluate_now(params: Any) -> dict[str, float]:
        return run(params, _batches(experiment, built, source))

    return evaluate_now


def score_split(
    experiment: Experiment, built: Built, dataset: Dataset, split: str, params: Any
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """Every metric of every view on a whole split, and the full view's 95 % intervals.

    Returns:
      ``{view: {metric: value}}`` and ``{metric: [low, high]}``, by the bootstrap over examples
      (over groups, where examples are judged together). Only ``evaluation.bootstrap`` above 0 gives
      intervals.
    """
    source = dataset.source(split)
    rows = _rows(experiment, built, source, params)
    views: dict[str, dict[str, float]] = {}
    intervals: dict[str, list[float]] = {}
    samples = experiment.evaluation.bootstrap
    for view, (sums, records) in rows.items():
        views[view] = {
            name: float(total.sum() / count.sum())
            for name, (total, count) in sorted(sums.items())
            if count.sum()
        }
        groups = _groups(records)
        if view == "full" and samples:
            for name, (total, count) in sums.items():
                if count.sum():
                    intervals[name] = list(
                        mean_interval(total, count, groups=groups, samples=samples)
                    )
        if built.task.score is None or view == "majority":
            continue
        views[view] |= built.task.score(records)
        if view == "full" and samples:
            found = record_interval(
                records, built.task.score, groups=groups, samples=min(samples, _SCORE_SAMPLES)
            )
            intervals |= {name: list(pair) for name, pair in found.items()}
    if built.task.search is not None:
        views["full"] |= evaluate_retrieval(
            built.task.search,
            params,
            built.processor,
            source,
            batch_size=experiment.evaluation.batch_size,
            rerank=experiment.evaluation.rerank,
        )
    return views, intervals


def metric_names(experiment: Experiment, built: Built, dataset: Dataset, split: str) -> set[str]:
    """What `score_split` will call the full view's metrics: found by an untrained model on a few
    examples, so that a misspelt name is known before any training."""
    params = built.init(jax.random.key(0))
    source: Any = dataset.source(split)
    few = min(len(source), experiment.evaluation.batch_size)
    part = Subset(source, np.linspace(0, len(source) - 1, few).round().astype(int).tolist())
    config = {
        **experiment.config,
        "evaluation": {**dataclasses.asdict(experiment.evaluation), "bootstrap": 0},
    }
    small = dataclasses.replace(dataset, splits={**dataset.splits, split: part})
    views, _ = score_split(Experiment(config), built, small, split, params)
    example = example_batch(built.processor, 1)
    apply = apply_fn(built.task)
    per_type = jax.eval_shape(
        lambda params: built.task.metrics(apply(params, example, None, False), example), params
    )
    return {*views["full"], *per_type}


def by_view(flat: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``{"text_only/accuracy": …}`` as ``{"text_only": {"accuracy": …}, "full": …}``."""
    views: dict[str, dict[str, float]] = {view: {} for view in VIEWS}
    for name, value in flat.items():
        view, _, metric = name.partition("/")
        if view in VIEWS:
            views[view][metric] = value
        else:
            views["full"][name] = value
    return {view: values for view, values in views.items() if values}


Rows = dict[str, tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[dict[str, Any]]]]


def _rows(experiment: Experiment, built: Built, source: Any, params: Any) -> Rows:
    """Per view: each metric's (sum, count) of every example, and every example's record."""
    task, processor = built.task, built.processor
    tokens = task.model.backbone.image_encoder.num_tokens()
    apply, majority = apply_fn(task), _majority(built)

    def step(params: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for view, viewed in seen(batch, tokens).items():
            outputs = apply(params, viewed, None, False)
            ones = jnp.ones(batch["mask"].shape, jnp.float32)
            sums = {**task.metrics(outputs, viewed), "loss": (task.loss(outputs, viewed), ones)}
            found[view] = (sums, task.predict(params, viewed) if task.predict else {})
        if majority is not None:
            found["majority"] = (task.metrics(majority(batch), batch), {})
        return {"views": found, "mask": batch["mask"]}

    replicated = NamedSharding(built.mesh, PartitionSpec())
    compiled = meshes.on_mesh(jax.jit(step, out_shardings=replicated), built.mesh)
    sums: dict[str, dict[str, list[Any]]] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    index = 0
    for batch in _batches(experiment, built, source):
        arrays = {name: value for name, value in batch.items() if name != "id"}
        found = jax.device_get(compiled(params, meshes.put_batch(arrays, built.mesh)))
        # Padding, and an example whose image could not be read, count nowhere.
        used = np.flatnonzero(found["mask"])
        raws = {row: _without_images(text_of(source, index + row)) for row in used.tolist()}
        for view, (metrics, predicted) in found["views"].items():
            kept = sums.setdefault(view, {})
            for name, pair in metrics.items():
                kept.setdefault(name, []).append(np.stack(pair)[:, used])
            rows = records.setdefault(view, [])
            for row, raw in raws.items():
                values = {name: value[row] for name, value in predicted.items()}
                rows.append(raw | _readable(values, processor))
        index += experiment.evaluation.batch_size
    return {
        view: (
            {
                name: tuple(np.concatenate(parts, axis=1).astype(np.float64))
                for name, parts in metrics.items()
            },
            records[view],
        )
        for view, metrics in sums.items()
    }


def _batches(experiment: Experiment, built: Built, source: Any) -> pipeline.EvalBatches:
    index, count = meshes.data_shard(built.mesh)
    return pipeline.eval_batches(
        source,
        built.processor,
        batch_size=experiment.evaluation.batch_size,
        process_index=index,
        process_count=count,
        num_threads=experiment.data["num_threads"],
        max_bad_fraction=experiment.data["max_bad_fraction"],
    )


def _majority(built: Built) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
    """``batch -> outputs`` whose logits always prefer the commonest answer; None if the task does
    not score answers. Answers are in order of frequency, so that is the first."""
    answers = len(built.processor.answers)
    shapes = jax.eval_shape(
        lambda params, batch: apply_fn(built.task)(params, batch, None, False),
        built.abstract.params,
        example_batch(built.processor, 1),
    )
    if not answers or getattr(shapes.get("logits"), "shape", None) != (1, answers):
        return None

    def majority(batch: Mapping[str, Any]) -> dict[str, Any]:
        rows = batch["label"].shape[0]
        outputs = jax.tree.map(lambda s: jnp.zeros((rows, *s.shape[1:]), s.dtype), shapes)
        scores = jnp.arange(answers, 0, -1, dtype=jnp.float32)
        return {**outputs, "logits": jnp.broadcast_to(scores[None], (rows, answers))}

    return majority


def _readable(values: dict[str, Any], processor: Any) -> dict[str, Any]:
    if "tokens" in values:
        values["text"] = processor.decode(values["tokens"])
    if "logits" in values:
        values["predicted_answer"] = processor.answers[int(np.argmax(values["logits"]))]
        if len(processor.answers) > _KEEP_LOGITS:
            del values["logits"]
    return values


def _without_images(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in PICTURES}


def _groups(records: list[dict[str, Any]]) -> list[str] | None:
    """What is resampled as a whole: examples of one group, else of one image."""
    for key in ("group", "image_id"):
        if records and all(key in record for record in records):
            return [str(record[key]) for record in records]
    return None
