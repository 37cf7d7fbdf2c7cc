"""The rules by which the data decide what a config leaves ``auto``.

Every number is at the top; those of devices are in `mmflax.run.machine`. A rule sees what the
config gives and what other rules decide (``at``), the `Facts` of the data and the `Machine`, and
returns the value and the reason. Nothing is timed, so the same data on the same kind of machine
give the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmflax.config import auto, schema
from mmflax.config.sections import PARTS, RecipeConfig, TrainConfig
from mmflax.data.facts import Facts
from mmflax.run.machine import Machine

# From this number of training examples on -> the value.
WIDTH = ((0, 128), (200_000, 256))
DROPOUT = ((0, 0.0),)
LABEL_SMOOTHING = ((0, 0.0),)
DEPTH = {"model.image_encoder": 2, "model.text_encoder": 1, "model.fusion": 2, "task.decoder": 2}
HEAD = 32  # numbers of a head
MLP = 2  # its hidden layer's numbers for each of the width
LEAST_SIDE, MOST_SIDE = 32, 224  # pixels
SMALL_SIDE, SMALL_PATCH, PATCH = 96, 8, 16  # patches of 8 pixels up to a side of 96
MOST_BATCH, LEAST_BATCH, BATCHES_AN_EPOCH = 128, 16, 20
SEEN, LEAST_EPOCHS = 500_000, 5  # examples to see in training, and epochs at least
LEAST_STEPS = 100
WARMUP = 0.05  # of the steps
PEAK, WEIGHT_DECAY = 1e-3, 0.05
# Of a run. A late learner may leave the prior after half of it, and the end of the schedule gains.
EVALUATIONS, LOGS, PATIENCE = 8, 40, 6
MOST_EVALUATED = 1024  # examples of an evaluation during training
AUGMENT: dict[str, Any] = {
    "crop_scale": None, "flip": "off", "randaugment_ops": 0, "brightness": 0.0, "contrast": 0.0,
    "saturation": 0.0, "hue": 0.0, "erase_rate": 0.0, "mask_rate": 0.0,
}  # fmt: skip
# Where captions are all the words, a mirror image has the same caption unless it names a side.
AUGMENT_OF_TASK: dict[str, dict[str, Any]] = {
    "captioning": {"flip": "safe"},
    # Pictures and texts are told apart by all that they show: without moving the pictures a few
    # thousand are learned by heart, and what is cut to half its area is no longer learned as whole.
    "retrieval": {
        "flip": "safe", "crop_scale": (0.7, 1.0), "brightness": 0.3, "contrast": 0.3,
        "saturation": 0.3,
    },
}  # fmt: skip
# Fewer pairs than this are retrieved by convolutions and the mean of word vectors, without layers
# of a transformer: the stem alone, of five convolutions, and vectors of this width.
LEAST_PAIRS = 50_000
FEW_PATCH, FEW_WIDTH, FEW_EMBED = 32, 512, 256


class Decision(NamedTuple):
    """A value and why it is so."""

    value: Any
    why: str


def decide(
    facts: Facts,
    config: Mapping[str, Any],
    machine: Machine,
    work: Callable[[Mapping[str, Any]], float] | None = None,
) -> dict[str, Decision]:
    """What the data decide of a config: key -> value and reason, for every key that is ``auto``.

    Args:
      facts: of the data.
      config: with the values ``auto``.
      machine: what trains.
      work: FLOPs of training on one example, from a config without ``auto``; left out, only the
        epochs limit the steps.
    """
    return _Deciding(facts, config, machine, work).all()


def values_of(decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """Without the reasons."""
    return {key: decision.value for key, decision in decisions.items()}


def provisional(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with values in place of ``auto`` as for data of usual size, to be checked."""
    if not auto.undecided(config):
        return dict(config)
    return auto.filled(config, values_of(decide(Facts(), config, Machine())))


