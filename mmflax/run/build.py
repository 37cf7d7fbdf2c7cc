"""From a config to its parts: the only reader of a config, and the only file that knows every part.

A config is a tree of plain values; each branch with a ``name`` holds exactly the keywords of the
builder that the name points to (see ``mmflax.registry``):

=============  ===================================================================================
seed           of parameters, dropout and the order of the data
model          ``image_encoder``, ``text_encoder``, ``fusion``: each a name and its keywords; and
               ``modality_dropout``, the share of examples trained without image or text
task           a name and its keywords
data           a data set's name and keywords, and those of `mmflax.config.sections.DataConfig`
processor      keywords of ``mmflax.data.processor.Processor.learn``; ``from`` = a public
               checkpoint, or several, whose tokenizer and image preprocessing are used
optim          keywords of ``mmflax.training.optim.build``; ``total_steps`` is the run's
augment        keywords of ``mmflax.data.augment.build``; left out = the examples as they are
others         the dataclasses of `mmflax.config.sections`, and ``init``
=============  ===================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from mmflax import paths, registry
from mmflax.checkpoints.store import Store
from mmflax.config import auto, schema, sections
from mmflax.config.section import check_range
from mmflax.data import augment
from mmflax.data.dataset import Dataset
from mmflax.data.processor import Processor
from mmflax.distributed import mesh as meshes
from mmflax.errors import MmflaxError
from mmflax.evaluation.modality_views import check_views
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.run import on_mesh, recipe
from mmflax.run.former import preprocessing_of
from mmflax.tasks.task import Task
from mmflax.training import optim

# Steps of a schedule where no step is taken: the shape of the optimizer's state is all that counts.
_ANY_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked config and what can be built from it without reading data.

    ``config`` has provisional values for the keys that are ``auto`` in the config ``asked`` for,
    ``undecided``, until `mmflax.run.decide.opened` has seen the data.
    """

    config: Mapping[str, Any]
    asked: Mapping[str, Any] = dataclasses.field(init=False)
    undecided: tuple[str, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        schema.check_sections(self.config)
        auto.check(self.config)
        object.__setattr__(self, "asked", self.config)
        object.__setattr__(self, "undecided", auto.undecided(self.config))
        object.__setattr__(self, "config", recipe.provisional(self.config))
        # Each checks itself when it is made.
        _ = self.train, self.data, self.evaluation, self.checkpoint, self.mesh_config, self.lora
        sections.RecipeConfig.read(self.config.get("recipe", {}))
        registry.check_type("seed", self.seed, int)
        check_range("seed", self.seed, least=0)
        rate = self.config["model"].get("modality_dropout", 0.0)
        registry.check_type("model.modality_dropout", rate, float)
        check_range("model.modality_dropout", rate, least=0, below=1)

    @property
    def seed(self) -> int:
        return self.config.get("seed", 0)

    @functools.cached_property
    def train(self) -> sections.TrainConfig:
        return sections.TrainConfig.read(self.config["train"])

    @functools.cached_property
    def data(self) -> sections.DataConfig:
        """The pipeline's fields; the data set's are left to ``dataset``."""
        known = {field.name for field in dataclasses.fields(sections.DataConfig)}
        given = {key: value for key, value in self.config["data"].items() if key in known}
        return sections.DataConfig.read(given)

    @functools.cached_property
    def evaluation(self) -> sections.EvaluationConfig:
        """With the training's batch size where the config gives none."""
        given = {k: v for k, v in self.config.get("evaluation", {}).items() if v is not None}
        evaluation = sections.EvaluationConfig.read({"batch_size": self.data.batch_size, **given})
        check_views(evaluation.views)
        return evaluation

    @functools.cached_property
    def checkpoint(self) -> sections.CheckpointConfig:
        return sections.CheckpointConfig.read(self.config.get("checkpoint", {}))

    @functools.cached_property
    def mesh_config(self) -> sections.MeshConfig:
        """The sizes of the mesh and the path rules."""
        return sections.MeshConfig.read(self.config.get("mesh", {}))

    @functools.cached_property
    def lora(self) -> sections.LoraConfig:
        """Low-rank adapters; none where its rank is None."""
        return sections.LoraConfig.read(self.config.get("lora") or {})

    def _check_decided(self) -> None:
        if self.undecided:
            raise MmflaxError(
                f"{self.undecided[0]} is 'auto' until the data are open: call "
                "mmflax.run.decide.opened(experiment, dataset), or give a value."
            )

    @property
    def steps(self) -> int:
        """Of the whole run; with ``train.epochs`` only after ``of_length``."""
        if self.train.steps is None:
            raise MmflaxError("The steps of train.epochs are known once the data are open.")
        return self.train.steps

    def of_length(self, examples: int) -> Experiment:
        """With ``train.steps`` in place of ``train.epochs``, for a train split of this length."""
        if self.train.steps is not None:
            return self
        train = {key: value for key, value in self.config["train"].items() if key != "epochs"}
        train["steps"] = self.train.total_steps(examples, self.data.batch_size)
        return Experiment({**self.config, "train": train})

    def mesh_sizes(self, devices: Sequence[Any]) -> dict[str, int]:
        """data, fsdp and tensor: those of the config, or its preset's for these devices."""
        return on_mesh.sizes(self.mesh_config, self.config["model"], devices)

    def mesh(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over all (or the given) devices; the batch must divide over it."""
        devices = jax.devices() if devices is None else devices
        mesh = meshes.make_mesh(**self.mesh_sizes(devices), devices=devices)
        rows = {
            "data.batch_size": self.data.batch_size,
            "evaluation.batch_size": self.evaluation.batch_size,
        }
        known = {where: size for where, size in rows.items() if where not in self.undecided}
        on_mesh.check_rows(mesh, known, self.train.accumulate)
        return mesh

    @property
    def rules(self) -> meshes.Rules:
        """Sharding rules by path: the config's before the built-in ones."""
        return meshes.with_rules(self.mesh_config.rules)

    def dataset(self, processor: Processor | None = None, **given: Any) -> Dataset:
        """Prepares (if need be) and opens the data.

        ``processor`` is a run's own, if it has one, and ``given`` other keywords that its workdir
        decides (`mmflax.run.data_record.hold_out_of`).
        """
        how = self.config["processor"].get("normalize_answers")
        known = {field.name for field in dataclasses.fields(sections.DataConfig)}
        return registry.build(
            "mmflax.data.datasets",
            "data",
            {key: value for key, value in self.config["data"].items() if key not in known},
            max_bad_fraction=self.data.max_bad_fraction,
            normalize_answers=how if processor is None else processor.normalize_answers,
            reads_regions=self.reads_regions,
            **given,
        )

    def learn_processor(
        self, dataset: Dataset, say: Callable[[str], None] | None = None
    ) -> Processor:
        """The processor of a new run: answers and vocabulary come from the train split.

        ``say`` is told what a user should know of them, in sentences.
        """
        self._check_decided()
        fields = dict(self.config["processor"])
        if self.config["task"].get("name") == "vqa" and fields.get("normalize_answers") is None:
            fields["normalize_answers"] = "vqa"
        registry.check_fields("processor", fields, schema.keywords("processor", self.config) or {})
        fields.pop("from", None)
        return Processor.learn(dataset, published=self.published, say=say, **fields)

    @functools.cached_property
    def published(self) -> list[Any]:
        """The preprocessing of the checkpoints or runs that ``processor.from`` names."""
        source = self.config["processor"].get("from")
        listed = [source] if isinstance(source, str) else list(source or ())
        return [preprocessing_of(one) for one in listed if one]

    def augment(self) -> Callable[..., Any] | None:
        """What happens to training examples before the processor sees them."""
        fields = dict(self.config.get("augment", {}))
        if not fields:
            return None
        registry.check_fields("augment", fields, schema.keywords("augment", self.config) or {})
        return augment.build(**fields)

    @property
    def reads_regions(self) -> bool:
        """Whether the image encoder reads a detector's regions in place of images."""
        where = "model.image_encoder"
        name = self.config["model"]["image_encoder"].get("name")
        return "num_regions" in registry.keywords_of("mmflax.models.encoders", where, name)

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
            regions = dict(num_regions=processor.num_regions, feature_dim=processor.region_dim)
            given["image_encoder"] |= regions
        name = self.config["model"]["image_encoder"].get("name")
        reads = "regions" if self.reads_regions else "image"
        if not (processor.num_regions if reads == "regions" else processor.image_size):
            change = (
                "take data with a detector's regions (docs/data.md), or start from a checkpoint "
                "that reads pictures, such as METER, ViLT, CLIP or a ViT with a BERT"
                if reads == "regions"
                else "choose --config.model.image_encoder.name=regions for a detector's regions"
            )
            raise MmflaxError(
                f"The image encoder {name!r} reads {reads}, which the data lack; {change}."
            )
        text = self.config["model"]["text_encoder"]
        if "max_length" in text:  # such as a checkpoint's, longer than this data needs
            given["text_encoder"].pop("max_length")
        else:
            given["text_encoder"]["max_length"] += text.get("position_offset", 0)
        if text.get("position_offset") and "pad_token" not in text:  # as RoBERTa counts
            given["text_encoder"] |= {"pad_token": processor.tokenizer.pad_id}
        parts = {
            part: registry.build(
                f"mmflax.models.{'fusion' if part == 'fusion' else 'encoders'}",
                f"model.{part}",
                self.config["model"][part],
                **given[part],
            )
            for part in sections.PARTS
        }
        rate = self.config["model"].get("modality_dropout", 0.0)
        return VisionLanguageModel(**parts, **({"modality_dropout": rate} if rate else {}))

    def task(self, processor: Processor) -> Task:
        """Model, loss and metrics for this vocabulary and these answers."""
        self._check_decided()
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
        fields = dict(self.config["task"])
        if isinstance(fields.get("positive"), str):
            fields["positive"] = processor.spelled(fields["positive"])
        task = registry.build("mmflax.tasks", "task", fields, **given)
        taken = registry.keywords_of("mmflax.tasks", "task", fields["name"])
        for key, lack in (("num_answers", "answer"), ("target_length", "target")):
            if key in taken and not given[key]:
                raise MmflaxError(
                    f"The task {fields['name']!r} needs an {lack!r} of every training example, and "
                    "the train split has none; add them, or choose another task."
                )
        return task

    def optimizer(
        self, params: Any, frozen: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Any, Any]:
        """The optax transformation and its schedule, for these abstract parameters.

        Regexes that match none of them may match `frozen`, path -> shape of those beside them.
        """
        fields = dict(self.config["optim"])
        known = registry.keywords(optim.build)
        known = {k: v for k, v in known.items() if k not in ("params", "frozen")}
        registry.check_fields("optim", fields, known)
        for key in {"no_decay", "freeze"} & fields.keys():
            fields[key] = sections.regexes(f"optim.{key}", fields[key])
        sections.regexes("optim.lr_multipliers", optim.patterns(fields.get("lr_multipliers", ())))
        if frozen:
            fields = _without_idle(fields, paths.leaves(params), frozen)
        steps = self.train.steps or _ANY_STEPS
        schedule = {"total_steps": steps, **fields.pop("schedule")}
        return optim.build(params, schedule=schedule, frozen=frozen, **fields)

    def store(self, workdir: pathlib.Path) -> Store:
        return Store(str(workdir / "checkpoints"), **sections.kept(self.checkpoint, self.train))


def _without_idle(
    fields: Mapping[str, Any], trained: Collection[str], frozen: Collection[str]
) -> dict[str, Any]:
    """The optimizer's fields without rules that decide frozen parameters and no trained one."""
    fields = {"no_decay": optim.NO_DECAY, **fields}

    def decides(pattern: str) -> bool:
        found = functools.partial(re.search, pattern)
        return any(map(found, trained)) or not any(map(found, frozen))

    for key in ("no_decay", "freeze"):
        fields[key] = tuple(pattern for pattern in fields.get(key, ()) if decides(pattern))
    rules = fields.get("lr_multipliers", ())
    return {**fields, "lr_multipliers": tuple(rule for rule in rules if decides(rule[0]))}


def example_batch(processor: Processor, rows: int) -> dict[str, jax.Array]:
    """A batch of zeros with the shapes and types of a real one."""
    return {name: jnp.asarray(value) for name, value in processor.zeros(rows).items()}
