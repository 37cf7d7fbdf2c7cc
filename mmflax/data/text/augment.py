"""Words of an example that certain image augmentations would make untrue.

A mirrored picture makes "left" wrong, a shifted hue makes "red" wrong. These are English lists and
plain word matching: "right" in "is that right?" counts as a side, which only costs a mirroring.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmflax.data.dataset import Raw

TEXTS = ("question", "answer", "caption", "target")
TEXT_LISTS = ("answers", "references")

# Each pair trades places in a mirror.
SIDES = tuple(
    tuple(pair.split("/"))
    for pair in "left/right leftmost/rightmost lefthand/righthand leftward/rightward "
    "leftwards/rightwards east/west eastern/western eastward/westward northeast/northwest "
    "southeast/southwest clockwise/counterclockwise anticlockwise/clockwise".split()
)
# Writing and clock faces do not survive a mirror, whatever the words around them.
WRITING = frozenset(
    "letter letters word words written writing writes read reads say says said spell spells "
    "spelled sign signs text title clock clocks o'clock".split()
)
# A mirrored pair trades its pictures, and these words may mean the pictures or something in them.
ORDINALS = frozenset("first second".split())
COLORS = frozenset(
    "red green blue yellow orange purple violet pink brown black white gray grey cyan magenta "
    "turquoise teal beige tan gold golden silver maroon navy blond blonde color colors colored "
    "colorful colour colours coloured colourful hue reddish greenish bluish yellowish".split()
)
LIGHT = frozenset(
    "bright brighter brightest dark darker darkest light lighter lightest shadow shadows shade lit "
    "dim night day daytime sunny cloudy".split()
)
PLACES = frozenset(
    "above below top bottom under over beneath up down upper lower higher highest lowest "
    "middle center centre corner edge side sides row column north south tilted upright straight "
    "vertical horizontal".split()
)

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(raw: Raw) -> frozenset[str]:
    """The lower-case words of every text of a raw example."""
    texts = [raw.get(key) for key in TEXTS]
    for key in TEXT_LISTS:
        texts += raw.get(key) or ()
    return frozenset(word for text in texts if text for word in _WORD.findall(text.lower()))


def mirror_table(pairs: Iterable[Sequence[str]]) -> dict[str, str]:
    """The mirror image of each word; a word of two pairs takes the first one's partner."""
    table: dict[str, str] = {}
    for left, right in pairs:
        table.setdefault(left.lower(), right.lower())
        table.setdefault(right.lower(), left.lower())
    return table


def mirrored(raw: Raw, table: Mapping[str, str]) -> Raw:
    """The example with every word of ``table`` replaced in all its texts, capitals kept."""
    changed: dict[str, Any] = {}
    for key in TEXTS:
        if raw.get(key):
            changed[key] = _swap(raw[key], table)
    for key in TEXT_LISTS:
        if raw.get(key):
            changed[key] = [_swap(text, table) for text in raw[key]]
    return {**raw, **changed}


def _swap(text: str, table: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        word = match.group()
        other = table.get(word.lower())
        if other is None:
            return word
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return _WORD.sub(replace, text)