def resolved(config: Mapping[str, Any], decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """The config with what was decided, and a record of it under ``recipe.decided``."""
    values = values_of(decisions)
    recipe = dict(config.get("recipe") or {})
    recipe["decided"] = {**(recipe.get("decided") or {}), **values}
    return {**auto.filled(config, values), "recipe": recipe}


def lines(decisions: Mapping[str, Decision]) -> list[str]:
    """A line for each value with its reason; keys of one name and reason share a line."""
    shared: dict[tuple[str, str, str], list[str]] = {}
    for key, (value, why) in decisions.items():
        shared.setdefault((key.rpartition(".")[2], repr(value), why), []).append(key)
    return [f"{', '.join(keys)} = {value}: {why}" for (_, value, why), keys in shared.items()]


class _Deciding:
    """Each key once, after those that its rule asks for."""

    def __init__(self, facts: Facts, config: Mapping[str, Any], machine: Machine, work: Any):
        self.facts, self.config, self.machine, self.work = facts, config, machine, work
        self.recipe = RecipeConfig.read(config.get("recipe") or {})
        self.undecided = auto.undecided(config)
        self.done: dict[str, Decision] = {}

    def all(self) -> dict[str, Decision]:
        for key in self.undecided:
            self.at(key)
        return {key: self.done[key] for key in self.undecided}

    def given(self, key: str) -> Any:
        """What the config says; None where it says nothing or ``auto``."""
        section, _, name = key.rpartition(".")
        value = schema.at(self.config, section).get(name)
        return None if value == auto.AUTO else value

    def number(self, key: str) -> Any:
        """What the config says, if that is a number above 0 (a mistake is named elsewhere)."""
        value = self.given(key)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        return value if good else None

    def at(self, key: str) -> Any:
        """The value of a key: the config's, or the rule's."""
        if key not in self.undecided:
            return self.given(key)
        if key not in self.done:
            section, _, name = key.rpartition(".")
            own = f"_{section.replace('.', '_')}_{name}"
            if section == "augment":
                self.done[key] = self._augmented(name)
            elif hasattr(self, own):
                self.done[key] = getattr(self, own)()
            else:
                self.done[key] = getattr(self, f"_{name}")(section)
        return self.done[key].value

    # Sizes.

    def _processor_image_size(self) -> Decision:
        side, patch = max(self.facts.typical), self.number("model.image_encoder.patch_size")
        if not side:
            return Decision(LEAST_SIDE, "there are no pictures")
        if patch is None:
            has = "patch_size" in schema.at(self.config, "model.image_encoder")
            patch = self._wanted_patch(side) if has else LEAST_SIDE
        patch = max(1, int(patch))
        least, most = -(-LEAST_SIDE // patch) * patch, max(patch, MOST_SIDE // patch * patch)
        size = min(max(round(side / patch) * patch, least), most)
        width, height = self.facts.typical
        what = "have" if len(set(self.facts.sizes)) == 1 else "typically have"
        return Decision(size, f"the pictures {what} {width}x{height} pixels")

    def _patch_size(self, section: str) -> Decision:
        size = self.at("processor.image_size")
        if not isinstance(size, int) or size < 1:
            return Decision(PATCH, "the size of the images is the checkpoint's")
        wanted = self._wanted_patch(size)
        patch = min((p for p in range(1, size + 1) if size % p == 0), key=lambda p: abs(p - wanted))
        return Decision(patch, f"for images of {size} pixels, which it divides")

    def _wanted_patch(self, side: int) -> int:
        if self._few_pairs and "stem" in schema.at(self.config, "model.image_encoder"):
            return FEW_PATCH
        return SMALL_PATCH if side <= SMALL_SIDE else PATCH

    def _stem(self, section: str) -> Decision:
        return Decision("conv", "convolutions before the patches learn from fewer examples")

    def _width(self, section: str) -> Decision:
        few = {"model.image_encoder": FEW_WIDTH, "model.text_encoder": FEW_EMBED}
        if self._few_pairs and section in few:
            return Decision(few[section], self._why_few)
        if section == "task.decoder":
            return self._width_of("model.text_encoder")
        for other in ("model.fusion", *(f"model.{part}" for part in PARTS)):
            if self.number(f"{other}.width") is not None:
                return self._width_of(other)
        return self._by_examples(WIDTH)

    def _width_of(self, section: str) -> Decision:
        return Decision(self.at(f"{section}.width"), f"as {section}.width")

    def _task_embed_dim(self) -> Decision:
        if self._few_pairs:
            return Decision(FEW_EMBED, self._why_few)
        return self._width_of("model.fusion")

    def _task_bag_of_words(self) -> Decision:
        width = self.at("model.fusion.width")
        if not isinstance(width, int) or width < 1:  # which is named where it stands
            return Decision(0, "the width is not known")
        return self._width_of("model.fusion")

    def _depth(self, section: str) -> Decision:
        if self._few_pairs and section in ("model.image_encoder", "model.text_encoder"):
            return Decision(0, self._why_few)
        return Decision(DEPTH[section], "small models learn from the data of one folder")

    def _num_heads(self, section: str) -> Decision:
        width = self.at(f"{section}.width")
        if not isinstance(width, int) or width < 1:
            return Decision(1, "the width is not known")
        heads = [count for count in range(1, width + 1) if width % count == 0]
        best = min(heads, key=lambda count: (abs(width / count - HEAD), count))
        return Decision(best, f"of {width // best} numbers each")

    def _mlp_dim(self, section: str) -> Decision:
        width = self.at(f"{section}.width")
        return Decision(MLP * (width if isinstance(width, int) else 0), f"{MLP} times the width")

    def _dropout_rate(self, section: str) -> Decision:
        return self._by_examples(DROPOUT)

    def _label_smoothing(self, section: str) -> Decision:
        return self._by_examples(LABEL_SMOOTHING)

    def _by_examples(self, table: Sequence[tuple[int, Any]]) -> Decision:
        """The table's value for the number of examples."""
        row = max(row for row in table if row[0] <= self.facts.examples)
        above = [limit for limit, _ in table if limit > self.facts.examples]
        more = f", fewer than {min(above):,}" if above else ""
        return Decision(row[1], f"for {self.facts.examples:,} training examples{more}")

    # Batches.

    def _data_batch_size(self) -> Decision:
        size = MOST_BATCH
        while size > LEAST_BATCH and self.facts.examples < BATCHES_AN_EPOCH * size:
            size //= 2
        parts = self.machine.shards * int(self.number("train.accumulate") or 1)
        whole = -(-size // parts) * parts
        why = f"for {self.facts.examples:,} training examples"
        return Decision(whole, f"{why}, a multiple of {parts} parts" if whole != size else why)

    def _evaluation_batch_size(self) -> Decision:
        return Decision(2 * self._batch, "twice the training's, since nothing is differentiated")

    def _evaluation_max_examples(self) -> Decision:
        if self.facts.evaluated <= MOST_EVALUATED:
            return Decision(None, "the split is small enough to be evaluated whole")
        return Decision(MOST_EVALUATED, f"of {self.facts.evaluated:,}, to save time")

    @property
    def _batch(self) -> int:
        """Decided or given; 1 in place of a mistake, which is named elsewhere."""
        own = "data.batch_size"
        return self.at(own) if own in self.undecided else max(1, int(self.number(own) or 1))

    # Length.

    def _train_steps(self) -> Decision:
        examples, batch = max(1, self.facts.examples), self._batch
        epochs = min(self.recipe.max_epochs, max(LEAST_EPOCHS, SEEN / examples))
        wanted = max(LEAST_STEPS, math.ceil(epochs * examples / batch))
        if self.work is None:
            return Decision(wanted, f"{epochs:.3g} epochs of {examples:,} examples")
        rest = self.undecided[self.undecided.index("train.steps") :]
        sizes = {key: self.at(key) for key in self.undecided if key not in rest}
        config = provisional(auto.filled(self.config, sizes))
        seconds = self.machine.seconds(batch, self.work(config), math.prod(self.facts.typical))
        fits = max(LEAST_STEPS, int(60 * self.recipe.minutes / seconds))
        where = f"{self.recipe.minutes:g} minutes on {self.machine.name}"
        if wanted <= fits:
            return Decision(
                wanted, f"{epochs:.3g} epochs of {examples:,} examples, within {where} by estimate"
            )
        passes = fits * batch / examples
        return Decision(
            fits,
            f"{passes:.3g} epochs of {examples:,} examples, what is estimated to fit in {where}; "
            "more with --config.recipe.minutes",
        )

    @property
    def _steps(self) -> int:
        """Of the run, decided or given."""
        steps = self.number("train.steps")
        epochs = self.number("train.epochs")
        if steps is None and epochs is not None:
            train = TrainConfig(epochs=float(epochs))
            return max(1, train.total_steps(self.facts.examples, self._batch))
        if steps is None and "train.steps" in self.undecided:
            steps = self.at("train.steps")
        return int(steps or LEAST_STEPS)

    def _train_log_every(self) -> Decision:
        return Decision(max(1, self._steps // LOGS), f"{LOGS} times in {self._steps:,} steps")

    def _train_eval_every(self) -> Decision:
        return Decision(
            -(-self._steps // EVALUATIONS), f"{EVALUATIONS} times in {self._steps:,} steps"
        )

    def _train_checkpoint_every(self) -> Decision:
        every = self.at("train.eval_every") or self._train_eval_every().value
        return Decision(every, "as often as it is evaluated")

    def _train_patience(self) -> Decision:
        if self.given("checkpoint.best_metric") is None:
            return Decision(None, "there is no checkpoint.best_metric to wait for")
        if not isinstance(self.at("train.eval_every"), int):
            return Decision(None, "there is one evaluation, at the end")
        return Decision(PATIENCE, "evaluations without a better one end the run")

    # Optimizer.

    def _optim_schedule_peak(self) -> Decision:
        return Decision(PEAK, "for small models from scratch")

    def _optim_schedule_warmup_steps(self) -> Decision:
        steps = int(WARMUP * self._steps)
        return Decision(steps, f"{WARMUP:.0%} of {self._steps:,} steps")

    def _optim_weight_decay(self) -> Decision:
        return Decision(WEIGHT_DECAY, "for small models from scratch")

    # Retrieval of few pairs.

    @property
    def _few_pairs(self) -> bool:
        return self._task == "retrieval" and self.facts.examples < LEAST_PAIRS

    _why_few = f"convolutions and the mean of word vectors, for fewer than {LEAST_PAIRS:,} pairs"

    # Augmentation.

    @property
    def _task(self) -> str:
        """The data's."""
        given = schema.at(self.config, "data").get("task")
        return self.facts.task or (given if isinstance(given, str) else "")

    def _augmented(self, name: str) -> Decision:
        value = {**AUGMENT, **AUGMENT_OF_TASK.get(self._task, {})}[name]
        return Decision(value, "keeps the words of this task true")
