"""Evaluation during training: a split's means beside the baselines that need no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmflax.data.dataset import Dataset, Source, Subset, spaced
from mmflax.evaluation.baselines import baselines
from mmflax.run.assemble import Built
from mmflax.run.build import Experiment
from mmflax.run.evaluator import evaluator, usable

_BY_TYPE = "question_prior/accuracy/"  # these are for the end of the run


class LoopEvaluation:
    """``fn(params) -> {metric: value}`` on at most ``evaluation.max_examples`` of a split.

    ``params`` are all that the train state has, adapters among them.

    Beside the model's own metrics and views there are those baselines that are no view of it:
    ``question_prior/accuracy``, ``chance/in_batch_recall/t2i`` …

    Attributes:
      source: the examples, evenly spaced over the split.
      engine: what evaluates them.
      baselines: `mmflax.evaluation.baselines.baselines`, those by question type among them; known
        from the first call on.
    """

    def __init__(
        self,
        experiment: Experiment,
        built: Built,
        train: Source,
        source: Source,
        on_bad: Callable[[str, str], None] | None = None,
    ):
        self.source = spaced(source, experiment.evaluation.max_examples or len(source))
        self.engine = evaluator(experiment, built, on_bad)
        self.baselines: dict[str, float] | None = None
        self._train, self._processor, self._merge = train, built.processor, built.merge

    def __call__(self, params: Any) -> dict[str, float]:
        values = self.engine.means(self._merge(params), self.source)
        if self.baselines is None:
            bad = self.engine.bad
            used = Subset(self.source, usable(self.source, bad)) if bad else self.source
            size = self.engine.batch_size
            self.baselines = baselines(values, self._train, used, self._processor, size)
        return values | {
            name: value
            for name, value in self.baselines.items()
            if name.partition("/")[2] in values and not name.startswith(_BY_TYPE)
        }


def evaluated(experiment: Experiment, dataset: Dataset) -> int:
    """How many examples an evaluation during training reads."""
    whole = len(dataset.source(experiment.evaluation.split))
    return min(whole, experiment.evaluation.max_examples or whole)
