"""VQA accuracy, as the official evaluation computes it (Antol et al. 2015; Goyal et al. 2017).

An answer that n annotators gave has accuracy min(n / 3, 1), averaged over leaving each annotator
out. Answers are compared after the evaluator's normalization, whose quirks are
kept: vqaEval.py of GT-Vision-Lab/VQA at a013f00, `PythonEvaluationTools/vqaEvaluation`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from mmflax.errors import MmflaxError

ARTICLES = ("a", "an", "the")
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The evaluator means to spare the period after a digit too, but its look-behind is misspelt.
_PERIOD = re.compile(r"\.(?!\d)")
# It passes a flag of value 32 where the number of replacements belongs.
_PERIODS_REMOVED = 32

# Written without any apostrophe, these get theirs; the lower-cased text meets no other key.
_CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
_WOULD_HAVE = "he it she somebody someone something there they we who you".split()
_NOT_HAVE = "could had might should would".split()
CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _CONTRACTED},
    **{f"{w}{d}": f"{w}'d've" for w in _WOULD_HAVE for d in ("d've", "'dve")},
    **{f"{w}{n}": f"{w}n't've" for w in _NOT_HAVE for n in ("nt've", "n'tve")},
    **dict.fromkeys(("yall'll", "y'allll"), "y'all'll"),
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    "somebody'd": "somebodyd",
}


def normalize(answer: str) -> str:
    """The form in which answers are compared: `"Two dogs."` and `"the 2 dogs"` are `"2 dogs"`.

    Punctuation goes (or becomes a space, where it touches none), number words become digits,
    articles go, and contractions get their apostrophe.
    """
    text = _clean(answer)
    marked = text
    numeric = _COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        loose = f"{mark} " in text or f" {mark}" in text
        marked = marked.replace(mark, "" if loose or numeric else " ")
    marked = _PERIOD.sub("", marked, count=_PERIODS_REMOVED)
    words = [NUMBERS.get(word, word) for word in marked.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def score(predicted: str, answers: Sequence[str]) -> float:
    """The answer's accuracy in 0..1, given every annotator's answer.

    Where all annotators wrote the same, nothing is normalized, and only exactly that is right.
    Fewer than four annotators can never give 1, since each is held against the others.
    """
    given = [_clean(answer) for answer in answers]
    if not given:
        raise MmflaxError("A question has no annotators' answers; VQA accuracy needs them.")
    ours = _clean(predicted)
    if len(set(given)) > 1:
        given = [normalize(answer) for answer in given]
        ours = normalize(ours)
    return _score_of(given.count(ours), len(given))


def soft_scores(
    answers: Sequence[str], form: Callable[[str], str] | None = None
) -> dict[str, float]:
    """Each answer with its `score`: targets for training.

    Args:
      answers: every annotator's.
      form: what makes spellings equal; None normalizes as `score` does, unless all agree.
    """
    given = [_clean(answer) if form is None else form(answer) for answer in answers]
    if form is None and len(set(given)) > 1:
        given = [normalize(answer) for answer in given]
    return {answer: _score_of(n, len(given)) for answer, n in Counter(given).items()}


def vqa_accuracy(
    predicted: Sequence[str],
    answers: Sequence[Sequence[str]],
    question_types: Sequence[str] | None = None,
    answer_types: Sequence[str] | None = None,
) -> dict[str, float]:
    """Means of `score`: `vqa_accuracy`, `vqa_accuracy/<question type>`,
    `vqa_accuracy/answer_type/<answer type>`. The official program prints 100 times this, rounded.
    """
    if not predicted:
        raise MmflaxError("There are no predictions to score.")
    groups: dict[str, list[float]] = defaultdict(list)
    for row, (ours, given) in enumerate(zip(predicted, answers, strict=True)):
        value = score(ours, given)
        groups["vqa_accuracy"].append(value)
        if question_types is not None:
            groups[f"vqa_accuracy/{question_types[row]}"].append(value)
        if answer_types is not None:
            groups[f"vqa_accuracy/answer_type/{answer_types[row]}"].append(value)
    return {name: sum(values) / len(values) for name, values in groups.items()}


def _clean(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _score_of(matching: int, annotators: int) -> float:
    own = matching * min((matching - 1) / 3, 1.0)
    return (own + (annotators - matching) * min(matching / 3, 1.0)) / annotators
