"""SentencePiece models (Kudo and Richardson 2018, arXiv:1808.06226) without the original library.

The search for the best pieces is the Unigram model of ``tokenizers``. Its ``Precompiled``
normalizer is right for T5 and ALBERT, whose tokenizers in transformers use it too. SigLIP's uses
the original, and ``Precompiled`` differs from that in sequences with combining characters: it looks
up whole grapheme clusters and drops what follows the first match (e + acute + circumflex becomes
"é"), and does not join halfwidth kana with their voice marks or conjoining Hangul. 5 % of the texts
in the tests are affected, so ``CharsMap`` applies SigLIP's character map by the longest match, as
SentencePiece does.
"""

import base64
import re
import string
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import models

from mmflax.errors import MmflaxError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_UNIGRAM = 1


class Piece(NamedTuple):
    """An entry of the vocabulary; `kind` is NORMAL, UNKNOWN, CONTROL, USER_DEFINED or another."""

    text: str
    score: float
    kind: int


class Spiece(NamedTuple):
    """The contents of a `spiece.model`."""

    pieces: tuple[Piece, ...]
    charsmap: bytes
    unk_id: int
    byte_fallback: bool


def parse(data: bytes, name: str) -> Spiece:
    """Reads a Unigram model; the fields are numbered as in `sentencepiece_model.proto`.

    Raises:
      MmflaxError: `name` is not such a file, of another type, or has unsupported settings.
    """
    try:
        model = _fields(data)
        pieces = tuple(
            Piece(_get(piece, 1, b"").decode(), _get(piece, 2, 0.0), _get(piece, 3, NORMAL))
            for piece in map(_fields, model.get(1, ()))
        )
        trainer, normalizer = _fields(_get(model, 2, b"")), _fields(_get(model, 3, b""))
    except (ValueError, IndexError, struct.error, TypeError, AttributeError) as error:
        raise MmflaxError(f"{name} is not a SentencePiece model ({error}).") from error
    if not pieces:
        raise MmflaxError(f"{name} is not a SentencePiece model (it holds no pieces).")
    if _get(trainer, 3, _UNIGRAM) != _UNIGRAM:
        raise MmflaxError(
            f"{name} is a SentencePiece model of type {trainer[3][-1]!r}, expected Unigram (1); "
            "save the tokenizer with transformers, which writes a tokenizer.json that can be read."
        )
    flags = {"add_dummy_prefix": 3, "remove_extra_whitespaces": 4, "escape_whitespaces": 5}
    changed = [flag for flag, number in flags.items() if not _get(normalizer, number, 1)]
    if _get(trainer, 24, 0):
        changed.append("treat_whitespace_as_suffix")
    if changed:
        raise MmflaxError(
            f"{name} was trained with another {', '.join(changed)} than usual, which is not "
            "supported; save the tokenizer with transformers as a tokenizer.json."
        )
    charsmap = _get(normalizer, 2, b"")
    return Spiece(pieces, charsmap, _get(trainer, 40, 0), bool(_get(trainer, 35, 0)))


class CharsMap:
    """Replaces the longest known character sequences of a text; an empty map changes nothing.

    The map is a double-array trie over UTF-8 bytes, then the replacements, each ended by a zero.
    """

    def __init__(self, charsmap: bytes):
        size = struct.unpack_from("<I", charsmap)[0] if charsmap else 0
        self._units = struct.unpack_from(f"<{size // 4}I", charsmap, 4) if size else ()
        self._strings = charsmap[4 + size :]

    def __call__(self, text: str) -> str:
        data = text.encode("utf-8", "replace")
        if not self._units:
            return data.decode()
        out = bytearray()
        start = 0
        while start < len(data):
            new, start = self._first(data, start)
            out += new
        return out.decode("utf-8", "replace")

    def _first(self, data: bytes, start: int) -> tuple[bytes, int]:
        """The replacement of the longest match at `start` (else its character), and its end."""
        units, best = self._units, None
        node = _offset(units[0])
        for end in range(start, len(data)):
            node ^= data[end]
            if node >= len(units) or units[node] & 0x800000FF != data[end]:
                break
            unit = units[node]
            node ^= _offset(unit)
            if unit >> 8 & 1:
                best = (units[node] & 0x7FFFFFFF, end + 1)
        if best is not None:
            return self._strings[best[0] : self._strings.index(b"\0", best[0])], best[1]
        end = start + 1
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
        return data[start:end], end


