"""Configs that differ in the kind of fusion, and in nothing else that could explain a difference.

A kind that comes with more parameters may win by them alone. So each gets the MLP width (and, where
that is not enough, the depth) at which the whole model has as many as the config's own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mmflax import registry
from mmflax.config import kinds
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment, example_batch

PACKAGE, WHERE = "mmflax.models.fusion", "model.fusion"
TOLERANCE = 0.02  # of the reference's number of parameters
STEP = 8  # widths are multiples of it
WIDEST = 8  # times the fusion's width


@dataclasses.dataclass(frozen=True)
class Variant:
    """A kind of fusion in place of the config's own.

    Attributes:
      kind: its name.
      config: the whole config.
      parameters: of the whole model.
      dropped: fields of the config's own fusion that this kind does not have.
    """

    kind: str
    config: dict[str, Any]
    parameters: int
    dropped: tuple[str, ...]

    @property
    def fusion(self) -> dict[str, Any]:
        return self.config["model"]["fusion"]


def variants(
    config: Mapping[str, Any], kinds: Sequence[str], processor: Processor, *, match: bool = True
) -> list[Variant]:
    """One config a kind, in order; with ``match`` within 2 % of the config's own parameters.

    Raises:
      MmflaxError: a kind that does not exist, that the config does not fit, or whose size neither
        ``mlp_dim`` nor ``depth`` brings near enough.
    """
    # All names before any model: a typo in the last costs nothing.
    switched = [switch(config, kind) for kind in kinds]
    count = functools.partial(count_parameters, processor=processor)
    reference = count(config)
    matched = []
    for kind, (own, dropped) in zip(kinds, switched, strict=True):
        if match and kind != config["model"]["fusion"].get("name"):
            own = fit(own, reference, count)
        matched.append(Variant(kind, own, count(own), dropped))
    return matched


def switch(config: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config with another kind of fusion, and the names of the fields that kind lacks."""
    registry.check_name(PACKAGE, WHERE, kind)
    return kinds.switch(config, WHERE, kind)


def count_parameters(config: Mapping[str, Any], processor: Processor) -> int:
    """Of the whole model, without making any of them."""
    task = Experiment(config).task(processor)
    batch = example_batch(processor, 1)
    params = jax.eval_shape(
        lambda key: task.model.init(key, batch, train=False)["params"], jax.random.key(0)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def fit(
    config: Mapping[str, Any], target: int, count: Callable[[Mapping[str, Any]], int]
) -> dict[str, Any]:
    """The config whose ``mlp_dim`` (and, only if need be, ``depth``) comes nearest to ``target``.

    The depth stays if any width at it is within the tolerance, else it changes by as few layers as
    possible.
    """
    fusion = config["model"]["fusion"]
    known = registry.keywords_of(PACKAGE, WHERE, fusion["name"])
    depth = fusion.get("depth")
    depths: list[Any] = [depth]
    if "depth" in known and isinstance(depth, int):
        depths = sorted(range(1, 4 * max(depth, 1) + 1), key=lambda d: (abs(d - depth), d))
    nearest: tuple[int, dict[str, Any]] | None = None
    for value in depths:
        base = config if value is None else _with(config, depth=value)
        for candidate in _fit_width(base, target, count) if "mlp_dim" in known else [base]:
            off = abs(count(candidate) - target)
            if nearest is None or off < nearest[0]:
                nearest = off, dict(candidate)
        if nearest is not None and nearest[0] <= TOLERANCE * target:
            return nearest[1]
    assert nearest is not None
    raise MmflaxError(
        f"The fusion {fusion['name']!r} cannot be given {target:,} parameters (within "
        f"{TOLERANCE:.0%}): the nearest is {count(nearest[1]):,}, with "
        f"{_sizes(nearest[1]['model']['fusion'])}; leave it out, change model.fusion, or compare "
        "without matching (--no-match)."
    )


def _fit_width(
    config: Mapping[str, Any], target: int, count: Callable[[Mapping[str, Any]], int]
) -> list[dict[str, Any]]:
    """The two widths, multiples of ``STEP``, between which the target lies (or the nearest end)."""
    low, high = 1, max(2, WIDEST * int(config["model"]["fusion"]["width"]) // STEP)

    def at(steps: int) -> dict[str, Any]:
        return _with(config, mlp_dim=STEP * steps)

    if count(at(low)) >= target:
        return [at(low)]
    if count(at(high)) <= target:
        return [at(high)]
    while high - low > 1:
        middle = (low + high) // 2
        if count(at(middle)) <= target:
            low = middle
        else:
            high = middle
    return [at(low), at(high)]


def _with(config: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    model = dict(config["model"])
    return {**config, "model": {**model, "fusion": {**model["fusion"], **fields}}}


def _sizes(fusion: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={fusion[key]}" for key in ("mlp_dim", "depth") if key in fusion)
