"""The sections of a config whose keys are our own: one frozen dataclass each.

The keys of the other sections (``model``, ``task``, ``optim``, ``processor``, ``augment`` and the
data set's part of ``data``) are the keywords of builders; see `mmflax.config.schema`.
"""

from __future__ import annotations

import dataclasses
import fractions
import math
import re
from collections.abc import Sequence
from typing import Any

from mmflax.config.section import Section, ranged
from mmflax.errors import MmflaxError

AXES = ("data", "fsdp", "tensor")
PARTS = ("image_encoder", "text_encoder", "fusion")
PRESETS = ("dp", "fsdp", "fsdp+tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The training loop. One of ``steps`` and ``epochs`` is given.

    Attributes:
      steps: of the whole run.
      epochs: passes over the training split, in place of ``steps``.
      accumulate: micro-batches of a step.
      ema_decay: per step, of the parameters' moving average; None keeps none.
      log_every: steps.
      eval_every: steps; None evaluates at the end only.
      checkpoint_every: steps; None saves at the end only.
      patience: evaluations in a row without a better ``checkpoint.best_metric`` that end the run;
        a fraction of 1 that reached 1 on 1,000 examples or more ends it, too. None trains to the
        last step.
      max_skipped_in_row: updates with non-finite gradients in a row that end the run.
    """

    section = "train"
    steps: int | None = ranged(None, least=1)
    epochs: float | None = ranged(None, above=0)
    accumulate: int = ranged(1, least=1)
    ema_decay: float | None = ranged(None, least=0, below=1)
    log_every: int = ranged(50, least=1)
    eval_every: int | None = ranged(None, least=1)
    checkpoint_every: int | None = ranged(None, least=1)
    patience: int | None = ranged(None, least=1)
    max_skipped_in_row: int = ranged(10, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise MmflaxError(
                f"The config gives {given} of train.steps and train.epochs; give one of "
                f"them, such as --config.train.steps=1000."
            )

    def total_steps(self, examples: int, batch_size: int) -> int:
        """Steps of the run over a training split of so many examples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        epochs = fractions.Fraction(self.epochs).limit_denominator(10**6)
        return math.ceil(epochs * examples / batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The input pipeline's part of ``data``.

    Attributes:
      batch_size: rows of the global batch.
      num_threads: that make batches; 0 makes them in the training loop.
      prefetch: batches ready at most.
      max_bad_fraction: share of examples whose image may be unreadable.
      changed: ``refuse`` data that changed since the run began, or ``accept`` them; the images
        that are held out for validation stay the same.
    """

    section = "data"
    batch_size: int = ranged(least=1)
    num_threads: int = ranged(2, least=0)
    prefetch: int = ranged(2, least=0)
    max_bad_fraction: float = ranged(0.0, least=0, most=1)
    changed: str = ranged("refuse", choices=("refuse", "accept"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """How a split is evaluated.

    Attributes:
      split: evaluated during training.
      batch_size: rows of a batch; by default the training's.
      max_examples: evaluated during training, evenly spaced; None is the whole split.
      bootstrap: resamples for the 95 % intervals of `mmflax evaluate`; 0 leaves them out.
      rerank: retrieval's candidates of each query that pass through the fusion.
      views: modality views, a forward pass each: full, and any of text_only and image_only.
    """

    section = "evaluation"
    split: str = "validation"
    batch_size: int = ranged(least=1)
    max_examples: int | None = ranged(None, least=1)
    bootstrap: int = ranged(1000, least=0)
    rerank: int = ranged(64, least=0)
    views: tuple[str, ...] = ("full", "text_only", "image_only")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Which checkpoints are kept; see `mmflax.checkpoints.store.Store`."""

    section = "checkpoint"
    keep_last: int = ranged(3, least=1)
    keep_best: int = ranged(0, least=0)
    best_metric: str | None = None
    best_mode: str = ranged("max", choices=("max", "min"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_best and not self.best_metric:
            raise MmflaxError(
                f"checkpoint.keep_best is {self.keep_best} without checkpoint.best_metric; name "
                "the metric, such as --config.checkpoint.best_metric=validation/loss with "
                "--config.checkpoint.best_mode=min, or give --config.checkpoint.keep_best=0."
            )


def kept(checkpoint: CheckpointConfig, train: TrainConfig) -> dict[str, Any]:
    """Keywords of `mmflax.checkpoints.store.Store`: a run that stops early keeps its best step."""
    fields = dataclasses.asdict(checkpoint)
    if train.patience is not None and checkpoint.best_metric is not None:
        fields["keep_best"] = max(checkpoint.keep_best, 1)
    return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """The device mesh.

    Attributes:
      data: replicas; -1, for one of the three, is all devices left.
      fsdp: parts into which parameters are split.
      tensor: parts into which attention heads and MLP columns are split.
      preset: sizes by the number of devices, in place of the three: ``dp`` (data alone), ``fsdp``,
        or ``fsdp+tensor``; see `mmflax.distributed.presets`.
      rules: ``(path regex, axes)``, which shard parameters before the built-in rules; an
        axis (or None, or several) for each dimension, ``()`` replicates.
    """

    section = "mesh"
    data: int = ranged(-1, least=-1)
    fsdp: int = ranged(1, least=-1)
    tensor: int = ranged(1, least=-1)
    preset: str | None = ranged(None, choices=PRESETS)
    rules: Any = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [getattr(self, axis) for axis in AXES]
        if self.preset is not None and sizes != [-1, 1, 1]:
            raise MmflaxError(
                f"mesh.preset is {self.preset!r} and mesh data x fsdp x tensor is "
                f"{'x'.join(map(str, sizes))}; give the sizes or the preset, which decides them: "
                "--config.mesh.preset=None, or --config.mesh.data=-1 --config.mesh.fsdp=1 "
                "--config.mesh.tensor=1."
            )
        if 0 in sizes or sizes.count(-1) > 1:
            raise MmflaxError(
                f"mesh data x fsdp x tensor is {'x'.join(map(str, sizes))}; expected sizes above "
                "0, of which one may be -1 (all devices left)."
            )
        if isinstance(self.rules, str) or not isinstance(self.rules, Sequence):
            raise MmflaxError(f"mesh.rules is {self.rules!r}; expected (path regex, axes) pairs.")
        object.__setattr__(self, "rules", tuple(map(_rule, self.rules)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanShapes(Section):
    """Sizes that `mmflax plan` takes in place of reading the data; training does not use them.

    None is what the published data set has (`mmflax.run.plan_shapes`), and for another the value in
    brackets.

    Attributes:
      examples: of the train split; needed with ``train.epochs`` and for the hours of a run.
      evaluated: examples of the split that is evaluated during training (a tenth of ``examples``).
      answers: different ones, which the head tells apart (0).
      question_types: by which metrics are reported (1).
      vocab_size: tokens of the vocabulary (``processor.vocab_size``).
      max_length: tokens of a question (``processor.max_length``, or 40).
      target_length: tokens of a text to be generated (``processor.target_length``, or 0).
      second_images: whether an example has two images (no).
      absent_images: whether an image may be absent (no).
      image_keys: whether examples of the same image are known as such (yes).
      num_regions: of a detector, for each image (36 where the image encoder reads regions).
      region_dim: numbers of each region's feature (2048).
      region_classes: of the detector (0).
    """

    section = "plan.shapes"
    examples: int | None = ranged(None, least=1)
    evaluated: int | None = ranged(None, least=0)
    answers: int | None = ranged(None, least=0)
    question_types: int | None = ranged(None, least=1)
    vocab_size: int | None = ranged(None, least=6)
    max_length: int | None = ranged(None, least=3)
    target_length: int | None = ranged(None, least=0)
    second_images: bool | None = None
    absent_images: bool | None = None
    image_keys: bool | None = None
    num_regions: int | None = ranged(None, least=1)
    region_dim: int | None = ranged(None, least=1)
    region_classes: int | None = ranged(None, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeConfig(Section):
    """What the values ``auto`` are decided by; see `mmflax.run.recipe`.

    Attributes:
      minutes: of training at most, by an estimate of the work and of what the devices do.
      max_epochs: passes over the training split at most.
      decided: what was decided for this run, key -> value; written into the workdir's config.
    """

    section = "recipe"
    minutes: float = ranged(8.0, above=0)
    max_epochs: float = ranged(100.0, above=0)
    decided: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """Low-rank adapters of the weights that ``init`` loads (LoRA); see `mmflax.models.lora`.

    Attributes:
      rank: of each adapter; None trains without adapters.
      alpha: the adapters count alpha / rank times; by default once, as alpha = rank.
      rank_stabilized: alpha / sqrt(rank) times instead (Kalajdzievski 2023).
      targets: path regexes of the dense kernels that are adapted; by default those of query and
        value in every attention, as in the paper.
      dropout: of the adapters' inputs.
      also_train: path regexes of loaded parameters that train whole; what ``init`` does not load
        does so anyway. All others are frozen.
      save_base: keep the frozen parameters in the workdir, once, so that it needs no other files.
    """

    section = "lora"
    rank: int | None = ranged(None, least=1)
    alpha: float | None = ranged(None, above=0)
    rank_stabilized: bool = False
    targets: Any = (r"(^|/)(query|value)/kernel$",)
    dropout: float = ranged(0.0, least=0, below=1)
    also_train: Any = ()
    save_base: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("targets", "also_train"):
            value = regexes(f"lora.{name}", getattr(self, name))
            object.__setattr__(self, name, value)
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        if self.rank is None and changed:
            raise MmflaxError(
                f"The config gives lora.{changed[0]} and no lora.rank, so nothing would be "
                "adapted; give --config.lora.rank=8 too."
            )
        if self.rank is not None and not self.targets:
            raise MmflaxError("lora.targets is empty, so nothing would be adapted; name kernels.")

    @property
    def scale(self) -> float:
        """What the adapters' product is multiplied by."""
        assert self.rank is not None
        alpha = float(self.rank if self.alpha is None else self.alpha)
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def regexes(where: str, patterns: Any) -> tuple[str, ...]:
    """The patterns as a tuple, if each is a regular expression."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(patterns, Sequence):
        raise MmflaxError(f"{where} is {patterns!r}; expected regular expressions.")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise MmflaxError(f"{where} has {pattern!r}, which is no regex: {error}.") from None
    return tuple(patterns)


def _rule(rule: Any) -> tuple[str, tuple[Any, ...]]:
    """A rule of ``mesh.rules`` with tuples, which JSON gives back as lists."""
    if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
        raise MmflaxError(
            f"mesh.rules has {rule!r}; expected (path regex, axes), such as (r'/gamma$', ())."
        )
    (pattern,) = regexes("mesh.rules", rule[:1])
    if isinstance(rule[1], str) or not isinstance(rule[1], Sequence):
        raise MmflaxError(f"mesh.rules gives {pattern!r} the axes {rule[1]!r}; expected a tuple.")
    axes = tuple(tuple(axis) if isinstance(axis, list) else axis for axis in rule[1])
    for axis in axes:
        for name in axis if isinstance(axis, tuple) else (axis,):
            if name is not None and name not in AXES:
                raise MmflaxError(
                    f"mesh.rules gives {pattern!r} the axis {name!r}; expected None or one of "
                    f"{', '.join(AXES)}."
                )
    return pattern, axes
