"""Evaluation of a task on a split: exact means of its metrics, by modality view, with intervals.

One jitted step computes each metric of each example as (sum [b], count [b]). The training loop's
means need those added up on the device alone; the evaluation of a finished run brings them to the
host, with what the task predicts, for records and bootstrap confidence intervals.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import softmax

from mmflax.data import pipeline
from mmflax.data.dataset import PICTURES, Source, text_of
from mmflax.data.image.bad_images import OnBad
from mmflax.data.processor import Processor
from mmflax.distributed.mesh import data_shard, on_mesh, put_batch
from mmflax.errors import MmflaxError
from mmflax.evaluation.bootstrap import mean_interval, record_interval
from mmflax.evaluation.modality_views import VIEWS, check_views, modality_views
from mmflax.evaluation.retrieval import evaluate_retrieval
from mmflax.tasks.task import Task

_KEEP_LOGITS = 64  # answers; more are reduced to the best one as soon as they arrive
_SCORE_SAMPLES = 100  # a score over records (CIDEr-D, AUROC) is costly to resample

Metrics = dict[str, tuple[Any, Any]]


class Rows(NamedTuple):
    """A view's examples [n]: each metric's (sums [n], counts [n]), each example's record, and its
    place in the source."""

    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    records: list[dict[str, Any]]
    places: list[int]


class Scores(NamedTuple):
    """``metrics[view][metric]``, and the full view's 95 % ``intervals[metric]``, [low, high]."""

    metrics: dict[str, dict[str, float]]
    intervals: dict[str, list[float]]


