"""From a config to a run: the only reader of a config, and the only file that knows every part.

A config is a tree of plain values; each branch with a ``name`` holds exactly the keywords of the
builder that the name points to (see ``mmflax.plugins``):

=============  ===================================================================================
seed           of parameters, dropout and the order of the data
model          ``image_encoder``, ``text_encoder``, ``fusion``: each a name and its keywords
task           a name and its keywords
data           a dataset's name and keywords, and the pipeline's (``PIPELINE`` below)
processor      keywords of ``mmflax.data.processor.Processor.learn``
optim          keywords of ``mmflax.training.optim.build``; ``total_steps`` is ``train.steps``
mesh           sizes of ``data``, ``fsdp``, ``tensor``; -1 = what is left
train          ``TRAIN`` below
evaluation     ``EVALUATION`` below
checkpoint     keywords of ``mmflax.checkpoints.store.Store``
=============  ===================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmflax import plugins
from mmflax.checkpoints.store import Store
from mmflax.config import check_same_run
from mmflax.data import pipeline
from mmflax.data.dataset import Dataset, Subset
from mmflax.data.priors import question_prior
from mmflax.data.processor import Processor
from mmflax.distributed import mesh as meshes
from mmflax.distributed import plan as plans
from mmflax.distributed import processes
from mmflax.errors import MmflaxError
from mmflax.inference.predict import Predictor
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks.blind import VIEWS, blind_eval_step
from mmflax.tasks.task import Task
from mmflax.training import loop, observe, optim
from mmflax.training.evaluate import make_evaluate
from mmflax.training.state import abstract_sharded, create_sharded
from mmflax.training.step import make_eval_step, make_train_step

PIPELINE = dict(batch_size=None, num_threads=2, prefetch=2)
TRAIN = dict(
    steps=None,
    accumulate=1,
    ema_decay=None,
    log_every=50,
    eval_every=None,
    checkpoint_every=None,
    max_skipped_in_row=10,
)
EVALUATION = dict(split="validation", batch_size=None, max_examples=None)
_SECTIONS = (
    "seed", "model", "task", "data", "processor", "optim", "mesh", "train", "evaluation",
    "checkpoint",
)  # fmt: skip
_PARTS = ("image_encoder", "text_encoder", "fusion")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked config and what can be built from it without reading data."""

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        plugins.check_fields("config", dict.fromkeys(self.config), dict.fromkeys(_SECTIONS))
        missing = [key for key in _SECTIONS[1:] if key not in self.config and key not in _OPTIONAL]
        if missing:
            raise MmflaxError(f"The config has no {', '.join(missing)}; add it.")
        plugins.check_fields("model", self.config["model"].keys(), dict.fromkeys(_PARTS))
        absent = [part for part in _PARTS if part not in self.config["model"]]
        if absent:
            raise MmflaxError(f"The config has no model.{absent[0]}; add it.")
        for section, least in (("data.batch_size", 1), ("train.steps", 1), ("train.accumulate", 1)):
            group, key = section.split(".")
            value = getattr(self, group).get(key)
            if not isinstance(value, int) or value < least:
                raise MmflaxError(f"{section} is {value!r}; expected a whole number above 0.")

    # The config's sections, with defaults filled in and unknown keys refused.

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @functools.cached_property
    def train(self) -> dict[str, Any]:
        return _section("train", self.config["train"], TRAIN)

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """The pipeline's fields; the dataset's are left to ``dataset``."""
        given = {k: v for k, v in self.config["data"].items() if k in PIPELINE}
        return _section("data", given, PIPELINE)

    @functools.cached_property
    def evaluation(self) -> dict[str, Any]:
        found = _section("evaluation", self.config.get("evaluation", {}), EVALUATION)
        return found | {"batch_size": found["batch_size"] or self.data["batch_size"]}

    def mesh(self, devices: Any = None) -> jax.sharding.Mesh:
        """The mesh over all (or the given) devices; the batch must divide over it."""
        fields = dict(self.config.get("mesh", {}))
        plugins.check_fields("mesh", fields, inspect.signature(meshes.make_mesh).parameters)
        mesh = meshes.make_mesh(**fields, devices=devices)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        for where, size in (
            ("data.batch_size", self.data["batch_size"]),
            ("evaluation.batch_size", self.evaluation["batch_size"]),
        ):
            if size % shards:
                raise MmflaxError(
                    f"{where} is {size}, which does not divide over data x fsdp = {shards} "
                    f"devices; make it a multiple, such as {-(-size // shards) * shards}."
                )
        rows, parts = self.data["batch_size"], self.train["accumulate"]
        if rows % (parts * shards):
            raise MmflaxError(
                f"data.batch_size is {rows}, which does not divide into train.accumulate = {parts} "
                f"micro-batches over {shards} devices; make it a multiple of {parts * shards}."
            )
        return mesh

    def dataset(self) -> Dataset:
        """Prepares (if need be) and opens the data."""
        fields = {k: v for k, v in self.config["data"].items() if k not in PIPELINE}
        return plugins.build("mmflax.data.datasets", "data", fields)

    def learn_processor(self, dataset: Dataset) -> Processor:
        """The processor of a new run: answers and vocabulary come from the train split."""
        fields = dict(self.config["processor"])
        known = dict(inspect.signature(Processor.learn).parameters)
        for name in ("fields", "dataset"):
            known.pop(name)
        own = {f.name: f for f in dataclasses.fields(Processor)}
        taken = {"answers", "question_types", "tokenizer"}
        plugins.check_fields("processor", fields, known | {k: None for k in own if k not in taken})
        if "image_size" not in fields:
            raise MmflaxError("The config has no processor.image_size (pixels a side); add it.")
        return Processor.learn(dataset, **fields)

    def task(self, processor: Processor) -> Task:
        """Model, loss and metrics for this vocabulary and these answers."""
        parts = {
            part: plugins.build(
                f"mmflax.models.{'fusion' if part == 'fusion' else 'encoders'}",
                f"model.{part}",
                self.config["model"][part],
                **given,
            )
            for part, given in (
                ("image_encoder", dict(image_size=processor.image_size)),
                (
                    "text_encoder",
                    dict(
                        vocab_size=processor.tokenizer.vocab_size, max_length=processor.max_length
                    ),
                ),
                ("fusion", {}),
            )
        }
        return plugins.build(
            "mmflax.tasks",
            "task",
            self.config["task"],
            backbone=VisionLanguageModel(**parts),
            num_answers=len(processor.answers),
            question_types=processor.question_types,
        )

    def optimizer(self, params: Any) -> tuple[Any, Any]:
        """The optax transformation and its schedule, for these abstract parameters."""
        fields = dict(self.config["optim"])
        known = dict(inspect.signature(optim.build).parameters)
        known.pop("params")
        plugins.check_fields("optim", fields, known)
        if "schedule" not in fields:
            raise MmflaxError("The config has no optim.schedule; add one, such as warmup_cosine.")
        schedule = {"total_steps": self.train["steps"], **fields.pop("schedule")}
        return optim.build(params, schedule=schedule, **fields)

    def store(self, workdir: pathlib.Path) -> Store:
        fields = dict(self.config.get("checkpoint", {}))
        known = dict(inspect.signature(Store).parameters)
        known.pop("directory")
        plugins.check_fields("checkpoint", fields, known)
        return Store(str(workdir / "checkpoints"), **fields)


