"""Evaluation results as a table for people."""

from collections.abc import Mapping
from typing import Any

_TITLES = {
    "full": "image+text",
    "text_only": "text only",
    "image_only": "image only",
    "majority": "majority",
    "question_prior": "question prior",
}


def table(result: Mapping[str, Any]) -> str:
    """Rows are question types, columns the model and its blind baselines; accuracy in percent."""
    views = result["metrics"]
    titles = [title for view, title in _TITLES.items() if view in views]
    columns = [views[view] for view in _TITLES if view in views]
    kinds = sorted(n.partition("/")[2] for n in views["full"] if n.startswith("accuracy/"))
    names = [(kind, f"accuracy/{kind}") for kind in kinds] + [("all", "accuracy")]
    lines = [["accuracy %", *titles]]
    for kind, metric in names:
        lines.append([kind, *(f"{100 * c[metric]:.1f}" if metric in c else "-" for c in columns)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )  # fmt: skip
        for line in lines
    ]
    head = f"{result['split']}: {result['examples']} examples, checkpoint of step {result['step']}"
    rule = "-" * len(text[0])
    return "\n".join([head, text[0], rule, *text[1:-1], rule, text[-1]])