class Evaluator:
    """A task's metrics over any number of examples, on any mesh and number of processes.

    A task that picks an answer also has the view ``majority``: the commonest answer to everything.
    A task that compares an image with a text (it has a ``search``) has the full view alone.

    Args:
      views: of `mmflax.evaluation.modality_views.VIEWS`, ``full`` among them; each is a forward
        pass.
      batch_size: rows of the global batch.
      num_threads: that read examples.
      equal_texts: of `evaluate_retrieval`.
      max_bad_fraction: of the examples whose image may be unreadable; they count nowhere.
      on_bad: called once with the id and the reason of each, from a reading thread, so in no
        fixed order; `bad` has all of this process.
    """

    def __init__(
        self,
        task: Task,
        processor: Processor,
        mesh: Mesh,
        *,
        batch_size: int,
        views: Sequence[str] = VIEWS,
        num_threads: int = 2,
        equal_texts: bool = False,
        max_bad_fraction: float = 0.0,
        on_bad: OnBad | None = None,
    ):
        self.task, self.processor, self.mesh = task, processor, mesh
        self.batch_size = batch_size
        self.views = check_views(views) if task.search is None else ("full",)
        self.bad: dict[str, str] = {}
        self._on_bad, self._num_threads = on_bad, num_threads
        self._equal_texts = equal_texts
        self._reading: dict[str, Any] = dict(
            max_bad_fraction=max_bad_fraction, on_bad=self._note_bad
        )
        # No donation: the parameters go on being trained.
        jitted = jax.jit(
            self._evaluate,
            static_argnames="by_row",
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._step = on_mesh(jitted, mesh)

    def means(self, params: Any, source: Source) -> dict[str, float]:
        """``{metric: mean}`` of the full view and ``{view/metric: mean}`` of the others."""
        return self.means_of_batches(params, self._batches(source))

    def means_of_batches(
        self, params: Any, batches: Iterable[Mapping[str, Any]]
    ) -> dict[str, float]:
        """`means` of batches of one shape with a ``mask``: this process's rows of each.

        A metric that counts no example is left out.

        Raises:
          MmflaxError: if there is no example at all.
        """
        totals: dict[str, np.ndarray] = {}
        waiting: list[Any] = []
        for batch in batches:
            waiting.append(self._step(params, self._placed(batch), by_row=False))
            if len(waiting) > 1:  # one late, so that the device always has work
                _add(totals, waiting.pop(0))
        for sums in waiting:
            _add(totals, sums)
        if "loss" not in totals or not totals["loss"][1]:
            raise MmflaxError("The evaluation has no examples; check the split and its filters.")
        return {name: float(total / n) for name, (total, n) in sorted(totals.items()) if n}

    def names(self, params: Any) -> list[str]:
        """What `means` may return, for (abstract) parameters; nothing is computed."""
        batch = self.processor.zeros(1)
        sums = jax.eval_shape(functools.partial(self._evaluate, by_row=False), params, batch)
        return sorted(sums)

    def rows(self, params: Any, source: Source) -> dict[str, Rows]:
        """Every example's metrics and record, by view; see `mmflax.tasks.task.Task.score`."""
        metrics: dict[str, dict[str, list[np.ndarray]]] = {}
        records: dict[str, list[dict[str, Any]]] = {}
        places: list[int] = []
        for number, batch in enumerate(self._batches(source)):
            views, mask = jax.device_get(self._step(params, self._placed(batch), by_row=True))
            # Padding, and an example whose image could not be read, count nowhere.
            used = np.flatnonzero(mask)
            at = (number * self.batch_size + used).tolist()
            places += at
            raws = [text_of(source, place) for place in at]
            raws = [{k: v for k, v in raw.items() if k not in PICTURES} for raw in raws]
            raws = [self.processor.judged(raw) for raw in raws]
            for view, (values, predicted) in views.items():
                _check_finite(view, values, used, source, number * self.batch_size)
                kept = metrics.setdefault(view, {})
                for name, pair in values.items():
                    kept.setdefault(name, []).append(np.stack(pair)[:, used])
                rows = records.setdefault(view, [])
                for row, raw in zip(used.tolist(), raws, strict=True):
                    own = {name: value[row] for name, value in predicted.items()}
                    rows.append(raw | self._readable(own))
        return {
            view: Rows(
                {name: _joined(parts) for name, parts in values.items()}, records[view], places
            )
            for view, values in metrics.items()
        }

    def score(
        self, params: Any, source: Source, *, bootstrap: int = 1000, rerank: int = 64
    ) -> Scores:
        """Every metric of every view on a whole split, and bootstrap confidence intervals.

        Args:
          bootstrap: resamplings of the examples (of groups, where examples are judged together);
            0 = no intervals.
          rerank: of retrieval, how many of each query's nearest the fusion orders.
        """
        scores = Scores({}, {})
        score = self.task.score
        for view, (metrics, records, _) in self.rows(params, source).items():
            counted = {name: pair for name, pair in sorted(metrics.items()) if pair[1].sum()}
            values = {name: float(sums.sum() / n.sum()) for name, (sums, n) in counted.items()}
            if score is not None and view != "majority":
                values |= score(records)
            scores.metrics[view] = values
            if view != "full" or not bootstrap:
                continue
            groups = _groups(records)
            for name, pair in counted.items():
                scores.intervals[name] = list(
                    mean_interval(*pair, groups=groups, samples=bootstrap)
                )
            if score is not None:
                samples = min(bootstrap, _SCORE_SAMPLES)
                scored = record_interval(records, score, groups=groups, samples=samples)
                scores.intervals.update({name: list(pair) for name, pair in scored.items()})
        if self.task.search is not None:
            scores.metrics["full"] |= evaluate_retrieval(
                self.task.search,
                params,
                self.processor,
                source,
                batch_size=self.batch_size,
                rerank=rerank,
                equal_texts=self._equal_texts,
                **self._reading,
            )
        return scores

    def _note_bad(self, example: str, reason: str) -> None:
        new = example not in self.bad
        self.bad[example] = reason
        if new and self._on_bad is not None:
            self._on_bad(example, reason)

    def _evaluate(self, params: Any, batch: Mapping[str, Any], *, by_row: bool) -> Any:
        """The step: ``({view: (metrics, predictions)}, mask)`` by row, else the loop's sums."""
        task = self.task
        views: dict[str, tuple[Metrics, Mapping[str, Any]]] = {}
        for view, inputs in modality_views(batch, self.views, task.model).items():
            outputs: Any = task.model.apply({"params": params}, inputs, train=False)
            ones = jnp.ones(batch["mask"].shape, jnp.float32)
            metrics = {**task.metrics(outputs, inputs), "loss": (task.loss(outputs, inputs), ones)}
            views[view] = metrics, task.predict(params, inputs) if by_row and task.predict else {}
            if view == "full" and (majority := self._majority(outputs)) is not None:
                views["majority"] = task.metrics(majority, batch), {}
        if by_row:
            return views, batch["mask"]

        def total(values: jax.Array) -> jax.Array:
            # where, not a product: a padding row may hold NaN, and NaN * 0 is NaN.
            return jnp.sum(jnp.where(batch["mask"], values.astype(jnp.float32), 0.0))

        return {
            name if view == "full" else f"{view}/{name}": (total(sums), total(counts))
            for view, (metrics, _) in views.items()
            for name, (sums, counts) in metrics.items()
            if view == "full" or name != "loss"
        }

    def _majority(self, outputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Outputs whose logits prefer the commonest answer; None if the task picks no answer."""
        answers = len(self.processor.answers)
        if not answers or "logits" not in outputs or outputs["logits"].shape[1:] != (answers,):
            return None
        # Answers are in order of frequency.
        scores = jnp.arange(answers, 0, -1, dtype=jnp.float32)
        zeros = jax.tree.map(jnp.zeros_like, dict(outputs))
        return {**zeros, "logits": jnp.broadcast_to(scores, outputs["logits"].shape)}

    def _batches(self, source: Source) -> pipeline.EvalBatches:
        index, count = data_shard(self.mesh)
        return pipeline.eval_batches(
            source,
            self.processor,
            batch_size=self.batch_size,
            process_index=index,
            process_count=count,
            num_threads=self._num_threads,
            **self._reading,
        )

    def _placed(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return put_batch({name: array for name, array in batch.items() if name != "id"}, self.mesh)

    def _readable(self, values: dict[str, Any]) -> dict[str, Any]:
        """An example's predictions, with texts and answers for tokens and logits."""
        answers = self.processor.answers
        if "tokens" in values:
            values["text"] = self.processor.decode(values["tokens"])
            values["predicted_answer"] = self.processor.spelled(values["text"])
        if "logits" in values:
            values["predicted_answer"] = answers[int(np.argmax(values["logits"]))]
            values["probability"] = float(softmax(np.asarray(values["logits"], np.float64)).max())
            if len(answers) > _KEEP_LOGITS:
                del values["logits"]
        return values


def _check_finite(view: str, values: Metrics, used: np.ndarray, source: Source, at: int) -> None:
    """Raises where a metric of an example is NaN or infinite."""
    for name, (sums, counts) in values.items():
        wrong = used[~np.isfinite(np.where(np.asarray(counts) > 0, sums, 0.0))[used]]
        if len(wrong):
            first = at + int(wrong[0])
            raise MmflaxError(
                f"{name} of {len(wrong)} of {len(used)} examples of a batch is not finite in the "
                f"view {view}, first of example {text_of(source, first).get('id', first)}; the "
                "parameters of this checkpoint, or the data, are out of range."
            )


def _add(totals: dict[str, np.ndarray], sums: Mapping[str, Any]) -> None:
    # Double precision on the host: float32 stops counting at 2**24 examples.
    for name, pair in jax.device_get(sums).items():
        totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)


def _joined(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(sums [n], counts [n]) from the batches' arrays [2 b]."""
    sums, counts = np.concatenate(parts, axis=1).astype(np.float64)
    return sums, counts


def _groups(records: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """What is resampled as a whole: examples of one group, else of one image."""
    for key in ("group", "image_id"):
        if records and all(key in record for record in records):
            return [str(record[key]) for record in records]
    return None
