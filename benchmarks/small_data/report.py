"""The benchmark's tables: means over seeds with intervals, and the difference from ours."""

import json
import statistics

from mmflax.evaluation.tables import cell, label
from mmflax.run.ablation_report import summarize

NOTES = """
- 95 % seeds: mean +- t * s / sqrt(k) over the k seeds.
- 95 % examples: each run's bootstrap interval over the pictures, its ends averaged over the seeds.
- minus {reference}: mean difference at equal seeds, with its 95 % interval by Student's t.
- seconds: of training, by the clock.
"""


def write(results, metrics, workdir, split, *, reference):
    """Writes `<split>.json` and `<split>.md` in the workdir; returns the text.

    Args:
      results: (model, seed, what an evaluation returned) of every run.
      metrics: names of what is compared; each has a table.
      workdir: of the set, whose name is the heading.
      split: that was evaluated.
      reference: the model that others are compared with.
    """
    summaries = {metric: summarize(results, metric, reference) for metric in metrics}
    details = {name: detail(results, name) for name in dict.fromkeys(name for name, *_ in results)}
    tables = [table(summary, details, reference) for summary in summaries.values()]
    first = next(iter(summaries.values()))
    head = f"# {workdir.name}: {split}, {first['examples']:,} examples, seeds {first['seeds']}\n\n"
    text = head + "\n\n".join(tables) + "\n" + NOTES.format(reference=reference)
    workdir.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"split": split, "models": details, "metrics": summaries}, indent=1)
    (workdir / f"{split}.json").write_text(content + "\n", encoding="utf-8")
    (workdir / f"{split}.md").write_text(text, encoding="utf-8")
    return text


def overview(workdir, split):
    """Writes `<split>.md` of all sets below the workdir: means, with the interval over seeds."""
    rows, models = [], {}
    for path in sorted(workdir.glob(f"*/{split}.json")):
        for metric, summary in json.loads(path.read_text(encoding="utf-8"))["metrics"].items():
            cells = {}
            for name, entry in summary["kinds"].items():
                cells[name] = cell(metric, entry["mean"])
                if pair := entry["seed_interval"]:
                    cells[name] += f" +- {cell(metric, (pair[1] - pair[0]) / 2)}"
            rows.append((path.parent.name, label(metric), cells))
            models |= cells
    lines = [["set", "metric", *models], ["---"] * (2 + len(models))]
    lines += [[name, metric, *(cells.get(m, "-") for m in models)] for name, metric, cells in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    (workdir / f"{split}.md").write_text(text, encoding="utf-8")
    return text


def detail(results, name):
    """Means over a model's runs of parameters, steps and seconds, where they are known."""
    runs = [result for other, _, result in results if other == name]
    means = {}
    for key in ("parameters", "steps", "seconds"):
        values = [run.get(key) for run in runs]
        means[key] = None if None in values else round(statistics.fmean(values))
    return means


def table(summary, details, reference):
    """One metric's table, in the order of the runs."""
    metric, kinds = summary["metric"], summary["kinds"]
    types = list(kinds[reference]["by_type"])

    def interval(pair):
        return "-" if pair is None else " .. ".join(cell(metric, value) for value in pair)

    head = ["model", "parameters", "steps", "seconds", label(metric), "95 % seeds",
            "95 % examples", f"minus {reference}", *types]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for name, entry in kinds.items():
        numbers = ["-" if value is None else f"{value:,}" for value in details[name].values()]
        difference = cell(metric, entry["difference"])
        if entry["difference_interval"]:
            difference += f" ({interval(entry['difference_interval'])})"
        lines.append(
            [
                name, *numbers, cell(metric, entry["mean"]), interval(entry["seed_interval"]),
                interval(entry["example_interval"]), difference,
                *(cell(metric, entry["by_type"][kind]["mean"]) for kind in types),
            ]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
