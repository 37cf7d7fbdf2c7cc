"""Words of a caption, in the manner of the Penn Treebank, without punctuation marks.

coco-caption runs Stanford's PTBTokenizer 3.4.1 (Java), lower-cased, and drops a list of marks. This
follows its rules that captions meet: clitics, quotes, brackets, numbers, abbreviations, web
addresses. Rarer text (split fractions, accents of entities, other scripts) may come out otherwise,
and then so may scores; compare scores that were made with one tokenizer.
"""

from __future__ import annotations

import functools
import re

# The marks that coco-caption drops. Its list has "-LRB-", which lower-casing has made "-lrb-" by
# then, so brackets stay in: a quirk that is kept.
DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TWO_WORDS = {
    "cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3, "'tis": 2, "'twas": 2,
}  # fmt: skip
_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr vs etc inc ltd co corp ave blvd rd ft no gen col sgt capt lt "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
).split()
_PLAIN = str.maketrans({"‘": "`", "’": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."})

_TOKEN = re.compile(
    rf"""
      https?://\S*[^\s.,;:!?'")\]] | www\.\S*[^\s.,;:!?'")\]]   # addresses
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                              # mail
    | [@\#][^\W\d]\w*                                           # names and hash tags
    | (?:[^\W\d_]\.){{2,}}                                      # u.s., a.m.
    | \d+(?:[.,:/-]\d+)*(?:st|nd|rd|th|s)?(?![\w-])             # 3,000.50, 10:30, 1/2, 1980s
    | '\d\ds?\b | 'n' | 't(?:was|is)\b                           # '90s, rock 'n' roll, 'twas
    | \.\d+
    | (?:{"|".join(_ABBREVIATIONS)})\.(?=\s+\S)                  # mr.
    | '(?:s|m|d|re|ve|ll|em|n)\b                                # clitics left by a number
    | [\w&]+(?:['./-]?[\w&]+)*                                  # words, with what joins them
    | \.{{2,}} | -{{2,}} | [!?]{{2,}} | [.] | ``|''|["'`] | \S
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))$")


def tokenize(text: str) -> list[str]:
    """Lower-case words, such as `"A man's dog can't jump."` -> a, man, 's, dog, ca, n't, jump."""
    return list(_tokenize(text))


@functools.lru_cache(maxsize=1 << 15)
def _tokenize(text: str) -> tuple[str, ...]:
    text = text.replace("\n", " ").translate(_PLAIN).lower()
    words: list[str] = []
    for token in _TOKEN.findall(text):
        words += _split(token)
    return tuple(word for word in words if word not in DROPPED)


def _split(token: str) -> list[str]:
    if token in _TWO_WORDS:
        at = _TWO_WORDS[token]
        return [token[:at], token[at:]]
    if token in _BRACKETS:
        return [_BRACKETS[token]]
    if token.startswith(".."):
        return ["..."]
    if token == '"':
        return ["''"]
    match = _CLITIC.match(token)
    return [*_split(match[1]), match[2]] if match else [token]
