"""Training: what a config describes, in a workdir; the same call resumes."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mmflax import paths, registry
from mmflax.config import auto
from mmflax.config.compare import check_same_run
from mmflax.config.sections import regexes
from mmflax.data import pipeline
from mmflax.data.dataset import Dataset
from mmflax.data.processor import Processor
from mmflax.distributed import mesh as meshes
from mmflax.distributed import processes
from mmflax.errors import MmflaxError
from mmflax.evaluation.tables import scale
from mmflax.platform import keep_freed_memory
from mmflax.run import data_record, init_from, init_sources, lock, report
from mmflax.run.assemble import Built, apply_fn, assemble
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.decide import opened, training_flops
from mmflax.run.evaluate import cut_note, image_note
from mmflax.run.evaluator import evaluator
from mmflax.run.finetune import resolve as finetune
from mmflax.run.in_loop import LoopEvaluation, evaluated
from mmflax.run.learning import LearningNotice, Remedies, early_evaluations
from mmflax.run.progress import Standing, standing
from mmflax.run.report import Report
from mmflax.run.restore import frozen
from mmflax.run.workdir import note_bad_images, prepare_workdir, read_config
from mmflax.training import loop, observe
from mmflax.training.state import create_sharded
from mmflax.training.step import make_train_step
from mmflax.training.stopping import EarlyStopping

_ENOUGH = 1000  # examples whose perfect score is no accident


def train(
    config: Mapping[str, Any],
    workdir: str,
    *,
    quiet: bool = False,
    at_end: Callable[[Report], None] | None = None,
) -> loop.Result:
    """Trains, or goes on training, the run in ``workdir``; returns the state and last metrics.

    Args:
      quiet: print and log nothing.
      at_end: is given the worst question types and mistakes, which then are found and drawn; not
        where the run was interrupted, or had nothing to do.

    Raises:
      MmflaxError: a mistake in the config, or another training in the workdir, before data are
        read; see also `mmflax.training.loop.run`.
    """
    with contextlib.ExitStack() as stack:
        return _train(config, workdir, quiet, at_end, stack)


def _train(
    config: Mapping[str, Any],
    workdir: str,
    quiet: bool,
    at_end: Callable[[Report], None] | None,
    stack: contextlib.ExitStack,
) -> loop.Result:
    root = pathlib.Path(workdir)
    former = read_config(root) if (root / "config.json").exists() else None
    chosen: list[str] = []
    config = finetune.resolved(config, former, chosen.append)
    if former is not None:  # what was decided when the run began is decided
        config = auto.as_before(config, former)
    experiment = Experiment(config)
    if former is not None:
        check_same_run(former, config, root)
    mesh = experiment.mesh()
    if mesh.devices.flat[0].platform == "cpu":
        keep_freed_memory()
    main = processes.is_main()
    resumes = former is not None and (root / "processor.json").exists()
    learned = Processor.load(root) if resumes else None
    check(experiment, learned, mesh)
    lock.check_free(root)
    record = data_record.read_record(root)
    dataset = experiment.dataset(learned, **data_record.hold_out_of(former, record))
    split = experiment.evaluation.split
    data, changes = data_record.compared(
        root, former, record, dataset, ("train", split), experiment
    )
    notes: list[str] = []
    experiment, processor, decided = opened(
        experiment, dataset, learned, mesh=mesh, say=notes.append
    )
    config, epochs = experiment.config, experiment.train.epochs
    experiment = experiment.of_length(len(dataset.source("train")))
    built = assemble(experiment, processor, mesh)
    if changes:
        notes += [f"the data changed since the run began: {change}" for change in changes]
        if unknown := data_record.unknown_answers(dataset, ("train", split), processor):
            notes.append(unknown)
    notes += [note for name in ("train", split) if (note := cut_note(processor, dataset, name))]
    _check_evaluation(experiment, built, dataset)
    if split not in dataset.splits:
        notes.append(f"the data have no split {split!r}, so training evaluates nothing")
    if (note := image_note(built, dataset, "train")) is not None:
        notes.append(note)
    store = experiment.store(root)
    # Before the workdir is this config's: a source that is not there can be mended and run again.
    begins = not store.steps()
    start = start_of(experiment, built) if begins else None
    stack.enter_context(lock.locked(root))
    if processes.agreed(former is None and (root / "config.json").exists()):
        raise MmflaxError(f"Another run began in {root} meanwhile; run the same command again.")
    if main:
        prepare_workdir(root, config, processor, None if data is record else data)
    for note in notes if main else ():
        print(f"note: {note}", file=sys.stderr if quiet else sys.stdout, flush=True)
    observers = [] if quiet else _observers(root, experiment, epochs, processor, dataset)
    if not quiet and main:
        if chosen:
            print("decided by the checkpoint:", *chosen, sep="\n  ")
        print(dataset.describe())
        if shared := dataset.info.get("images_in_two_splits"):
            print(
                f"note: {shared} images are in more than one split; --config.data.allow_leak=False "
                "refuses that"
            )
        if decided:
            print("decided by the data:", *decided, sep="\n  ")
        print(observe.parameter_table(built.shapes, depth=3), end="", flush=True)
        if built.adapters is not None:
            print(built.adapters.describe(), flush=True)
    observe.write_run(root, mesh, dataset={"name": dataset.name, **dataset.info})
    fields = experiment.train
    on_bad = note_bad_images(root, observers)
    index, count = meshes.data_shard(mesh)
    batches = pipeline.train_iterator(
        dataset.source("train"),
        processor,
        batch_size=experiment.data.batch_size,
        seed=experiment.seed,
        process_index=index,
        process_count=count,
        augment=experiment.augment(),
        max_bad_fraction=experiment.data.max_bad_fraction,
        on_bad=on_bad,
        num_threads=experiment.data.num_threads,
        prefetch=experiment.data.prefetch,
    )
    evals: dict[str, LoopEvaluation] = {}
    if split in dataset.splits:
        evals[split] = LoopEvaluation(
            experiment, built, dataset.source("train"), dataset.source(split), on_bad
        )
    key = jax.random.key(experiment.seed)
    if start is not None and not quiet and main:
        print(start.table(), flush=True)
    try:
        result = loop.run(
            train_step=train_step(experiment, built),
            abstract_state=built.abstract,
            create_state=lambda: create_sharded(
                lambda key: built.trained(built.init(key), key),
                built.tx,
                key,
                mesh,
                experiment.rules,
                ema=fields.ema_decay is not None,
                params=None if start is None else built.trained(start.params(built.init, key), key),
                frozen=built.abstract.frozen,
            ),
            frozen=None
            if built.adapters is None
            else lambda: frozen(experiment, built, root, begins=begins),
            batches=batches,
            mesh=mesh,
            steps=experiment.steps,
            store=store,
            evals=evals,
            log_every=fields.log_every,
            eval_every=fields.eval_every,
            eval_at=early_evaluations(experiment.steps, fields.eval_every),
            stopping=early_stopping(experiment, dataset),
            checkpoint_every=fields.checkpoint_every,
            observers=observers,
            max_skipped_in_row=fields.max_skipped_in_row,
            # Where the device's peak is known, for the share of it that is used.
            flops_per_example=None
            if observe.peak_flops(mesh.devices.flat[0].device_kind) is None
            else training_flops(experiment, processor),
        )
        if at_end is not None and split in evals and result.metrics and not result.preempted:
            at_end(report.at_end(experiment, built, evals[split], result, root))
        return result
    finally:
        store.close()


def _observers(
    root: pathlib.Path,
    experiment: Experiment,
    epochs: float | None,
    processor: Processor,
    dataset: Dataset,
) -> list[observe.Observer]:
    """What shows and records a run: of an evaluation its metric beside what needs no picture."""
    split = experiment.evaluation.split

    def judge(values: Mapping[str, float]) -> Standing | None:
        return standing(values, split, experiment.checkpoint.best_metric, processor)

    def headline(values: Mapping[str, float]) -> str | None:
        now = judge(values)
        return None if now is None else now.line()

    observers = observe.observers(root, headline=headline)
    if observers and split in dataset.splits:
        fields = experiment.config.get("init") or {}
        remedies = Remedies(
            experiment,
            processor.image_size,
            epochs=epochs,
            pretrained=bool(init_sources.sources(fields)),
        )
        examples = evaluated(experiment, dataset)
        path = root / "metrics.jsonl"
        observers.append(LearningNotice(observers[0].message, judge, examples, remedies, path))
    return observers


def _check_evaluation(experiment: Experiment, built: Built, dataset: Dataset) -> None:
    """Raises unless the metric that ranks checkpoints is computed during training."""
    split, best = experiment.evaluation.split, experiment.checkpoint.best_metric
    if split not in dataset.splits:
        if best is None and split == "validation":
            return  # data without one, which is said
        raise MmflaxError(
            f"evaluation.split is {split!r}, which the data do not have"
            f"{registry.nearest(split, dataset.splits)}; they have {', '.join(dataset.splits)}. "
            "Name one of them, or train without evaluation: --config.evaluation.split=validation "
            "--config.checkpoint.best_metric=None --config.checkpoint.keep_best=0."
        )
    if best is None:
        return
    names = [f"{split}/{name}" for name in evaluator(experiment, built).names(built.shapes)]
    if best not in names:
        raise MmflaxError(
            f"checkpoint.best_metric is {best!r}, which is not computed"
            f"{registry.nearest(best, names)}; expected one of {', '.join(names)}."
        )


def early_stopping(experiment: Experiment, dataset: Dataset) -> EarlyStopping | None:
    """When the run ends before its last step, or None: see ``train.patience``."""
    patience, ranks = experiment.train.patience, experiment.checkpoint
    split, best = experiment.evaluation.split, ranks.best_metric
    if patience is None or best is None or split not in dataset.splits:
        return None
    examples = evaluated(experiment, dataset)
    # All of n examples right leaves, at 95 %, an error of at most 3 / n (the rule of three).
    sure = ranks.best_mode == "max" and scale(best) == 100 and examples >= _ENOUGH
    return EarlyStopping(best, ranks.best_mode, patience, perfect=1.0 if sure else None)


def start_of(experiment: Experiment, built: Built) -> init_from.Start | None:
    """What `config.init` gives this run to begin with, or None."""
    fields = experiment.config.get("init") or {}
    if not init_sources.sources(fields):
        return None
    model = init_sources.run_model(built.init, built.processor)
    return init_from.start(fields, paths.leaves(built.shapes), model)


def train_step(experiment: Experiment, built: Built) -> Callable[..., Any]:
    """The pure step of this run: what `train` compiles and `plan` plans."""
    return make_train_step(
        apply_fn(built.task, built.adapters),
        built.task.loss,
        built.task.metrics,
        built.tx,
        accumulate=experiment.train.accumulate,
        ema_decay=experiment.train.ema_decay,
        freeze=regexes("optim.freeze", experiment.config["optim"].get("freeze", ())),
        schedule=built.schedule,
    )