_OPTIONAL = ("mesh", "evaluation", "checkpoint", "seed")


@dataclasses.dataclass(frozen=True)
class Built:
    """A task with its parameters' place: what training, evaluation and asking share."""

    task: Task
    processor: Processor
    mesh: jax.sharding.Mesh
    tx: Any
    schedule: Any
    abstract: Any
    init: Callable[[jax.Array], Any]


def assemble(experiment: Experiment, processor: Processor, mesh: jax.sharding.Mesh) -> Built:
    """Everything of a run but its data and its arrays."""
    task = experiment.task(processor)
    example = example_batch(processor, 1)

    def init(key: jax.Array) -> Any:
        return task.model.init(key, example, train=False)["params"]

    params = jax.eval_shape(init, jax.random.key(0))
    tx, schedule = experiment.optimizer(params)
    ema = experiment.train["ema_decay"] is not None
    abstract = abstract_sharded(init, tx, jax.random.key(experiment.seed), mesh, ema=ema)
    return Built(task, processor, mesh, tx, schedule, abstract, init)


def example_batch(processor: Processor, rows: int) -> dict[str, jax.Array]:
    """A batch of zeros with the shapes and types of a real one."""
    size, length, words = processor.image_size, processor.max_length, processor.caption_length
    captions = {
        "caption": jnp.zeros((rows, words), jnp.int32),
        "caption_mask": jnp.ones((rows, words), bool),
    }
    return {
        **(captions if words else {}),
        "image": jnp.zeros((rows, size, size, 3), jnp.float32),
        "tokens": jnp.zeros((rows, length), jnp.int32),
        "text_mask": jnp.ones((rows, length), bool),
        "label": jnp.zeros(rows, jnp.int32),
        "question_type": jnp.zeros(rows, jnp.int32),
        "mask": jnp.ones(rows, bool),
    }


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
    if main:
        _prepare_workdir(root, config, processor)
    observers = [] if quiet else observe.observers(root)
    if not quiet and main:
        print(dataset.describe())
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
        num_threads=experiment.data["num_threads"],
        prefetch=experiment.data["prefetch"],
    )
    evals = {}
    if experiment.evaluation["split"] in dataset.splits:
        name = experiment.evaluation["split"]
        evals[name] = evaluator(experiment, built, dataset, name)
    key = jax.random.key(experiment.seed)
    try:
        return loop.run(
            train_step=train_step(experiment, built),
            abstract_state=built.abstract,
            create_state=lambda: create_sharded(
                built.init, built.tx, key, mesh, ema=fields["ema_decay"] is not None
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
            flops_per_example=_flops(experiment, processor, mesh),
        )
    finally:
        store.close()


def train_step(experiment: Experiment, built: Built) -> Callable[..., Any]:
    """The pure step of this run: what `train` compiles and `plan` plans."""
    return make_train_step(
        _apply(built.task),
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
      ``{"split", "step", "examples", "seconds", "metrics": {view: {metric: value}}}``; the views
      are full, text_only, image_only, majority and question_prior.
    """
    root = pathlib.Path(workdir)
    experiment, built, params, step = restore(root, step)
    dataset = experiment.dataset()
    source = dataset.source(split)
    began = time.perf_counter()
    flat = evaluator(experiment, built, dataset, split, every=True)(params)
    views = _by_view(flat)
    views["question_prior"] = question_prior(dataset.source("train"), source)
    result = {
        "split": split,
        "step": step,
        "examples": len(source),
        "seconds": round(time.perf_counter() - began, 2),
        "metrics": views,
    }
    if processes.is_main():
        path = root / "eval" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def load(workdir: str, *, step: int | None = None, batch_size: int = 8) -> Predictor:
    """The trained model in ``workdir``, ready to be asked.

    Args:
      step: a checkpoint's step; by default the best one if the run ranked them, else the newest.
      batch_size: examples that one call of the compiled model holds; fewer are padded.
    """
    experiment, built, params, _ = restore(
        pathlib.Path(workdir), step, devices=jax.local_devices()[:1]
    )
    return Predictor(built.task.model, params, built.processor, batch_size=batch_size)


def restore(
    root: pathlib.Path, step: int | None = None, devices: Any = None
) -> tuple[Experiment, Built, Any, int]:
    """Config, model and (averaged) parameters of a trained run; optimizer state stays on disk."""
    experiment = Experiment(read_config(root))
    processor = Processor.load(root)
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


def evaluator(
    experiment: Experiment, built: Built, dataset: Dataset, split: str, every: bool = False
) -> Callable[[Any], dict[str, float]]:
    """``fn(params) -> {metric: value}`` on a split, blind baselines included, compiled once."""
    source: Any = dataset.source(split)
    limit = None if every else experiment.evaluation["max_examples"]
    if limit is not None and limit < len(source):
        # Evenly spaced, so that every kind of example is among them.
        source = Subset(source, np.linspace(0, len(source) - 1, limit).round().astype(int).tolist())
    task, index_count = built.task, meshes.data_shard(built.mesh)
    answers = len(built.processor.answers)

    def majority(batch: Mapping[str, Any]) -> dict[str, Any]:
        logits = jnp.broadcast_to(jnp.arange(answers, 0, -1, dtype=jnp.float32), (
            batch["label"].shape[0], answers))  # fmt: skip
        return constant({"logits": logits}, batch)

    constant = _summed(task.metrics)
    step = blind_eval_step(
        make_eval_step(_apply(task), task.loss, task.metrics),
        majority,
        image_tokens=task.model.backbone.image_encoder.num_tokens(),
    )
    run = make_evaluate(step, built.mesh)

    def evaluate_now(params: Any) -> dict[str, float]:
        batches = pipeline.eval_batches(
            source,
            built.processor,
            batch_size=experiment.evaluation["batch_size"],
            process_index=index_count[0],
            process_count=index_count[1],
            num_threads=experiment.data["num_threads"],
        )
        return run(params, batches)

    return evaluate_now


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


def _by_view(flat: Mapping[str, float]) -> dict[str, dict[str, float]]:
    views: dict[str, dict[str, float]] = {view: {} for view in VIEWS}
    for name, value in flat.items():
        view, _, metric = name.partition("/")
        if view in VIEWS:
            views[view][metric] = value
        else:
            views["full"][name] = value
    return views


def _apply(task: Task) -> Callable[..., Any]:
    def apply(params: Any, batch: Any, key: Any, train: bool) -> Any:
        rngs = {} if key is None else {"dropout": key}
        return task.model.apply({"params": params}, batch, train=train, rngs=rngs)

    return apply


def _summed(metrics: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def summed(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        mask = batch["mask"].astype(jnp.float32)
        return {
            name: ((total * mask).sum(), (count * mask).sum())
            for name, (total, count) in metrics(outputs, batch).items()
        }

    return summed


def _flops(experiment: Experiment, processor: Processor, mesh: jax.sharding.Mesh) -> float | None:
    """Training FLOPs of one example; None where the device's peak is not known."""
    if observe.peak_flops(mesh.devices.flat[0].device_kind) is None:
        return None
    # Loops and recomputation do not count as work of the model (Chowdhery et al. 2022, appendix B).
    config = json.loads(json.dumps(experiment.config, default=str))
    for part in config["model"].values():
        for name in ("scan_layers", "remat"):
            part.pop(name, None)
    task = Experiment(config).task(processor)
    batch = example_batch(processor, 1)
    params = jax.eval_shape(
        lambda key: task.model.init(key, batch, train=False)["params"], jax.random.key(0)
    )

    def loss(params: Any) -> Any:
        outputs: Any = task.model.apply({"params": params}, batch, train=False)
        return task.loss(outputs, batch).sum()

    return observe.count_flops(jax.grad(loss), params)


def _section(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    plugins.check_fields(name, given.keys(), defaults)
    return {**defaults, **given}


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
            source, processor, batch_size=rows, seed=experiment.seed, num_threads=0
        ) as batches:
            batch = next(batches)
    else:
        batch = processor.batch([source[i] for i in range(min(rows, len(source)))])
    return Shown(dataset, processor, batch)
