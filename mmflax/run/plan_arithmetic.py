"""A step's bytes and seconds by arithmetic, before anything is compiled: to choose what to try."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from mmflax import paths
from mmflax.config import schema
from mmflax.config.sections import PARTS
from mmflax.distributed import mesh as meshes
from mmflax.distributed import plan as plans
from mmflax.distributed.chips import Chip
from mmflax.distributed.flops import count_flops
from mmflax.distributed.presets import ROWS, slice_count
from mmflax.errors import option
from mmflax.run.assemble import apply_fn, assemble
from mmflax.run.build import Experiment, example_batch
from mmflax.run.decide import Opened

REMAT = ("none", "block", "dots", "full")
ACCUMULATE = (1, 2, 4, 8)
FIT = 0.92  # share of the memory that the arithmetic may fill; it leaves out the workspace


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a step.

    Attributes:
      mesh: axis -> size.
      remat: policy of every stack of layers.
      scan: whether layers are scanned.
      accumulate: micro-batches.
      bytes: of a chip by arithmetic: state, gradients and what the backward pass needs.
      seconds: of a step by arithmetic.
    """

    mesh: Mapping[str, int]
    remat: str
    scan: bool
    accumulate: int
    bytes: int
    seconds: float

    def overrides(self, config: Mapping[str, Any]) -> list[str]:
        """Words of the command line that choose it."""
        preset = schema.at(config, "mesh").get("preset")
        words = [] if preset is None else [option("mesh.preset", None)]
        words += [option(f"mesh.{axis}", size) for axis, size in self.mesh.items()]
        words.append(option("train.accumulate", self.accumulate))
        for key, value in stack_values(config, self.remat, self.scan).items():
            words.append(option(key, value))
        return [word for word in words if not _has(config, word)]


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """What arithmetic needs to know of the model: bytes and FLOPs that no mesh changes.

    Attributes:
      parameters: trained and frozen ones, in numbers.
      width: least rows of a matrix that fsdp splits.
      heads: that the tensor axis splits, the greatest common divisor of all.
      state: bytes of parameters, moments and averages.
      gradients: bytes of the trained parameters.
      itemsize: bytes of a number in the type that computes.
      kept: policy -> bytes that one row keeps for the backward pass.
      flops: policy -> of one row, forward and backward.
      batch: bytes of one row of a batch.
    """

    parameters: int
    width: int
    heads: int
    state: int
    gradients: int
    itemsize: int
    kept: Mapping[str, int]
    flops: Mapping[str, int]
    batch: int

    @classmethod
    def of(cls, found: Opened, mesh: jax.sharding.Mesh) -> ModelSize:
        experiment, processor = found.experiment, found.processor
        kept, flops = {}, {}
        for policy in REMAT:
            values = stack_values(experiment.config, policy, True)
            one = Experiment(changed(experiment.config, values))
            built = assemble(one, processor, mesh)
            apply = apply_fn(built.task, built.adapters)

            def loss(
                params: Any, frozen: Any, rows: int, built: Any = built, apply: Any = apply
            ) -> Any:
                whole = params if frozen is None else paths.union(params, frozen)
                outputs = apply(whole, example_batch(processor, rows), jax.random.key(0), True)
                return built.task.loss(outputs, example_batch(processor, rows)).sum()

            trained, frozen = built.abstract.params, built.abstract.frozen
            with meshes.activation_rules(mesh):
                kept[policy] = plans.kept_bytes(loss, trained, frozen, 1)
                flops[policy] = count_flops(
                    jax.grad(lambda params, frozen, loss=loss: loss(params, frozen, 1)),
                    trained,
                    frozen,
                )
        state = built.abstract
        leaves = paths.leaves(state.params)
        if state.frozen is not None:
            leaves = paths.leaves(paths.union(state.params, state.frozen))
        specs = paths.leaves(meshes.param_specs(paths.nested(leaves), experiment.rules, mesh))
        split = [
            (leaf.shape[axis], "fsdp" if name == "fsdp" else "tensor")
            for path, leaf in leaves.items()
            for axis, name in enumerate(specs[path].spec)
            if name in ("fsdp", "tensor")
        ]
        heads = [
            value.get("num_heads") for value in experiment.config["model"].values()
            if isinstance(value, Mapping)
        ]  # fmt: skip
        dtype = experiment.config["model"]["fusion"].get("dtype")
        return cls(
            parameters=sum(leaf.size for leaf in leaves.values()),
            width=math.gcd(*(size for size, axis in split if axis == "fsdp")),
            heads=math.gcd(
                *(int(count) for count in heads if count),
                *(size for size, axis in split if axis == "tensor"),
            ),
            state=sum(
                _bytes(tree) for tree in (state.params, state.frozen, state.opt_state, state.ema)
            ),
            gradients=_bytes(state.params),
            itemsize=4 if dtype is None else jax.numpy.dtype(dtype).itemsize,
            kept=kept,
            flops=flops,
            batch=_bytes(jax.eval_shape(lambda: example_batch(processor, 1))),
        )


