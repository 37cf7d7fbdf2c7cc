"""Searching for a mesh, rematerialization and micro-batches: first by arithmetic, then compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mmflax.config import schema
from mmflax.distributed import plan as plans
from mmflax.distributed.chips import chip_of
from mmflax.distributed.presets import ROWS
from mmflax.errors import MmflaxError, option
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.decide import Opened
from mmflax.run.finetune.resolve import resolved
from mmflax.run.plan import RunPlan, compiled, one_chip, opened_or_planned
from mmflax.run.plan_arithmetic import (
    FIT,
    Candidate,
    ModelSize,
    candidates,
    changed,
    most_promising,
    stack_values,
)


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate that was compiled; ``plan`` is None where it does not fit."""

    candidate: Candidate
    plan: RunPlan | None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search saw.

    Attributes:
      considered: candidates in all.
      too_large, too_thin: of these, left out by arithmetic because they do not fit, or because a
        chip would keep too few rows of a matrix.
      tried: those that were compiled, the fastest first.
      words: that the best one adds to the command.
    """

    considered: int
    too_large: int
    too_thin: int
    tried: tuple[Tried, ...]
    words: tuple[str, ...]


def search(
    config: Mapping[str, Any],
    topology: str | None = None,
    say: Callable[[str], object] = lambda line: None,
    *,
    price: float | None = None,
    compile_most: int = 3,
) -> Found:
    """The fastest way to run a step at the config's batch, by the roofline of compiled programs.

    Args:
      config: of the run.
      topology: as in ``plan``.
      say: is told what is being done.
      price: of one chip for an hour.
      compile_most: candidates to compile, the most promising by arithmetic.

    Raises:
      MmflaxError: nothing fits.
    """
    devices = jax.devices() if topology is None else plans.topology_devices(topology)
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise MmflaxError(
            f"There are no published figures of {devices[0].device_kind!r} to search with; give a "
            "topology, such as --topology v5e:4x4."
        )
    experiment = Experiment(resolved(config, say=say, accelerated=True))
    mesh = one_chip(devices)
    check(experiment, mesh=mesh)
    # What is auto depends on how many devices there are.
    found = opened_or_planned(
        experiment, experiment.mesh(devices) if experiment.undecided else mesh
    )
    model = ModelSize.of(found, mesh)
    every = list(candidates(found.experiment, devices, model, chip))
    if not any(every):
        rows = found.experiment.data.batch_size, found.experiment.evaluation.batch_size
        raise MmflaxError(
            f"No mesh of {len(devices)} chips divides data.batch_size = {rows[0]} and "
            f"evaluation.batch_size = {rows[1]}; give --config.data.batch_size={len(devices)} and "
            f"--config.evaluation.batch_size={len(devices)}, or multiples."
        )
    fitting = [one for one in every if one is not None and one.bytes <= FIT * chip.memory]
    thin = sum(one is None for one in every)
    say(
        f"{len(every)} ways to run a step on {len(devices)} chips; {len(fitting)} fit by "
        f"arithmetic; compiling at most {compile_most}"
    )
    tried: list[Tried] = []
    for candidate in most_promising(fitting):
        if sum(one.plan is not None for one in tried) >= compile_most:
            break
        if len(tried) >= 2 * compile_most:
            break
        tried.append(_compiled(found, candidate, devices, price))
        say(_line(tried[-1]))
    fits = [one for one in tried if one.plan is not None]
    if not fits:
        least = min((one for one in every if one is not None), key=lambda one: one.bytes)
        raise MmflaxError(
            f"Nothing fits into {chip.memory / 2**20:,.0f} MiB of a chip: the smallest way to run "
            f"a step needs about {least.bytes / 2**20:,.0f}; take more chips, or a smaller "
            "--config.data.batch_size=ROWS."
        )
    fits.sort(key=lambda one: _step_seconds(one.plan))
    rest = [one for one in tried if one.plan is None]
    sizes = {
        key: schema.at(found.experiment.config, key)["batch_size"] for key in ("data", "evaluation")
    }
    words = fits[0].candidate.overrides(config)
    words += [
        option(f"{key}.batch_size", size)
        for key, size in sizes.items()
        if f"{key}.batch_size" in experiment.undecided
    ]
    too_large = len(every) - thin - len(fitting)
    return Found(len(every), too_large, thin, (*fits, *rest), tuple(words))


def table(found: Found) -> str:
    """The candidates that were compiled, a line each."""
    header = (
        "data", "fsdp", "tensor", "micro-batches", "remat", "scan", "MiB", "ms", "examples/s", ""
    )  # fmt: skip
    rows = []
    for one in found.tried:
        mesh, plan = one.candidate.mesh, one.plan
        figures = ["-", "-", "-"]
        if plan is not None:
            figures = [
                f"{plan.step.memory.total / 2**20:,.0f}",
                f"{_step_seconds(plan) * 1e3:,.2f}",
                f"{plan.examples_per_second:,.0f}",
            ]
        rows.append(
            [
                *(str(mesh[axis]) for axis in ("data", "fsdp", "tensor")),
                str(one.candidate.accumulate),
                one.candidate.remat,
                "yes" if one.candidate.scan else "no",
                *figures,
                one.problem,
            ]
        )
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    left_out = f"{found.considered} ways; by arithmetic {found.too_large} do not fit"
    if found.too_thin:
        left_out += f", and {found.too_thin} leave fewer than {ROWS} rows of a matrix on one"
    return "\n".join([f"{left_out}; compiled:", *lines])


def _compiled(
    found: Opened, candidate: Candidate, devices: Sequence[Any], price: float | None
) -> Tried:
    values: dict[str, Any] = {f"mesh.{axis}": size for axis, size in candidate.mesh.items()}
    values["mesh.preset"] = None
    values["train.accumulate"] = candidate.accumulate
    values |= stack_values(found.experiment.config, candidate.remat, candidate.scan)
    experiment = Experiment(changed(found.experiment.config, values))
    try:
        step = compiled(found._replace(experiment=experiment), experiment.mesh(devices))
    except plans.TooLarge as error:
        excess = "" if error.excess is None else f" by {error.excess / 2**20:,.0f} MiB"
        return Tried(candidate, None, f"does not fit{excess}")
    return Tried(candidate, RunPlan(step, experiment.steps, price))


def _step_seconds(plan: RunPlan | None) -> float:
    assert plan is not None and plan.step.roofline is not None
    return plan.step.roofline.step


def _line(tried: Tried) -> str:
    mesh = tried.candidate.mesh
    how = ", ".join(f"{axis}={size}" for axis, size in mesh.items())
    how += f", accumulate={tried.candidate.accumulate}, remat={tried.candidate.remat}"
    if tried.plan is None:
        return f"{how}: {tried.problem}"
    total = tried.plan.step.memory.total / 2**20
    return f"{how}: {_step_seconds(tried.plan) * 1e3:,.2f} ms, {total:,.0f} MiB"
