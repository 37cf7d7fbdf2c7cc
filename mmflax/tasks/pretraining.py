"""Pretraining: any weighted mixture of objectives on one backbone.

Each objective is a file of `tasks/objectives/`; `objectives` of a config names them with a weight,
or with a weight and fields:

    task=dict(name="pretraining", objectives=dict(itc=1.0, itm=1.0, mlm=dict(weight=1.0,
              whole_word=True)))

The batch is read once with nothing hidden; objectives share that pass and run again only what they
change. ALBEF (Li et al. 2021) is itc + itm + mlm; LXMERT (Tan & Bansal 2019) mlm + masked_region +
itm; SimVLM (Wang et al. 2022) prefix_lm.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.tasks.inputs import encode
from mmflax.tasks.objectives.objective import CleanPass, Objective
from mmflax.tasks.task import Batch, Outputs, Task

PACKAGE = "mmflax.tasks.objectives"


class PretrainingModel(nn.Module):
    """Gives each objective's outputs under its name, and all their `losses` and `metrics`.

    Losses are computed here, once: the ring of a contrastive loss is not work to do twice.
    """

    backbone: nn.Module
    objectives: Mapping[str, nn.Module]
    judge: Callable[[dict[str, Outputs], Batch], Outputs]

    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        encoded = encode(self.backbone, batch, train=train)
        outputs: dict[str, Outputs] = {}
        for name, module in self.objectives.items():
            outputs[name] = module(CleanPass(self.backbone, batch, encoded, outputs), train=train)
        return {**outputs, **self.judge(outputs, batch)}


def build(
    *,
    backbone: nn.Module,
    objectives: Mapping[str, Any],
    vocab_size: int,
    pad_id: int,
    cls_id: int | None,
    sep_id: int | None,
    mask_id: int | None,
    unk_id: int | None = None,
    continuation: Sequence[bool] = (),
) -> Task:
    """The task whose loss is the weighted sum of its objectives'.

    Args:
      objectives: name -> weight, or name -> {"weight": 1.0, **fields of the file's `build`}; None
        leaves one out. A
        field `name` says which file when the key is another name (two of a kind), or is the dotted
        path of a module of yours.

    Metrics: `loss/<name>` of each, before weighting, and the objectives' own.

    Raises:
      MmflaxError: an unknown objective or field (naming the nearest), a negative weight; and, when
        the model is first run (before training), an objective that batch or model cannot feed.
    """
    objectives = {key: fields for key, fields in objectives.items() if fields is not None}
    if not objectives:
        raise MmflaxError(
            f"task.objectives is empty; name one or more of {', '.join(names())} with a weight, as "
            "in --config.task.objectives.mlm=1.0."
        )
    given = dict(
        backbone=backbone,
        vocab_size=vocab_size,
        pad_id=pad_id,
        cls_id=cls_id,
        sep_id=sep_id,
        mask_id=mask_id,
        unk_id=unk_id,
        continuation=tuple(continuation),
    )
    weights: dict[str, float] = {}
    parts: dict[str, Objective] = {}
    # itc first: itm takes its negatives from itc's vectors.
    for key in sorted(objectives, key=lambda key: key != "itc"):
        weights[key], parts[key] = _objective(key, objectives[key], given)

    def judge(outputs: dict[str, Outputs], batch: Batch) -> Outputs:
        losses = {key: part.loss(outputs[key], batch) for key, part in parts.items()}
        metrics = {f"loss/{key}": (loss, jnp.ones_like(loss)) for key, loss in losses.items()}
        for key, part in parts.items():
            own = part.metrics(outputs[key], batch)
            metrics |= {name if name not in metrics else f"{name}/{key}": own[name] for name in own}
        return {"losses": losses, "metrics": metrics}

    def loss(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        parts = [weights[key] * value for key, value in outputs["losses"].items()]
        return functools.reduce(jnp.add, parts)

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Any]:
        return outputs["metrics"]

    modules = {key: part.module for key, part in parts.items()}
    return Task(PretrainingModel(backbone, modules, judge), loss, metrics)


def names() -> list[str]:
    """The objectives there are."""
    return registry.names(PACKAGE)


def _objective(key: str, fields: Any, given: Mapping[str, Any]) -> tuple[float, Objective]:
    where = f"task.objectives.{key}"
    fields = dict(fields) if isinstance(fields, Mapping) else {"weight": fields}
    weight = fields.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise MmflaxError(f"{where} has the weight {weight!r}; expected a number, 0 or above.")
    return float(weight), registry.build(PACKAGE, where, {"name": key, **fields}, **given)
