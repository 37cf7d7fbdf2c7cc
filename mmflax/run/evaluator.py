"""The evaluator of a run's task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mmflax.data.dataset import Source, text_of
from mmflax.evaluation.engine import Evaluator
from mmflax.run.assemble import Built
from mmflax.run.build import Experiment
from mmflax.tasks.task import Task


def usable(source: Source, bad: Mapping[str, str]) -> list[int]:
    """Where the examples are whose images could be read."""
    return [i for i in range(len(source)) if str(text_of(source, i).get("id", i)) not in bad]


def evaluator(
    experiment: Experiment,
    built: Built,
    on_bad: Callable[[str, str], None] | None = None,
    *,
    task: Task | None = None,
    views: Sequence[str] = (),
) -> Evaluator:
    """The evaluation of this run's task (or of `task` in its place), as its config describes it."""
    shards = built.mesh.shape["data"] * built.mesh.shape["fsdp"]
    return Evaluator(
        task or built.task,
        built.processor,
        built.mesh,
        batch_size=-(-experiment.evaluation.batch_size // shards) * shards,
        views=views or experiment.evaluation.views,
        num_threads=experiment.data.num_threads,
        equal_texts=equal_texts(experiment),
        max_bad_fraction=experiment.data.max_bad_fraction,
        on_bad=on_bad,
    )


def equal_texts(experiment: Experiment) -> bool:
    """Whether retrieval counts equal texts as one: in your own folder; published data go by ids."""
    return bool(experiment.config["data"]["name"] == "folder")
