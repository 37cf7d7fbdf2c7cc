"""An ablation's results: means, confidence intervals, a table and a figure."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mmflax.errors import MmflaxError
from mmflax.evaluation.tables import cell, label, scale
from mmflax.files import write_file
from mmflax.inference.attention_figure import save

_NOTES = (
    "seeds: mean +- t * s / sqrt(k) over the k seeds, 95 %: what other seeds would give on these "
    "examples.",
    "examples: each run's 95 % bootstrap interval, its ends averaged over the seeds: what other "
    "examples would give to these runs.",
)


def seed_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean over seeds, by Student's t; None for a single seed."""
    k = len(values)
    if k < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, k - 1)) * deviation / math.sqrt(k)
    return [mean - half, mean + half]


def check_metric(metric: str, known: Iterable[str]) -> None:
    """Raises for a metric that the evaluation does not give."""
    if metric not in set(known):
        raise MmflaxError(
            f"The metric to compare is {metric!r}, which the evaluation lacks; choose one of "
            f"{', '.join(sorted(known))}."
        )


def summarize(
    results: Sequence[tuple[str, int, Mapping[str, Any]]], metric: str | None, reference: str
) -> dict[str, Any]:
    """From (kind, seed, what `evaluate` returned) to one entry a kind.

    Args:
      metric: None takes accuracy, or else the first there is.
      reference: the kind that others are compared with, seed by seed, if it is among them.

    Returns:
      ``{"metric", "reference", "seeds", "examples", "kinds": {kind: {"values", "mean",
      "seed_interval", "example_interval", "difference", "difference_interval", "text_only",
      "by_type"}}}``. Values are in order of seeds; ``difference`` is the mean of (kind - reference)
      at the same seed, its interval Student's; ``by_type`` has ``values`` and ``mean`` of each
      question type.
    """
    known = sorted(results[0][2]["metrics"]["full"])
    metric = metric or ("accuracy" if "accuracy" in known else known[0])
    check_metric(metric, known)
    types = [name.partition("/")[2] for name in known if name.startswith(f"{metric}/")]
    groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for kind, seed, result in results:
        groups.setdefault(kind, []).append((seed, result))
    kinds: dict[str, dict[str, Any]] = {}
    for kind, rows in groups.items():
        evaluations = [result for _, result in sorted(rows, key=lambda row: row[0])]
        full = [result["metrics"]["full"] for result in evaluations]
        text_only = [result["metrics"].get("text_only", {}).get(metric) for result in evaluations]
        intervals = [result.get("intervals", {}).get(metric) for result in evaluations]
        values = [float(row[metric]) for row in full]
        kinds[kind] = {
            "values": values,
            "mean": float(np.mean(values)),
            "seed_interval": seed_interval(values),
            "example_interval": None if None in intervals else np.mean(intervals, axis=0).tolist(),
            "text_only": None if None in text_only else float(np.mean(text_only)),
            "by_type": {
                name: {
                    "values": [float(row[f"{metric}/{name}"]) for row in full],
                    "mean": float(np.mean([row[f"{metric}/{name}"] for row in full])),
                }
                for name in types
            },
        }
    for kind, entry in kinds.items():
        pairs = None
        if reference in kinds and kind != reference:
            pairs = np.subtract(entry["values"], kinds[reference]["values"]).tolist()
        entry["difference"] = float(np.mean(pairs)) if pairs else None
        entry["difference_interval"] = seed_interval(pairs) if pairs else None
    return {
        "metric": metric,
        "reference": reference,
        "seeds": sorted({seed for _, seed, _ in results}),
        "examples": results[0][2]["examples"],
        "kinds": kinds,
    }


