"""What a training shows at its end, and an evaluation on request: worst types and mistakes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mmflax.data.dataset import Source
from mmflax.distributed import processes
from mmflax.evaluation.corpus import PairScorer
from mmflax.evaluation.tables import percent
from mmflax.inference import mistakes, mistakes_figure
from mmflax.inference.mistakes import Mistakes, TypeScore
from mmflax.run.assemble import Built
from mmflax.run.build import Experiment
from mmflax.run.evaluator import equal_texts, evaluator
from mmflax.run.in_loop import LoopEvaluation
from mmflax.run.restore import restore, which
from mmflax.training.loop import Result

FILE = "eval/mistakes.png"
_ORDER = {
    "answers": "the most confident first",
    "texts": "those whose right words the model finds least likely first",
    "search": "those whose own picture (left) is furthest behind the chosen one (right) first",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """The end of a run.

    Attributes:
      split: what was judged.
      examples: how many, and `wrong`: of these.
      types: the worst question types, lowest first; empty where there is one type.
      mistakes: the file of the sheet; None where nothing was wrong.
      checkpoint: which one was judged, in words.
      note: why there is no sheet, where that is no good news.
    """

    split: str
    examples: int
    wrong: int
    types: tuple[TypeScore, ...] = ()
    mistakes: str | None = None
    checkpoint: str | None = None
    note: str | None = None

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = []
        if self.types:
            lines.append(f"worst question types of {self.split}:")
            width = max(len(one.name) for one in self.types)
            for one in self.types:
                prior = "" if one.prior is None else f"  (question prior {percent(one.prior)})"
                lines.append(f"  {one.name:{width}}  {percent(one.value)} of {one.count}{prior}")
        if self.mistakes is not None:
            lines.append(
                f"most confident mistakes, of {self.wrong} among {self.examples} examples of "
                f"{self.split}: {self.mistakes}"
            )
        elif self.note is not None:
            lines.append(f"note: {self.note}")
        elif self.examples:
            lines.append(f"no mistake among {self.examples} examples of {self.split}")
        return lines


def at_end(
    experiment: Experiment,
    built: Built,
    evaluation: LoopEvaluation,
    result: Result,
    root: pathlib.Path,
) -> Report:
    """The report of a finished training, on what it evaluated, of the checkpoint that `evaluate`
    takes; a fault of it is said and fails nothing. Call it in every process."""
    split = experiment.evaluation.split
    step = result.step
    try:
        _, built, params, step = restore(root, mesh=built.mesh, config=experiment.config)
        if processes.is_main():
            (root / FILE).unlink(missing_ok=True)  # of an earlier end
        found = find(experiment, built, params, evaluation.source)
        priors = evaluation.baselines or {}
        report = write(root / FILE, found, evaluation.source, built, split, priors)
    except Exception as error:  # the training is done and saved
        text = " ".join(str(error).split())[:200] or type(error).__name__
        report = Report(split, 0, 0, note=f"the mistakes are not shown: {text}")
    return dataclasses.replace(report, checkpoint=which(experiment, root, step))


def find(experiment: Experiment, built: Built, params: Any, source: Source) -> Mistakes | None:
    """The worst mistakes of the task on the examples; None of one that neither answers, writes nor
    searches. Runs in every process."""
    task, count = built.task, mistakes_figure.COUNT
    if task.search is not None:
        # The nearest by embedding: the fusion would judge chosen pairs only.
        scorer = PairScorer(
            task.search, params, built.processor, batch_size=experiment.evaluation.batch_size
        )
        fraction, equal = experiment.data.max_bad_fraction, equal_texts(experiment)
        return mistakes.of_search(scorer, source, count, fraction, equal_texts=equal)
    if task.predict is None:
        return None
    judging = task._replace(score=None)
    judge = evaluator(experiment, built, task=judging, views=("full",))
    names = judge.names(built.shapes)  # frozen parameters among them
    if {"exact", "nll"} <= set(names):
        only = evaluator(experiment, built, task=judging._replace(predict=None), views=("full",))
        return mistakes.of_texts(only, judge, params, source, count)
    return mistakes.of_answers(judge, params, source, count) if "accuracy" in names else None


def write(
    path: str | os.PathLike[str],
    found: Mistakes | None,
    source: Source,
    built: Built,
    split: str,
    priors: Mapping[str, float],
) -> Report:
    """Writes the sheet, in the main process and where something is wrong, and gives the report."""
    path = pathlib.Path(path)
    if found is None:
        return Report(split, 0, 0)
    types: list[TypeScore] = []
    if found.rows is not None:
        metric = "exact" if found.kind == "texts" else "accuracy"
        types = mistakes.worst_types(found.rows, metric, priors)
    if processes.is_main() and found.worst:
        path.parent.mkdir(parents=True, exist_ok=True)
        title = (
            f"{split}: {len(found.worst)} of {found.wrong} mistakes among {found.examples} "
            f"examples, {_ORDER[found.kind]}"
        )
        mistakes_figure.draw(found.worst, source, built.processor, path, title)
    return Report(
        split, found.examples, found.wrong, tuple(types), str(path) if found.worst else None
    )
