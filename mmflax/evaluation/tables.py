"""Evaluation results as a text table."""

from collections.abc import Mapping
from typing import Any

_TITLES = {
    "full": "image+text",
    "text_only": "text only",
    "image_only": "image only",
    "majority": "majority",
    "question_prior": "question prior",
}
# Metrics that are not fractions of 1, which tables show as they are.
_NAMED = 3  # of the examples that are left out
_PLAIN = ("loss", "median_rank", "mean_rank", "nll", "rsum", "examples")


def table(result: Mapping[str, Any]) -> str:
    """Rows are metrics (fractions times 100); columns are modality views and baselines.

    The last column is the full view's 95 % bootstrap interval, where the result has them.
    """
    views = result["metrics"]
    shown = [view for view in _TITLES if view in views]
    intervals = result.get("intervals", {})
    names = sorted((name for name in views["full"] if name != "loss"), key=_order)
    lines = [["metric (x 100)", *(_TITLES[view] for view in shown)]]
    if intervals:
        lines[0].append("95 % interval")
    for name in names:
        cells = [cell(name, views[view].get(name)) for view in shown]
        if intervals:
            pair = intervals.get(name)
            cells.append(f"{cell(name, pair[0])} .. {cell(name, pair[1])}" if pair else "-")
        lines.append([name, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
    checkpoint = result.get("checkpoint", f"step {result['step']}")
    head = f"{result['split']}: {result['examples']} examples, checkpoint of {checkpoint}"
    rule = "-" * len(text[0])
    notes = [f"note: {note}" for note in result.get("notes", ())]
    notes += [
        f"the data changed since the training: {one}" for one in result.get("data_changed", ())
    ]
    bad = left_out(result.get("bad_images", {}))
    return "\n".join([head, text[0], rule, *text[1:], *notes, *bad])


def left_out(bad: Mapping[str, str]) -> list[str]:
    """A line on the examples without a readable image, whose reasons by id these are, if any."""
    if not bad:
        return []
    named = "; ".join(f"{id}: {reason.rstrip('.')}" for id, reason in list(bad.items())[:_NAMED])
    more = "; …" if len(bad) > _NAMED else ""
    return [f"left out, since the image cannot be read: {len(bad)} ({named}{more})"]


def _order(name: str) -> tuple[int, str]:
    """Whole metrics first, then those by type, then parts of the loss."""
    return (2 if name.startswith("loss/") else 1 if "/" in name else 0, name)


def scale(name: str) -> int:
    """What a metric is multiplied by in tables and figures: fractions by 100."""
    return 1 if {name.partition("/")[0], name.rpartition("/")[2]} & set(_PLAIN) else 100


def cell(name: str, value: float | None) -> str:
    """A metric's value as tables show it."""
    if value is None:
        return "-"
    digits = 1 if scale(name) == 100 or name.endswith("rsum") else 3
    return f"{scale(name) * value:.{digits}f}"


def percent(share: float) -> str:
    """``71.3 %`` of 0.713."""
    return f"{100 * share:.1f} %"


def label(name: str) -> str:
    """A metric's name with its scale."""
    return f"{name} x 100" if scale(name) == 100 else name
