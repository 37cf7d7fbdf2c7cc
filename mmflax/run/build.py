"""From a config to its parts: the only reader of a config, and the only file that knows every part.

A config is a tree of plain values; each branch with a ``name`` holds exactly the keywords of the
builder that the name points to (see ``mmflax.registry``):

=============  ===================================================================================
seed           of parameters, dropout and the order of the data
model          ``image_encoder``, ``text_encoder``, ``fusion``: each a name and its keywords; and
               ``modality_dropout``, the share of examples trained without image or text
task           a name and its keywords
data           a dataset's name and keywords, and the pipeline's (``PIPELINE`` below)
processor      keywords of ``mmflax.data.processor.Processor.learn``; ``from`` = a public
               checkpoint, or several, whose tokenizer and image preprocessing are used
optim          keywords of ``mmflax.training.optim.build``; ``total_steps`` is ``train.steps``
mesh           sizes of ``data``, ``fsdp``, ``tensor``; -1 = what is left
train          ``TRAIN`` below
evaluation     `mmflax.config.sections.EvaluationConfig`
checkpoint     keywords of ``mmflax.checkpoints.store.Store``
init           where the weights come from, see ``mmflax.run.init_from``; left out = random
augment        keywords of ``mmflax.data.augment.build``; left out = the examples as they are
=============  ===================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmflax import registry
from mmflax.checkpoints.store import Store
from mmflax.config.sections import EvaluationConfig
from mmflax.data import augment
from mmflax.data.dataset import Dataset
from mmflax.data.processor import Processor
from mmflax.distributed import mesh as meshes
from mmflax.errors import MmflaxError
from mmflax.evaluation.modality_views import check_views
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.pretrained import hub
from mmflax.pretrained.processor import PublishedProcessor
from mmflax.tasks.task import Task
from mmflax.training import observe, optim
from mmflax.training.state import abstract_sharded

PIPELINE = dict(batch_size=None, num_threads=2, prefetch=2, max_bad_fraction=0.0)
TRAIN = dict(
    steps=None,
    accumulate=1,
    ema_decay=None,
    log_every=50,
    eval_every=None,
    checkpoint_every=None,
    max_skipped_in_row=10,
)
_SECTIONS = (
    "seed", "model", "task", "data", "processor", "optim", "mesh", "train", "evaluation",
    "checkpoint", "augment", "init",
)  # fmt: skip
_OPTIONAL = ("mesh", "evaluation", "checkpoint", "seed", "augment", "init")
_PARTS = ("image_encoder", "text_encoder", "fusion")
_MODEL = (*_PARTS, "modality_dropout")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked config and what can be built from it without reading data."""

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        registry.check_fields("config", dict.fromkeys(self.config), dict.fromkeys(_SECTIONS))
        missing = [key for key in _SECTIONS[1:] if key not in self.config and key not in _OPTIONAL]
        if missing:
            raise MmflaxError(f"The config has no {', '.join(missing)}; add it.")
        registry.check_fields("model", self.config["model"].keys(), dict.fromkeys(_MODEL))
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
    def evaluation(self) -> EvaluationConfig:
        """With the training's batch size where the config gives none."""
        given = {k: v for k, v in self.config.get("evaluation", {}).items() if v is not None}
        evaluation = EvaluationConfig.read({"batch_size": self.data["batch_size"], **given})
        check_views(evaluation.views)
        return evaluation

    def mesh(self, devices: Any = None) -> jax.sharding.Mesh:
        """The mesh over all (or the given) devices; the batch must divide over it."""
        fields = dict(self.config.get("mesh", {}))
        registry.check_fields("mesh", fields, inspect.signature(meshes.make_mesh).parameters)
        mesh = meshes.make_mesh(**fields, devices=devices)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        for where, size in (
            ("data.batch_size", self.data["batch_size"]),
            ("evaluation.batch_size", self.evaluation.batch_size),
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
        return registry.build(
            "mmflax.data.datasets",
            "data",
            fields,
            max_bad_fraction=self.data["max_bad_fraction"],
        )

    def learn_processor(self, dataset: Dataset) -> Processor:
        """The processor of a new run: answers and vocabulary come from the train split."""
        fields = dict(self.config["processor"])
        known = dict(inspect.signature(Processor.learn).parameters)
        for name in ("fields", "dataset", "published"):
            known.pop(name)
        own = {f.name: f for f in dataclasses.fields(Processor)}
        taken = {"answers", "question_types", "tokenizer"}
        source = fields.pop("from", None)
        registry.check_fields("processor", fields, known | {k: None for k in own if k not in taken})
        listed = [source] if isinstance(source, str) else list(source or ())
        published = [_published(one) for one in listed if one]
        return Processor.learn(dataset, published=published, **fields)

    def augment(self) -> Callable[..., Any] | None:
        """What happens to training examples before the processor sees them."""
        fields = dict(self.config.get("augment", {}))
        if not fields:
            return None
        registry.check_fields("augment", fields, inspect.signature(augment.build).parameters)
        return augment.build(**fields)

    def model(self, processor: Processor) -> VisionLanguageModel:
        """Encoders and fusion for images of this size (or their regions) and this vocabulary."""
        given: dict[str, dict[str, Any]] = {
            "image_encoder": dict(image_size=processor.image_size),
            "text_encoder": dict(
                vocab_size=processor.tokenizer.vocab_size,
                max_length=max(processor.max_length, processor.target_length),
            ),
            "fusion": {},
        }
        if processor.num_regions:
            given["image_encoder"] |= dict(
                num_regions=processor.num_regions, feature_dim=processor.region_dim
            )
        name = self.config["model"]["image_encoder"].get("name")
        known = registry.keywords_of("mmflax.models.encoders", "model.image_encoder", name)
        reads = "image" if "num_regions" not in known else "regions"
        if not (processor.num_regions if reads == "regions" else processor.image_size):
            raise MmflaxError(
                f"The image encoder {name!r} reads {reads}, which the data lack; choose "
                "model.image_encoder.name='regions' for a detector's regions (data.regions), "
                "another one for images."
            )
        text = self.config["model"]["text_encoder"]
        if "max_length" in text:  # such as a checkpoint's, longer than this data needs
            given["text_encoder"].pop("max_length")
        else:
            given["text_encoder"]["max_length"] += text.get("position_offset", 0)
        parts = {
            part: registry.build(
                f"mmflax.models.{'fusion' if part == 'fusion' else 'encoders'}",
                f"model.{part}",
                self.config["model"][part],
                **given[part],
            )
            for part in _PARTS
        }
        rate = self.config["model"].get("modality_dropout", 0.0)
        return VisionLanguageModel(**parts, **({"modality_dropout": rate} if rate else {}))

    def task(self, processor: Processor) -> Task:
        """Model, loss and metrics for this vocabulary and these answers."""
        backbone = self.model(processor)
        tokenizer = processor.tokenizer
        given = dict(
            backbone=backbone,
            num_answers=len(processor.answers),
            answers=processor.answers,
            question_types=processor.question_types,
            vocab_size=tokenizer.vocab_size,
            max_length=processor.max_length,
            target_length=processor.target_length,
            image_tokens=backbone.image_encoder.num_tokens(),
            continuation=tokenizer.continuation,
            **{
                name: getattr(tokenizer, name)
                for name in ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
            },
        )
        fields = self.config["task"]
        task = registry.build("mmflax.tasks", "task", fields, **given)
        taken = registry.keywords_of("mmflax.tasks", "task", fields["name"])
        for key, lack in (("num_answers", "answer"), ("target_length", "target")):
            if key in taken and not given[key]:
                raise MmflaxError(
                    f"The task {fields['name']!r} needs an {lack!r} of every training example, and "
                    "the train split has none; add them, or choose another task."
                )
        return task

    def optimizer(self, params: Any) -> tuple[Any, Any]:
        """The optax transformation and its schedule, for these abstract parameters."""
        fields = dict(self.config["optim"])
        known = dict(inspect.signature(optim.build).parameters)
        known.pop("params")
        registry.check_fields("optim", fields, known)
        if "schedule" not in fields:
            raise MmflaxError("The config has no optim.schedule; add one, such as warmup_cosine.")
        schedule = {"total_steps": self.train["steps"], **fields.pop("schedule")}
        return optim.build(params, schedule=schedule, **fields)

    def store(self, workdir: pathlib.Path) -> Store:
        fields = dict(self.config.get("checkpoint", {}))
        known = dict(inspect.signature(Store).parameters)
        known.pop("directory")
        registry.check_fields("checkpoint", fields, known)
        return Store(str(workdir / "checkpoints"), **fields)


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

    def whole(key: jax.Array) -> Any:
        # With the loss and the metrics, so that a key which they lack is told before training.
        outputs, variables = task.model.init_with_output(key, example, train=False)
        task.loss(outputs, example), task.metrics(outputs, example)
        return variables["params"]

    params = jax.eval_shape(whole, jax.random.key(0))
    tx, schedule = experiment.optimizer(params)
    ema = experiment.train["ema_decay"] is not None
    abstract = abstract_sharded(init, tx, jax.random.key(experiment.seed), mesh, ema=ema)
    return Built(task, processor, mesh, tx, schedule, abstract, init)


def example_batch(processor: Processor, rows: int) -> dict[str, jax.Array]:
    """A batch of zeros with the shapes and types of a real one."""
    return {name: jnp.asarray(value) for name, value in processor.zeros(rows).items()}


def apply_fn(task: Task) -> Callable[..., Any]:
    """``(params, batch, key, train) -> outputs`` of the task's model."""

    def apply(params: Any, batch: Any, key: Any, train: bool) -> Any:
        rngs = {} if key is None else {"dropout": key}
        return task.model.apply({"params": params}, batch, train=train, rngs=rngs)

    return apply


def training_flops(
    experiment: Experiment, processor: Processor, mesh: jax.sharding.Mesh
) -> float | None:
    """Training FLOPs of one example; None where the device's peak is not known."""
    if observe.peak_flops(mesh.devices.flat[0].device_kind) is None:
        return None
    # Loops and recomputation do not count as work of the model (Chowdhery et al. 2022, appendix B).
    config = json.loads(json.dumps(experiment.config, default=str))
    for part in _PARTS:
        for name in ("scan_layers", "remat"):
            config["model"][part].pop(name, None)
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
    registry.check_fields(name, given.keys(), defaults)
    return {**defaults, **given}


def _published(source: str) -> Any:
    """The preprocessing beside a public checkpoint's weights."""
    root = hub.locate(source)
    folder = root if root.is_dir() else root.parent
    if not PublishedProcessor.exists(folder):
        raise MmflaxError(
            f"processor.from is {source}, which has neither a tokenizer nor a "
            "preprocessor_config.json; copy them beside its weights."
        )
    return PublishedProcessor.load(folder)
