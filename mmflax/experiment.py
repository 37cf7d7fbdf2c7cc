"""Runs: train, evaluate, load and plan what a config or a workdir describes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmflax import scoring, warm_start
from mmflax.assembly import Built, Experiment, apply_fn, assemble, example_batch, training_flops
from mmflax.checkpoints import trees
from mmflax.config import check_same_run
from mmflax.data import pipeline
from mmflax.data.dataset import Dataset
from mmflax.data.priors import question_prior
from mmflax.data.processor import Processor
from mmflax.distributed import mesh as meshes
from mmflax.distributed import plan as plans
from mmflax.distributed import processes
from mmflax.errors import MmflaxError
from mmflax.inference.predict import Predictor
from mmflax.training import loop, observe
from mmflax.training.state import create_sharded
from mmflax.training.step import make_train_step

__all__ = [
    "Built", "Experiment", "Shown", "assemble", "evaluate", "first_batch", "load", "plan",
    "read_config", "restore", "train", "train_step",
]  # fmt: skip


def train(config: Mapping[str, Any], workdir: str, *, quiet: bool = False) -> loop.Result:
    """Trains, or goes on training, the run in ``workdir``; returns the state and last metrics."""
    experiment = Experiment(config)
    root = pathlib.Path(workdir)
    former = read_config(root) if (root / "config.json").exists() else None
    if former is not None:
        check_same_run(former, config, root)
    mesh = experiment.mesh()
    main = processes.is_main()
    dataset = experiment.dataset()
    if former is not None and (root / "processor.json").exists():
        processor = Processor.load(root)
    else:
        processor = experiment.learn_processor(dataset)
    built = assemble(experiment, processor, mesh)
    store = experiment.store(root)
    # Before the workdir is this config's: a source that is not there can be mended and run again.
    begun = None if store.steps() else warm_start_of(experiment, built)
    if main:
        _prepare_workdir(root, config, processor)
    observers = [] if quiet else observe.observers(root)
    if not quiet and main:
        print(dataset.describe())
        if shared := dataset.info.get("images_in_two_splits"):
            print(
                f"note: {shared} images are in more than one split; --config.data.allow_leak=False "
                "refuses that"
            )
        print(observe.parameter_table(built.abstract.params, depth=3), end="", flush=True)
    observe.write_run(root, mesh, dataset={"name": dataset.name, **dataset.info})
    fields = experiment.train
    index, count = meshes.data_shard(mesh)
    batches = pipeline.train_iterator(
        dataset.source("train"),
        processor,
        batch_size=experiment.data["batch_size"],
        seed=experiment.seed,
        process_index=index,
        process_count=count,
        augment=experiment.augment(),
        max_bad_fraction=experiment.data["max_bad_fraction"],
        on_bad=_note_bad(root, observers),
        num_threads=experiment.data["num_threads"],
        prefetch=experiment.data["prefetch"],
    )
    evals = {}
    if experiment.evaluation["split"] in dataset.splits:
        name = experiment.evaluation["split"]
        evals[name] = scoring.evaluator(experiment, built, dataset, name)
    key = jax.random.key(experiment.seed)
    if begun is not None and not quiet and main:
        print(begun.table(), flush=True)
    try:
        return loop.run(
            train_step=train_step(experiment, built),
            abstract_state=built.abstract,
            create_state=lambda: create_sharded(
                built.init,
                built.tx,
                key,
                mesh,
                ema=fields["ema_decay"] is not None,
                params=None if begun is None else begun.params(built.init, key),
            ),
            batches=batches,
            mesh=mesh,
            steps=fields["steps"],
            store=store,
            evals=evals,
            log_every=fields["log_every"],
            eval_every=fields["eval_every"],
            checkpoint_every=fields["checkpoint_every"],
            observers=observers,
            max_skipped_in_row=fields["max_skipped_in_row"],
            flops_per_example=training_flops(experiment, processor, mesh),
        )
    finally:
        store.close()


def warm_start_of(experiment: Experiment, built: Built) -> warm_start.Start | None:
    """What `config.init` gives this run to begin with, or None."""
    encoder = built.task.model.backbone.image_encoder
    # Regions lie on none.
    has_grid = hasattr(encoder, "grid") and not getattr(encoder, "reads_regions", False)
    return warm_start.start(
        experiment.config.get("init") or {},
        trees.leaves(built.abstract.params),
        grid=encoder.grid() if has_grid else None,
    )


def _note_bad(root: pathlib.Path, observers: Sequence[observe.Observer]) -> Callable[..., None]:
    """Names an example that is left out for its image, on the screen and in the workdir."""
    path = root / f"bad_images.{jax.process_index()}.jsonl"

    def note(example: str, reason: str) -> None:
        for observer in observers:
            observer.message(f"left out example {example}: {reason}")
        with open(path, "a") as file:
            file.write(json.dumps({"id": example, "reason": reason}) + "\n")

    return note


def train_step(experiment: Experiment, built: Built) -> Callable[..., Any]:
    """The pure step of this run: what `train` compiles and `plan` plans."""
    return make_train_step(
        apply_fn(built.task),
        built.task.loss,
        built.task.metrics,
        built.tx,
        accumulate=experiment.train["accumulate"],
        ema_decay=experiment.train["ema_decay"],
        freeze=experiment.config["optim"].get("freeze", ()),
        schedule=built.schedule,
    )


def plan(config: Mapping[str, Any], topology: str) -> plans.Plan:
    """Compiles the train step for a TPU topology that need not be there; see ``plans.plan``."""
    experiment = Experiment(config)
    mesh = experiment.mesh(plans.topology_devices(topology))
    processor = experiment.learn_processor(experiment.dataset())
    built = assemble(experiment, processor, mesh)
    shapes = jax.eval_shape(lambda: example_batch(processor, experiment.data["batch_size"]))
    place = meshes.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()
    }
    return plans.plan(train_step(experiment, built), built.abstract, batch, mesh)


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
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def metric_names(config: Mapping[str, Any], split: str) -> set[str]:
    """What evaluating this experiment on the split will report, without training it."""
    experiment = Experiment(config)
    dataset = experiment.dataset()
    built = assemble(experiment, experiment.learn_processor(dataset), experiment.mesh())
    return scoring.metric_names(experiment, built, dataset, split)


def load(workdir: str, *, step: int | None = None, batch_size: int = 8) -> Predictor:
    """The trained model in ``workdir``, ready to be asked.

    Args:
      step: a checkpoint's step; by default the best one if the run ranked them, else the newest.
      batch_size: examples that one call of the compiled model holds; fewer are padded.
    """
    experiment, built, params, _ = restore(
        pathlib.Path(workdir), step, devices=jax.local_devices()[:1]
    )
    return Predictor(built.task, params, built.processor, batch_size=batch_size)


def restore(
    root: pathlib.Path,
    step: int | None = None,
    devices: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Experiment, Built, Any, int]:
    """Config, model and (averaged) parameters of a trained run; optimizer state stays on disk."""
    experiment = Experiment(read_config(root))
    processor = Processor.load(root)
    if mesh is None:
        mesh = experiment.mesh() if devices is None else meshes.make_mesh(devices=devices)
    built = assemble(experiment, processor, mesh)
    store = experiment.store(root)
    steps = store.steps()
    if not steps:
        raise MmflaxError(
            f"There is no finished checkpoint in {root / 'checkpoints'}; train first."
        )
    if step is not None and step not in steps:
        raise MmflaxError(
            f"There is no checkpoint of step {step} in {root}; "
            f"there are {', '.join(map(str, steps))}."
        )
    if step is None and store.best_metric:
        best = store.best_step()
        step = best if best is not None and store.verify(best) is None else None
    name = "params" if built.abstract.ema is None else "ema"
    state, _, step = store.restore({name: getattr(built.abstract, name)}, step, partial=True)
    return experiment, built, state[name], step


def read_config(root: pathlib.Path) -> dict[str, Any]:
    """``config.json`` of a workdir."""
    path = root / "config.json"
    if not path.exists():
        raise MmflaxError(
            f"There is no config.json in {root}; expected the --workdir of a run that was trained."
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise MmflaxError(f"{path} is not readable JSON ({error}); restore it.") from error


def _prepare_workdir(root: pathlib.Path, config: Mapping[str, Any], processor: Processor) -> None:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "config.json"
    text = json.dumps(config, indent=1, default=str) + "\n"
    if not path.exists() or path.read_text() != text:
        temporary = root / ".config.json.partial"
        temporary.write_text(text)
        temporary.replace(path)
    if not (root / "processor.json").exists():
        processor.save(root)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What `mmflax data` draws."""

    dataset: Dataset
    processor: Processor
    batch: Mapping[str, np.ndarray]


def first_batch(config: Mapping[str, Any], split: str, rows: int) -> Shown:
    """The first ``rows`` examples of a split as the model gets them; train in training's order."""
    experiment = Experiment(config)
    dataset = experiment.dataset()
    processor = experiment.learn_processor(dataset)
    source = dataset.source(split)
    if split == "train":
        with pipeline.train_iterator(
            source,
            processor,
            batch_size=rows,
            seed=experiment.seed,
            augment=experiment.augment(),
            num_threads=0,
        ) as batches:
            batch = next(batches)
    else:
        batch = processor.batch([source[i] for i in range(min(rows, len(source)))])
    return Shown(dataset, processor, batch)
