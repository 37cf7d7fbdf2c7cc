"""Checking a whole config before data are read or anything is compiled."""

from __future__ import annotations

import difflib
import re
from typing import Any

import jax
import numpy as np

from mmflax import paths, registry
from mmflax.config import schema
from mmflax.data.dataset import Dataset
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError, option
from mmflax.pretrained import hub
from mmflax.run import init_sources
from mmflax.run.assemble import adapters_of_run
from mmflax.run.build import Experiment, example_batch
from mmflax.run.on_mesh import check_heads

_SPLITS = frozenset({"train", "validation", "test"})


def check(
    experiment: Experiment,
    processor: Processor | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> None:
    """Raises unless every key, type, range and shape of the config is right.

    The shapes are those of a model for made-up examples, so optimizer regexes that match no
    parameter are errors, too. Not checked is what depends on the data: whether the train split
    has the answers or targets that the task needs, whether its texts fit, with
    ``train.epochs``, whether the warm-up is shorter than the run, and what is ``auto``.

    Args:
      experiment: of the config.
      processor: a run's own, where it is known.
      mesh: that the model must fit, where one is meant.

    Raises:
      MmflaxError: the first mistake, in one sentence.
    """
    experiment = Experiment(experiment.config)  # provisional in place of auto
    config = experiment.config
    for section in (*schema.NAMED, *schema.FUNCTIONS, "model", "optim.schedule"):
        given = schema.at(config, section)
        known = schema.keywords(section, config)
        if section in schema.NAMED:
            package, decided = schema.NAMED[section]
            registry.check_name(package, section, given.get("name"))
            for key in sorted(set(decided) & set(given) - set(known or {})):
                raise MmflaxError(
                    f"{section}.{key} is decided by the rest of the config; remove it."
                )
        resumes = processor is not None  # a run of another version may list an idle field
        if known is not None and not (resumes and section == "optim"):
            registry.check_fields(section, given, known)
            if section == "data":
                registry.check_required(section, given, known)
    if "schedule" not in config["optim"]:
        raise MmflaxError(
            "The config has no optim.schedule; add one, such as "
            "--config.optim.schedule.name=constant."
        )
    init = config.get("init") or {}
    init_sources.skipped(init)
    init_sources.accepted(init)
    sources = init_sources.sources(init).values()
    for source in sources if processor is None else ():  # a run that resumes has its weights
        hub.check_name(source.path)
    _check_best_metric(experiment, begins=processor is None)
    problems = []
    for second_images in (False, True):
        try:
            _build(experiment, processor or _learn(experiment, second_images), mesh)
            return
        except MmflaxError as error:
            problems.append(error)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            text = " ".join(str(error).split())[:300]
            wrong = MmflaxError(f"The model of this config does not fit together: {text}")
            wrong.__cause__ = error
            problems.append(wrong)
        if processor is not None:
            break
    raise problems[0]


def _check_best_metric(experiment: Experiment, begins: bool) -> None:
    """Checkpoints are ranked by a metric of the split that is evaluated during training."""
    metric, split = experiment.checkpoint.best_metric, experiment.evaluation.split
    if metric is not None and not metric.startswith(f"{split}/"):
        near = [one for one in _SPLITS if metric.startswith(f"{one}/")]
        near = difflib.get_close_matches(split, near) if split not in _SPLITS else []
        change = f"evaluation.split={near[0]}" if near else f"checkpoint.best_metric={split}/loss"
        raise MmflaxError(
            f"checkpoint.best_metric is {metric!r}; expected a metric of evaluation.split, which "
            f"is {split!r} (such as --config.{change})."
        )
    if begins:
        _check_patience(experiment)
    least = metric is not None and {"loss", "nll", "perplexity"} & set(metric.split("/"))
    if begins and least and experiment.checkpoint.best_mode == "max":
        raise MmflaxError(
            f"checkpoint.best_mode is 'max', which would keep the checkpoints of the largest "
            f"{metric}; give --config.checkpoint.best_mode=min."
        )


def _check_patience(experiment: Experiment) -> None:
    """Early stopping needs a metric, and evaluations at which it can change."""
    patience, every = experiment.train.patience, experiment.train.eval_every
    if patience is None:
        return
    if experiment.checkpoint.best_metric is None:
        raise MmflaxError(
            f"train.patience is {patience} without checkpoint.best_metric, which it waits for; "
            "name the metric, such as "
            f"--config.checkpoint.best_metric={experiment.evaluation.split}/loss with "
            "--config.checkpoint.best_mode=min, or give --config.train.patience=None."
        )
    if every is None:
        raise MmflaxError(
            f"train.patience is {patience} and train.eval_every None, so there is one evaluation "
            "at the end; give --config.train.eval_every=STEPS, or --config.train.patience=None."
        )


def _build(
    experiment: Experiment, processor: Processor, mesh: jax.sharding.Mesh | None = None
) -> None:
    """Shapes of the model, the optimizer for them, and the names that path rules match."""
    experiment.augment()
    task = experiment.task(processor)
    _check_layers(task.model.backbone)
    batch = example_batch(processor, 1)
    params = jax.eval_shape(
        lambda key: task.model.init(key, batch, train=False)["params"], jax.random.key(0)
    )
    names = dict(paths.leaves(params))
    adapters = adapters_of_run(
        experiment, lambda key: task.model.init(key, batch, train=False)["params"]
    )
    if adapters is None:
        experiment.optimizer(params)
    else:
        trained = adapters.shapes()
        experiment.optimizer(trained, adapters.frozen)
        names |= paths.leaves(trained)
    if mesh is not None:
        check_heads(params, experiment.rules, mesh)
    for pattern, _ in experiment.mesh_config.rules:
        if not any(re.search(pattern, name) for name in names):
            left = tuple(rule for rule in experiment.mesh_config.rules if rule[0] != pattern)
            raise MmflaxError(
                f"mesh.rules has {pattern!r}, which matches no parameter; remove it, as in "
                f"{option('mesh.rules', left)}."
            )


def _check_layers(backbone: Any) -> None:
    """A fusion that reads several layers of each encoder needs encoders that have as many."""
    reads = backbone.fusion.num_layers_read
    for part in ("image_encoder", "text_encoder"):
        stack = vars(vars(backbone)[part]).get("stack")
        depth = (
            stack.depth if stack is not None and stack.depth else reads
        )  # 0: not layers of one kind
        if depth < reads:
            raise MmflaxError(
                f"The fusion reads the last {reads} layers of each encoder, and model.{part} has "
                f"{depth}; give --config.model.fusion.depth={depth} or "
                f"--config.model.{part}.depth={reads}."
            )


def _learn(experiment: Experiment, second_images: bool) -> Processor:
    """The processor of made-up examples, which have whatever a task may need."""
    image = np.zeros((8, 8, 3), np.uint8)
    regions = {"regions": np.zeros((1, 2048), np.float32), "boxes": np.zeros((1, 4), np.float32)}
    seen: dict[str, Any] = regions if experiment.reads_regions else {"image": image}
    if second_images:
        seen = seen | {f"second_{key}": value for key, value in seen.items()}
    text = {"question": "is it there?", "caption": "it is there", "target": "it is"}
    positive = experiment.config["task"].get("positive") or "yes"
    answers = (positive, "no" if str(positive).lower() != "no" else "yes")
    rows = [
        {**seen, **text, "id": "0", "image_id": "0", "answer": answer, "answers": [answer]}
        for answer in answers
        for _ in range(experiment.config["processor"].get("min_answer_count", 1))
    ]
    return experiment.learn_processor(Dataset("made up", {"train": rows}))