def candidates(
    experiment: Experiment, devices: Sequence[Any], model: ModelSize, chip: Chip
) -> Iterator[Candidate | None]:
    """Every way; None for one that leaves too few rows of a matrix on a chip."""
    size, chips, slices = experiment.data.batch_size, len(devices), slice_count(devices)
    evaluated = experiment.evaluation.batch_size
    for fsdp in _divisors(chips):
        for tensor in _divisors(math.gcd(chips // fsdp, model.heads)):
            data = chips // fsdp // tensor
            shards = data * fsdp
            if model.width % fsdp or size % shards or evaluated % shards or data % slices:
                continue
            rows = size // (data * fsdp)
            for accumulate in ACCUMULATE:
                if rows % accumulate:
                    continue
                for remat in REMAT:
                    if fsdp > 1 and model.width // fsdp < ROWS:
                        yield None
                        continue
                    mesh = dict(data=data, fsdp=fsdp, tensor=tensor)
                    yield Candidate(
                        mesh=mesh,
                        remat=remat,
                        scan=True,
                        accumulate=accumulate,
                        bytes=_memory(model, mesh, remat, accumulate, rows),
                        seconds=_seconds(model, mesh, remat, accumulate, rows, chip),
                    )


def _memory(
    model: ModelSize, mesh: Mapping[str, int], remat: str, accumulate: int, rows: int
) -> int:
    parts = mesh["fsdp"] * mesh["tensor"]
    gradients = model.gradients // parts * (2 if accumulate > 1 else 1)
    kept = model.kept[remat] * (rows // accumulate) // mesh["tensor"]
    return model.state // parts + gradients + kept + model.batch * rows


def _seconds(
    model: ModelSize, mesh: Mapping[str, int], remat: str, accumulate: int, rows: int, chip: Chip
) -> float:
    """Of a step: products; gathers of the layers, which hide behind them; and what does not hide:
    the sums of gradients over the data axis, and of activations over the tensor axis."""
    data, fsdp, tensor = mesh["data"], mesh["fsdp"], mesh["tensor"]
    compute = model.flops[remat] * rows / tensor / chip.flops
    held = model.parameters / tensor
    passes = 2 if remat == "none" else 3
    gathered = accumulate * passes * held * model.itemsize * (fsdp - 1) / fsdp
    scattered = accumulate * 4 * held * (fsdp - 1) / fsdp
    summed = accumulate * 2 * 4 * held / fsdp * (data - 1) / data
    # Each layer's two sums in each direction; a layer keeps about 17 times what one sum sends
    # (Korthikanti et al. 2022, table 2).
    activations = 4 / 17 * model.kept["none"] * rows * 2 * (tensor - 1) / tensor
    hidden, exposed = gathered + scattered, summed + activations
    return max(compute, hidden / chip.ring) + exposed / chip.ring


def most_promising(fitting: Sequence[Candidate]) -> list[Candidate]:
    """The fastest by arithmetic first; of equals the simplest: fewer parts, less computed again."""
    return sorted(
        fitting,
        key=lambda one: (
            round(one.seconds, 5),
            one.accumulate,
            REMAT.index(one.remat),
            one.mesh["tensor"],
            one.mesh["fsdp"],
        ),
    )


def stack_values(config: Mapping[str, Any], remat: str, scan: bool) -> dict[str, Any]:
    """Keys of every stack of layers that knows them."""
    found: dict[str, Any] = {}
    for part in PARTS:
        known = schema.keywords(f"model.{part}", config) or {}
        for key, value in (("remat", remat), ("scan_layers", scan)):
            if key in known:
                found[f"model.{part}.{key}"] = value
    return found


def changed(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = copy.deepcopy(dict(config))
    for path, value in values.items():
        *sections, key = path.split(".")
        here = new
        for section in sections:
            here = here.setdefault(section, {})
        here[key] = value
    return new


def _has(config: Mapping[str, Any], word: str) -> bool:
    """Whether the config says so anyway."""
    path, _, text = word.removeprefix("--config.").partition("=")
    section, _, key = path.rpartition(".")
    return str(schema.at(config, section).get(key)) == text


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
