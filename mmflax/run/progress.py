"""How an evaluation during training is shown: its metric beside what needs no picture.

A score says little without what needs no picture: the question prior, the most frequent answer,
chance, and the same model without the image (Goyal et al. 2017, "Making the V in VQA matter").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mmflax.data.processor import Processor
from mmflax.evaluation.tables import percent, scale

# The metric that is shown where checkpoints are ranked by none, or by a loss; the first there is.
_SHOWN = ("accuracy", "token_accuracy", "in_batch_recall/t2i", "mlm_accuracy", "itm_accuracy")
# Baselines that need no model, by the prefix of their metrics.
_BASELINES = {
    "question_prior": "question prior",
    "majority": "most frequent answer",
    "chance": "chance",
}


@dataclasses.dataclass(frozen=True)
class Standing:
    """A metric of an evaluation, in 0..1, and what is reached without learning from the pictures.

    Attributes:
      name: such as ``validation accuracy``.
      metric: such as ``accuracy``.
      baseline: name and value of the best one that needs no model, if any.
      blind: name and value of the model's own view without the image, if it was evaluated.
      majority: share of the most frequent answer, where answers are picked.
    """

    name: str
    metric: str
    value: float
    baseline: tuple[str, float] | None
    blind: tuple[str, float] | None
    majority: float | None = None

    def line(self) -> str:
        """``validation accuracy 71.3 %  (question prior 67.2 %, text only 64.2 %)``."""
        beside = [f"{name} {percent(v)}" for name, v in filter(None, (self.baseline, self.blind))]
        text = f"{self.name} {percent(self.value)}"
        return f"{text}  ({', '.join(beside)})" if beside else text


def standing(
    values: Mapping[str, float], split: str, best_metric: str | None, processor: Processor
) -> Standing | None:
    """What an evaluation's ``{"split/metric": value}`` come to; None without a metric to show."""
    own = {name.removeprefix(f"{split}/"): value for name, value in values.items()}
    ranked = (best_metric or "").removeprefix(f"{split}/")
    shown = [name for name in (ranked, *_SHOWN) if name in own and scale(name) == 100]
    if not shown:
        return None
    metric = shown[0]
    baselines = {
        title: own[f"{key}/{metric}"]
        for key, title in _BASELINES.items()
        if f"{key}/{metric}" in own
    }
    blind = None
    if processor.reads_image and f"text_only/{metric}" in own:
        written = "exact" in own
        if processor.reads_text or written:
            blind = "text only" if processor.reads_text else "no image", own[f"text_only/{metric}"]
    words = metric.replace("in_batch", "in-batch").replace("_", " ").replace("/", " ")
    return Standing(
        f"{split} {words}",
        metric,
        own[metric],
        max(baselines.items(), key=lambda pair: pair[1]) if baselines else None,
        blind,
        own.get("majority/accuracy"),
    )