class SiglipText:
    """SigLIP's text: lower case, no ASCII punctuation, single spaces, then SentencePiece.

    As `SiglipTokenizer` of transformers: special tokens in the text are kept and take the spaces
    around them, and the pieces are those after an unknown token, which keeps a word's first piece
    as it is inside a text.

    Args:
      data: the contents of a `tokenizer.json`.
      specials: the id of every special token; like the unknown one they match no text.
      unk_id: the id of the unknown token.
      lowercase: whether to lower the case.

    Raises:
      MmflaxError: the vocabulary is not a SentencePiece one.
    """

    def __init__(
        self, data: Mapping[str, Any], specials: Mapping[str, int], unk_id: int, lowercase: bool
    ):
        model, normalizer = data["model"], data["normalizer"] or {}
        if model["type"] != "Unigram":
            raise MmflaxError(
                f"A SigLIP tokenizer of kind {model['type']} was found, expected Unigram; name "
                "the class it has in tokenizer_config.json."
            )
        charsmap = b""
        for part in normalizer.get("normalizers", [normalizer]):
            if part.get("type") == "Precompiled":
                charsmap = base64.b64decode(part["precompiled_charsmap"])
        hidden = {unk_id, *specials.values()}
        vocabulary = [
            (f"\0{index}\0" if index in hidden else text, score)
            for index, (text, score) in enumerate(model["vocab"])
        ]
        fallback = bool(model.get("byte_fallback", False))
        self._map = CharsMap(charsmap)
        self._model = models.Unigram(vocabulary, unk_id, fallback)
        self._specials = dict(specials)
        self._lowercase = lowercase
        self._before = model["vocab"][unk_id][0]
        self._skip = len(self.encode(self._before))
        longest = sorted(specials, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest)) + ")")

    def normalize(self, text: str) -> str:
        """Characters mapped, runs of spaces made one, "▁" for each and before the first word."""
        return (SPACE + re.sub(" +", SPACE, self._map(text).lstrip(" "))).rstrip(SPACE)

    def encode(self, text: str) -> list[int]:
        """The ids that SentencePiece gives to a text without special tokens."""
        normal = self.normalize(text)
        return [token.id for token in self._model.tokenize(normal)] if normal else []

    def ids(self, text: str) -> list[int]:
        """Ids of a text without the closing token."""
        parts = self._split.split(SPACE + text.replace(SPACE, " "))
        ids: list[int] = []
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self._specials[part])
                continue
            if place:
                part = part.lstrip()
            if place + 1 < len(parts):
                part = part.rstrip()
            # A lone prefix before a special token is left out.
            if part and not (part == SPACE and place == 0 and len(parts) > 1):
                new = self.encode(self._before + self._clean(part))
                ids += new[self._skip :] if len(new) >= self._skip else new
        return ids

    def _clean(self, text: str) -> str:
        text = (text.lower() if self._lowercase else text).translate(_NO_PUNCTUATION)
        return re.sub(r"\s+", " ", text).strip()


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _get(message: Mapping[int, list[Any]], number: int, default: Any) -> Any:
    """The last value of a field, which has to be of the default's type."""
    value = message[number][-1] if number in message else default
    if not isinstance(value, type(default)):
        raise ValueError(f"field {number} is {type(value).__name__}")
    return value


def _fields(data: bytes) -> dict[int, list[Any]]:
    """The values of every field of a protobuf message, by its number."""
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        value: int | float | bytes
        if wire == 0:
            value, place = _varint(data, place)
        elif wire == 5:
            value, place = struct.unpack_from("<f", data, place)[0], place + 4
        elif wire == 1:
            value, place = struct.unpack_from("<d", data, place)[0], place + 8
        elif wire == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
            if len(value) != size:
                raise ValueError("it ends early")
        else:
            raise ValueError(f"unknown wire type {wire}")
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
