"""What a plan says: as text, as plain values, and as a picture of the memory and the time."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from mmflax.distributed.chips import chip_of
from mmflax.distributed.collectives import Collective
from mmflax.distributed.plan import Plan
from mmflax.inference.attention_figure import save
from mmflax.run.plan import RunPlan

MIB = 2**20
BETWEEN = "network between slices"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def text(planned: RunPlan) -> str:
    """A few lines for a terminal."""
    step = planned.step
    rows = step.batch_size * step.mesh["tensor"] / step.chips
    axes = ", ".join(f"{axis}={size}" for axis, size in step.mesh.items())
    lines = [
        f"{_count(step.chips, _name(step))} ({axes}), a batch of {step.batch_size}: "
        f"{rows:g} rows for each",
        "memory of a chip, MiB",
        *(f"  {name:<13}{size / MIB:>12,.1f}" for name, size in step.memory.parts.items() if size),
        f"  {'total':<13}{step.memory.total / MIB:>12,.1f}{_room(step)}",
        f"arithmetic of a step: {_short(step.model_flops)}FLOP by the model"
        + (f", and {step.recomputed:.0%} more that is computed again" if step.recomputed else ""),
    ]
    if step.sent:
        lines.append("communication of a step, for each chip")
        header = ("kind", "mesh axes", "times", "MiB", "overlapped")
        rows_of = [
            (
                one.kind,
                ", ".join(_between(one)) or "-",
                f"{one.times:,}",
                f"{one.bytes * one.times / MIB:,.1f}",
                "yes" if one.overlapped else "no",
            )
            for one in summed(step)
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows_of, strict=True)]
        for row in (header, *rows_of):
            left = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
            right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            lines.append("  " + "  ".join([*left, *right]))
    else:
        lines.append("communication of a step: none")
    return "\n".join([*lines, *_time(planned), f"compiled in {step.seconds:.0f} s"])


def _between(one: Collective) -> list[str]:
    axes = [" x ".join(one.axes)] if one.axes else []
    return [*axes, "between slices"] if one.slices > 1 else axes


def _time(planned: RunPlan) -> list[str]:
    step, bound = planned.step, planned.step.roofline
    if bound is None:
        return [
            f"time: no estimate, because there are no published figures of {step.kind!r}; "
            f"{planned.steps:,} steps in all"
        ]
    parts = ", ".join(
        f"{name} {value * 1e3:.2f}"
        for name, value in times(step).items()
        if (value or name == "compute") and name != BETWEEN
    )
    if bound.dcn:
        parts += f", of the network {bound.dcn * 1e3:.2f} between slices"
    lines = [
        f"time of a step, at the least: {bound.step * 1e3:.2f} ms ({parts}), bound by "
        f"{bound.bound}; at most {bound.share_of_peak:.0%} of the chip's peak",
        f"{planned.steps:,} steps: at most {planned.examples_per_second:,.0f} examples/s, at least "
        f"{_figures(planned.hours)} hours and {_figures(planned.chip_hours)} chip hours"
        + ("" if planned.cost is None else f", {_figures(planned.cost)} in money"),
    ]
    return lines


def times(step: Plan) -> dict[str, float]:
    """Seconds of a step by what they go to; the last is a part of the two before it."""
    bound = step.roofline
    if bound is None:
        return {}
    return {
        "compute": bound.compute,
        "memory": bound.memory,
        "exposed network": bound.network_exposed,
        "overlapped network": bound.network_overlapped,
        BETWEEN: bound.dcn,
    }


def summed(step: Plan) -> list[Any]:
    """Collectives of one kind over the same axes as one, the most bytes first."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for one in step.sent:
        groups.setdefault((one.kind, one.axes, one.overlapped, one.slices), []).append(one)
    merged = [
        dataclasses.replace(
            several[0],
            bytes=round(sum(one.bytes * one.times for one in several) / sum_of(several)),
            times=sum_of(several),
        )
        for several in groups.values()
    ]
    return sorted(merged, key=lambda one: -one.bytes * one.times)


def sum_of(several: list[Any]) -> int:
    """How often they run together."""
    return sum(one.times for one in several)


def values(planned: RunPlan) -> dict[str, Any]:
    """For programs: bytes, FLOPs and seconds; per chip where nothing else is said."""
    step = planned.step
    found = dataclasses.asdict(step)
    chip = chip_of(step.kind)
    found["memory"] |= {
        "state": step.memory.state,
        "temporary": step.memory.temporary,
        "total": step.memory.total,
    }
    return found | {
        "chip": None if chip is None else dataclasses.asdict(chip),
        "recomputed": step.recomputed,
        "steps": planned.steps,
        "examples_per_second": planned.examples_per_second,
        "hours": planned.hours,
        "chip_hours": planned.chip_hours,
        "cost": planned.cost,
    }


def figure(planned: RunPlan, path: epath.PathLike) -> None:
    """Two bars: what fills a chip's memory, and what a step's time goes to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    step = planned.step
    fig = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(fig)
    above, below = fig.subplots(2, 1)
    sizes = {name: size / MIB for name, size in step.memory.parts.items() if size}
    _stacked(above, sizes)
    limit = step.memory.limit
    if limit is not None:
        above.axvline(limit / MIB, color="black", linestyle="--", linewidth=1)
        above.set_xlim(0, 1.05 * max(limit, step.memory.total) / MIB)
    above.set_title("memory of a chip, MiB" + (" (dashed: what it has)" if limit else ""))
    spent = {name: value * 1e3 for name, value in times(step).items() if value}
    for row, value in enumerate(spent.values()):
        below.barh(row, value, color=f"C{row}")
        below.text(value, row, f" {value:.2f}", va="center", fontsize=8)
    below.set_yticks(range(len(spent)), list(spent), fontsize=8)
    below.invert_yaxis()
    below.margins(x=0.12)
    below.set_title("time of a step by what it goes to, ms")
    for ax in (above, below):
        ax.title.set_fontsize(9)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(f"{_count(step.chips, _name(step))}, a batch of {step.batch_size}", fontsize=10)
    save(fig, path)


def _stacked(ax: Any, sizes: dict[str, float]) -> None:
    start = 0.0
    for index, (name, size) in enumerate(sizes.items()):
        ax.barh(0, size, left=start, color=f"C{index}", label=f"{name} {size:,.0f}")
        start += size
    ax.set_yticks([])
    ax.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _name(step: Plan) -> str:
    chip = chip_of(step.kind)
    return step.kind if chip is None else chip.name


def _count(chips: int, name: str) -> str:
    return f"{chips} x {name}"


def _room(step: Plan) -> str:
    limit = step.memory.limit
    if limit is None:
        return ""
    free = limit - step.memory.total
    state = f"fits, {free / MIB:,.1f} free" if free >= 0 else f"{-free / MIB:,.1f} too much"
    return f" of {limit / MIB:,.0f}: {state}"


def _figures(number: float | None) -> str:
    """Two decimals, or two significant figures of what is smaller."""
    assert number is not None
    return f"{number:,.2f}" if number >= 1 or not number else f"{number:.2g}"


def _short(number: float) -> str:
    for size, prefix in _PREFIXES:
        if number >= size:
            return f"{number / size:,.2f} {prefix}"
    return f"{number:,.0f} "