def markdown(summary: Mapping[str, Any]) -> str:
    """The table, best mean first, with what its columns mean."""
    metric, kinds = summary["metric"], summary["kinds"]
    types = list(next(iter(kinds.values()))["by_type"])
    head = ["fusion", "parameters", "mlp_dim", "depth", label(metric), "95 % seeds",
            "95 % examples", f"minus {summary['reference']}", "text only", *types]  # fmt: skip

    def interval(pair: Sequence[float] | None) -> str:
        return "-" if pair is None else " .. ".join(cell(metric, value) for value in pair)

    def difference(entry: Mapping[str, Any]) -> str:
        if entry["difference"] is None:
            return "-"
        pair = entry["difference_interval"]
        return cell(metric, entry["difference"]) + (f" ({interval(pair)})" if pair else "")

    lines = [head, ["---"] * len(head)]
    for kind, entry in sorted(kinds.items(), key=lambda item: -item[1]["mean"]):
        lines.append(
            [
                kind, f"{entry['parameters']:,}", str(entry.get("mlp_dim", "-")),
                str(entry.get("depth", "-")), cell(metric, entry["mean"]),
                interval(entry["seed_interval"]), interval(entry["example_interval"]),
                difference(entry), cell(metric, entry["text_only"]),
                *(cell(metric, entry["by_type"][name]["mean"]) for name in types),
            ]
        )  # fmt: skip
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    seeds = ", ".join(map(str, summary["seeds"]))
    within = summary["matched_within"]
    matched = f"parameters matched within {within:.0%}" if within else "parameters not matched"
    dropped = [
        f"{kind} has no {', '.join(entry['dropped'])}, which its config therefore lacks."
        for kind, entry in kinds.items()
        if entry["dropped"]
    ]
    compared = (
        f"minus {summary['reference']}: mean difference at equal seeds (95 % over seeds, by t).",
        "text only: the same models without the image. By question type: means over the seeds.",
    )
    notes = "\n".join(f"- {note}" for note in (*_NOTES, *compared, *dropped))
    return (
        f"# Fusion ablation: {metric} on {summary['split']}\n\n{summary['examples']:,} examples, "
        f"{summary['steps']:,} training steps, seeds {seeds}, {matched}.\n\n{table}\n\n{notes}\n"
    )


def draw(summary: Mapping[str, Any], path: pathlib.Path) -> None:
    """A figure of every run, means and intervals, beside the means by question type."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric, times = summary["metric"], scale(summary["metric"])
    kinds = sorted(summary["kinds"].items(), key=lambda item: item[1]["mean"])
    types = list(kinds[0][1]["by_type"])
    fig = Figure(figsize=(6 + 0.9 * len(types), 1.6 + 0.5 * len(kinds)), layout="constrained")
    FigureCanvasAgg(fig)
    widths = [5, max(1.0, 0.9 * len(types))] if types else [1]
    axes = np.atleast_1d(fig.subplots(1, len(widths), width_ratios=widths))
    ax = axes[0]
    for row, (_, entry) in enumerate(kinds):
        for pair, width, color, title in (
            (entry["example_interval"], 7, "#c6dbef", "95 % over examples"),
            (entry["seed_interval"], 2, "#08519c", "95 % over seeds"),
        ):
            if pair is not None:
                ax.plot(times * np.array(pair), [row, row], lw=width, color=color,
                        label=title if row == 0 else None, solid_capstyle="butt")  # fmt: skip
        ax.plot(times * np.array(entry["values"]), [row] * len(entry["values"]), "o", ms=4,
                mfc="none", color="#636363", label="one seed" if row == 0 else None)  # fmt: skip
        ax.plot(times * entry["mean"], row, "D", ms=6, color="#08519c",
                label="mean" if row == 0 else None)  # fmt: skip
    ax.set_yticks(range(len(kinds)), [f"{k}\n{e['parameters']:,}" for k, e in kinds], fontsize=8)
    ax.set_ylim(-0.6, len(kinds) - 0.4)
    ax.set_xlabel(f"{label(metric)}, {summary['split']}")
    ax.grid(axis="x", color="#eeeeee")
    ax.set_axisbelow(True)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    if types:
        shares = np.array([[e["by_type"][name]["mean"] for name in types] for _, e in kinds])
        axes[1].imshow(shares, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1.3)
        for row, column in np.ndindex(shares.shape):
            axes[1].text(column, row, cell(metric, float(shares[row, column])), ha="center",
                         va="center", fontsize=8)  # fmt: skip
        axes[1].set_xticks(range(len(types)), types, rotation=30, ha="right", fontsize=8)
        axes[1].set_yticks([])
        axes[1].set_title("by question type", fontsize=9)
    save(fig, path)


def write(summary: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """``ablation.json``, ``ablation.md`` and ``ablation.png`` in the workdir."""
    write_file(workdir / "ablation.json", json.dumps(summary, indent=1) + "\n")
    write_file(workdir / "ablation.md", markdown(summary))
    draw(summary, workdir / "ablation.png")
