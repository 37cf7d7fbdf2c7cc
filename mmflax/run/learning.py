"""A sentence where a run has not learned anything beyond its baselines.

It is an observation: the run goes on, and some tasks leave their prior late.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mmflax import registry
from mmflax.errors import option
from mmflax.evaluation.tables import percent
from mmflax.run.build import Experiment
from mmflax.run.progress import Standing
from mmflax.training.observe import Observer

_EVEN = 0.9  # share of the most frequent answer from which accuracy says little
_FALLS = 0.97  # a loss above this share of the first one does not fall
_BY_HEART = 0.1  # training metric above validation's
_LONG_ENOUGH = 50  # steps of a run that gets an evaluation for this
_WRITTEN = ("token_accuracy", "exact")  # judged by the view without the image
_THAN = {
    "question prior": "the question prior",
    "most frequent answer": "the most frequent answer",
    "text only": "with the text only",
    "no image": "without the image",
}


def noise(share: float, examples: int) -> float:
    """Two standard errors of a share of so many examples; one that is 0 or 1 has some, too."""
    p = (share * examples + 1) / (examples + 2)
    return 2 * math.sqrt(p * (1 - p) / max(examples, 1))


@dataclasses.dataclass
class Training:
    """What the steps so far recorded: their first and last loss, and the last metrics."""

    first_loss: float | None = None
    last_loss: float | None = None  # None until there are two records
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """A record of the training steps; one of an evaluation has no rate and is left out."""
        if "steps_per_second" in values and "loss" in values:
            if self.first_loss is None:
                self.first_loss = values["loss"]
            else:
                self.last_loss = values["loss"]
            self.metrics = dict(values)


def not_learning(
    now: Standing, examples: int, step: int, steps: int, seen: Training, remedies: Remedies
) -> str | None:
    """One sentence where the metric is not above its baseline by more than chance; else None.

    Args:
      examples: evaluated ones. Two standard errors of as many are taken for chance.
    """
    base = now.baseline or (now.blind if now.metric in _WRITTEN else None)
    if base is None or not math.isfinite(now.value):
        return None
    margin = noise(base[1], examples)
    if now.value <= base[1] + margin:
        found = (
            f"not clearly better than {_THAN.get(base[0], base[0])} ({percent(base[1])}, give or "
            f"take {100 * margin:.1f} on {examples} examples)"
        )
    elif now.blind and now.value <= now.blind[1] + noise(now.blind[1], examples):
        base = now.blind
        found = f"not clearly better than {_THAN.get(base[0], base[0])} ({percent(base[1])})"
    else:
        return None
    after = f"after {step} of {steps} steps {now.name} is {percent(now.value)}"
    return f"{after}, {found}; {remedies.sentence(now, base[1] + margin, seen)}"


@dataclasses.dataclass(frozen=True)
class Remedies:
    """What usually helps, in terms of this run's config.

    Attributes:
      experiment: with its steps.
      image_size: in pixels.
      epochs: where the config gives these in place of steps.
      pretrained: the image encoder's sizes are a checkpoint's.
    """

    experiment: Experiment
    image_size: int
    epochs: float | None = None
    pretrained: bool = False

    def sentence(self, now: Standing, base: float, seen: Training) -> str:
        """The likeliest cause, by what training recorded, and what to change."""
        split = self.experiment.evaluation.split
        if now.majority is not None and now.majority >= _EVEN:
            return (
                f"{percent(now.majority)} of the answers are one and the same, so accuracy says "
                "little: more examples of the others help, or ranking checkpoints by the loss "
                f"(--config.checkpoint.best_metric={split}/loss --config.checkpoint.best_mode=min)"
            )
        late = "some tasks leave it late, and labels that do not depend on the picture never"
        first, last = seen.first_loss, seen.last_loss
        trained = seen.metrics.get(now.metric)
        if trained is not None and trained > max(base, now.value) + _BY_HEART:
            return (
                f"on the training examples it is {percent(trained)}, so these are learned by "
                "heart: more of them, changed ones (--config.augment.brightness=0.2) or weight "
                "decay (--config.optim.weight_decay=0.1) usually help"
            )
        if first is not None and last is not None and not last < _FALLS * first:
            return (
                f"the training loss does not fall ({first:.3f}, then {last:.3f}): "
                f"{' or '.join(self.rates())} usually helps; {late}"
            )
        helps = [*self.patches(), self.longer()]
        return f"where that lasts, {' or '.join(helps)} usually helps; {late}"

    def rates(self) -> list[str]:
        """A smaller and a larger learning rate."""
        peak = self.experiment.config["optim"]["schedule"].get("peak")
        if not isinstance(peak, (int, float)) or not peak > 0:
            return ["another learning rate"]
        return [
            f"a {word} learning rate ({option('optim.schedule.peak', f'{peak * factor:.1g}')})"
            for word, factor in (("smaller", 0.3), ("larger", 3.0))
        ]

    def patches(self) -> list[str]:
        """A finer start of the image encoder, where it is from scratch and has one."""
        encoder = self.experiment.config["model"]["image_encoder"]
        size = encoder.get("patch_size")
        if self.pretrained or not isinstance(size, int):
            return []
        where = "model.image_encoder"
        known = registry.keywords_of("mmflax.models.encoders", where, encoder["name"])
        if "stem" in known and encoder.get("stem", "patch") == "patch":
            return [f"a convolutional stem ({option('model.image_encoder.stem', 'conv')})"]
        if size < 8 or self.image_size % (size // 2) or encoder.get("stem_depths"):
            return []
        return [f"smaller patches ({option('model.image_encoder.patch_size', size // 2)})"]

    def longer(self) -> str:
        """Twice the training."""
        if self.epochs is not None:
            return f"more epochs ({option('train.epochs', f'{2 * self.epochs:g}')})"
        return f"more steps ({option('train.steps', 2 * self.experiment.steps)})"


class LearningNotice(Observer):
    """Says once after a tenth of the run, and at most once more at its half, that nothing has been
    learned from the pictures; it stops nothing.

    Args:
      say: shows a sentence.
      judge: gives the `Standing` of an evaluation.
      metrics_file: ``metrics.jsonl``, for the losses of steps before this process began.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        judge: Callable[[Mapping[str, float]], Standing | None],
        examples: int,
        remedies: Remedies,
        metrics_file: pathlib.Path | None = None,
    ):
        self._say, self._judge, self._examples = say, judge, examples
        self._remedies, self._file = remedies, metrics_file
        self._seen, self._due, self._steps = Training(), [0], 0

    def start(self, step: int, total: int) -> None:
        self._steps = total
        # What was due before the run was interrupted has been said.
        self._due = [at for at in (first_check(total), -(-total // 2)) if at > step]
        if self._file is not None and self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                values = _record(line)
                if values.get("step", math.inf) <= step:
                    self._seen.add(values)

    def record(self, step: int, values: dict[str, float]) -> None:
        self._seen.add(values)
        if "steps_per_second" in values or not self._due or step < self._due[0]:
            return
        now = self._judge(values)
        if now is None:
            return
        self._due = [at for at in self._due if at > step]
        text = not_learning(now, self._examples, step, self._steps, self._seen, self._remedies)
        if text is not None:
            self._say(f"note: {text}")


def first_check(steps: int) -> int:
    """A tenth of a run's steps, from which on an evaluation is judged."""
    return max(1, -(-steps // 10))


def early_evaluations(steps: int, eval_every: int | None) -> set[int]:
    """Steps of evaluations beside every `eval_every`th: a tenth of a run that has none by then."""
    tenth = first_check(steps)
    return {tenth} if steps >= _LONG_ENOUGH and (eval_every or steps) > tenth else set()


def _record(line: str) -> dict[str, Any]:
    """A line of ``metrics.jsonl``; the last may be cut by a kill."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
