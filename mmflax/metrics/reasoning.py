"""Accuracy and consistency of statements about images (Suhr et al. 2017, 2019; NLVR and NLVR2).

Consistency is the fraction of statements that are classified correctly with *every* image.
The official programs (lil-lab/nlvr: metrics_structured_rep.py, nlvr/metrics_images.py,
nlvr2/eval/metrics.py) call accuracy "precision".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from mmflax.errors import MmflaxError


def accuracy_and_consistency(
    predicted: Sequence[str], actual: Sequence[str], groups: Sequence[Hashable]
) -> dict[str, float]:
    """`accuracy` and `consistency` in 0..1; words are compared without regard to case.

    `groups` says which examples share their statement: see `nlvr_group` and `nlvr2_group`.
    """
    if not predicted:
        raise MmflaxError("There are no predictions to score.")
    right = 0
    whole: dict[Hashable, bool] = {}
    for ours, theirs, group in zip(predicted, actual, groups, strict=True):
        good = ours.lower() == theirs.lower()
        right += good
        whole[group] = whole.get(group, True) and good
    return {
        "accuracy": right / len(predicted),
        "consistency": sum(whole.values()) / len(whole),
    }


def nlvr_group(identifier: str) -> str:
    """The statement of an NLVR example: `"1304-2"` -> `"1304"`."""
    return identifier.split("-")[0]


def nlvr2_group(identifier: str) -> str:
    """The statement of an NLVR2 example, whose third part numbers its images:
    `"dev-850-1-0"` -> `"dev-850--0"`."""
    parts = identifier.split("-")
    if len(parts) != 4:
        raise MmflaxError(
            f"The NLVR2 identifier {identifier!r} has {len(parts)} parts; expected 4, such as "
            "'dev-850-1-0'."
        )
    return "-".join((*parts[:2], "", parts[3]))
