"""When two spellings are one answer.

The same form is given to an answer of the list that a processor learns, to the answer of an
example, to every annotator's answer and to a question's baseline, so that no side of a comparison
is normalized alone.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from mmflax.errors import MmflaxError
from mmflax.metrics import vqa

Form = Callable[[str], str]


def vqa_form(answer: str) -> str:
    """The official VQA evaluation's form; of an answer of which that leaves nothing (such as "A",
    an article), `case_form`. A number is its text."""
    return _vqa_form(str(answer))


@functools.lru_cache(maxsize=1 << 16)
def _vqa_form(answer: str) -> str:
    return vqa.normalize(unicodedata.normalize("NFC", answer)) or case_form(answer)


def case_form(answer: str) -> str:
    """Lower case and single blanks, in Unicode's composed form. A number is its text."""
    return " ".join(unicodedata.normalize("NFC", str(answer)).lower().split())


def same(answer: str) -> str:
    """The answer as it is."""
    return answer


# "annotators" is what processors without the field did: labels are compared as they are written,
# and only the annotators' answers of soft_answers are normalized.
FORMS: Mapping[str, Form] = {
    "vqa": vqa_form,
    "case": case_form,
    "off": same,
    "annotators": same,
}


def form_of(how: str) -> Form:
    """The form of this name; an unknown one is an error."""
    if how not in FORMS:
        raise MmflaxError(f"normalize_answers is {how!r}; choose one of vqa, case, off.")
    return FORMS[how]


def grouped(counts: Mapping[str, int], form: Form) -> dict[str, Counter[str]]:
    """How often each spelling occurs, by the form that is common to them."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for answer, count in counts.items():
        groups[form(answer)][answer] += count
    return dict(groups)


def commonest(spellings: Mapping[str, int]) -> str:
    """The spelling that occurs most often; ties go to the first in the alphabet."""
    return min(spellings, key=lambda answer: (-spellings[answer], str(answer)))


def merged(counts: Mapping[str, int], how: str) -> str | None:
    """One sentence on the spellings that are one answer, with their counts; None if there are none.

    Args:
      counts: how often each spelling occurs.
      how: as `form_of` names it.
    """
    groups = [group for group in grouped(counts, form_of(how)).values() if len(group) > 1]
    if not groups:
        return None
    groups.sort(key=lambda group: (-group.total(), str(commonest(group))))
    shown = [
        f"{' / '.join(repr(answer) for answer, _ in group.most_common(5))} "
        f"({', '.join(str(count) for _, count in group.most_common(5))} examples) are one answer, "
        f"{commonest(group)!r}"
        for group in groups[:3]
    ]
    more = f"; and {len(groups) - 3} more such groups" if len(groups) > 3 else ""
    why = {"vqa": "as the official VQA evaluation does", "case": "by letter case and blanks"}[how]
    return (
        f"answers are normalized, {why}: {'; '.join(shown)}{more}; off with "
        "--config.processor.normalize_answers=off"
    )
