"""English stems: the Snowball "English" (Porter2) algorithm, which METEOR 1.5 matches words by.

Porter, "The English (Porter2) stemming algorithm" (snowballstem.org). Steps and names are those of
that page, with the exceptions that METEOR's copy has.
"""

from __future__ import annotations

import functools
import re

_WHOLE = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie",
    "idly": "idl", "gently": "gentl", "ugly": "ugli", "early": "earli", "only": "onli",
    "singly": "singl",
    **{w: w for w in ("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")},
}  # fmt: skip
_AFTER_1A = {"inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"}
_R1_PREFIXES = ("gener", "commun", "arsen")
_STEP_2 = {
    "ization": "ize", "izer": "ize", "ational": "ate", "ation": "ate", "ator": "ate",
    "fulness": "ful", "fulli": "ful", "ousness": "ous", "ousli": "ous", "iveness": "ive",
    "iviti": "ive", "biliti": "ble", "bli": "ble", "abli": "able", "tional": "tion",
    "enci": "ence", "anci": "ance", "entli": "ent", "alism": "al", "aliti": "al", "alli": "al",
    "lessli": "less", "ogi": "og", "li": "",
}  # fmt: skip
_STEP_3 = {
    "ational": "ate", "tional": "tion", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic",
    "ful": "", "ness": "", "ative": "",
}  # fmt: skip
_STEP_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism", "ate", "iti", "ous",
    "ive", "ize", "ion", "al", "er", "ic",
)  # fmt: skip
_DOUBLES = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")
_VOWELS = "aeiouy"


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case word; words of up to two letters are their own."""
    if word in _WHOLE:
        return _WHOLE[word]
    if len(word) <= 2:
        return word
    word = word.removeprefix("'")
    # A consonant y is written Y from here on.
    if word.startswith("y"):
        word = "Y" + word[1:]
    letters = list(word)
    for at in range(1, len(letters)):
        if letters[at] == "y" and letters[at - 1] in _VOWELS:
            letters[at] = "Y"
    word = "".join(letters)
    r1, r2 = _regions(word)
    for ending in ("'s'", "'s", "'"):
        if word.endswith(ending):
            word = word[: -len(ending)]
            break
    word = _step_1a(word)
    if word in _AFTER_1A:
        return word
    word = _step_1b(word, r1)
    if len(word) > 2 and word[-1] in "yY" and word[-2] not in _VOWELS:
        word = word[:-1] + "i"
    word = _step_2(word, r1)
    word = _step_3(word, r1, r2)
    word = _step_4(word, r2)
    return _step_5(word, r1, r2).replace("Y", "y")


def _regions(word: str) -> tuple[int, int]:
    """Where R1 and R2 begin: each after the first consonant that follows a vowel."""
    prefix = next((p for p in _R1_PREFIXES if word.startswith(p)), None)
    r1 = len(prefix) if prefix else _after_vowel_consonant(word, 0)
    return r1, _after_vowel_consonant(word, r1)


def _after_vowel_consonant(word: str, start: int) -> int:
    found = re.search("[aeiouy][^aeiouy]", word[start:])
    return start + found.end() if found else len(word)


def _ends_short(word: str) -> bool:
    """Ends in consonant, vowel, consonant other than w, x, Y; or is a vowel and a consonant."""
    return bool(re.search("[^aeiouy][aeiouy][^aeiouywxY]$|^[aeiouy][^aeiouy]$", word))


def _longest(word: str, endings) -> str | None:
    found = [ending for ending in endings if word.endswith(ending)]
    return max(found, key=len) if found else None


def _step_1a(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1] if any(c in _VOWELS for c in word[:-2]) else word
    return word


def _step_1b(word: str, r1: int) -> str:
    ending = _longest(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    if ending is None:
        return word
    head = word[: -len(ending)]
    if ending.startswith("ee"):
        return head + "ee" if len(head) >= r1 else word
    if not any(c in _VOWELS for c in head):
        return word
    if head.endswith(("at", "bl", "iz")):
        return head + "e"
    if head.endswith(_DOUBLES):
        return head[:-1]
    # A short word: it ends in a short syllable and R1 is empty.
    return head + "e" if r1 >= len(head) and _ends_short(head) else head


def _step_2(word: str, r1: int) -> str:
    ending = _longest(word, _STEP_2)
    if ending is None or len(word) - len(ending) < r1:
        return word
    head = word[: -len(ending)]
    if ending == "ogi" and not head.endswith("l"):
        return word
    if ending == "li" and not head.endswith(tuple("cdeghkmnrt")):
        return word
    return head + _STEP_2[ending]


def _step_3(word: str, r1: int, r2: int) -> str:
    ending = _longest(word, _STEP_3)
    if ending is None or len(word) - len(ending) < r1:
        return word
    if ending == "ative" and len(word) - len(ending) < r2:
        return word
    return word[: -len(ending)] + _STEP_3[ending]


def _step_4(word: str, r2: int) -> str:
    ending = _longest(word, _STEP_4)
    if ending is None or len(word) - len(ending) < r2:
        return word
    head = word[: -len(ending)]
    return word if ending == "ion" and not head.endswith(("s", "t")) else head


def _step_5(word: str, r1: int, r2: int) -> str:
    head = word[:-1]
    if word.endswith("e"):
        gone = len(head) >= r2 or (len(head) >= r1 and not _ends_short(head))
        return head if gone else word
    return head if word.endswith("ll") and len(head) >= r2 else word
