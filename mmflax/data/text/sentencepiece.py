"""SentencePiece models without their library: the file, its text normalisation, SigLIP's rules.

The file is a protobuf (`sentencepiece_model.proto`); its character map is a double-array trie of
byte strings, each with what replaces it, the longest match first (Kudo and Richardson 2018,
arXiv:1808.06226). `tokenizers` has the search for the best pieces, but normalises some sequences
of combining characters otherwise, so that is done here where the original used SentencePiece.
"""

from __future__ import annotations

import re
import string
import struct
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from tokenizers import models

from mmflax.errors import MmflaxError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_UNIGRAM = 1


class Piece(NamedTuple):
    """An entry of the vocabulary; `kind` is NORMAL, UNKNOWN, CONTROL or USER_DEFINED."""

    text: str
    score: float
    kind: int


class Spiece(NamedTuple):
    """What a `spiece.model` holds."""

    pieces: tuple[Piece, ...]
    charsmap: bytes
    unk_id: int


def parse(data: bytes, name: str) -> Spiece:
    """Reads a Unigram model; `name` is for errors.

    Raises:
      MmflaxError: not such a file, of another kind, or with settings that are not supported.
    """
    try:
        model = list(_fields(data))
        pieces = tuple(_piece(value) for number, value in model if number == 1)
        trainer = dict(_fields(_last(model, 2)))
        normalizer = dict(_fields(_last(model, 3)))
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise MmflaxError(f"{name} is not a SentencePiece model ({error}).") from error
    if not pieces:
        raise MmflaxError(f"{name} is not a SentencePiece model (it holds no pieces).")
    if trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise MmflaxError(
            f"{name} is a SentencePiece model of type {trainer[3]!r}, expected Unigram (1); save "
            "the tokenizer with transformers, which writes a tokenizer.json that can be read."
        )
    changed = [
        flag
        for flag, found in (
            ("add_dummy_prefix", normalizer.get(3, 1)),
            ("remove_extra_whitespaces", normalizer.get(4, 1)),
            ("escape_whitespaces", normalizer.get(5, 1)),
        )
        if not found
    ]
    if trainer.get(24, 0):
        changed.append("treat_whitespace_as_suffix")
    if changed:
        raise MmflaxError(
            f"{name} was trained with another {', '.join(changed)} than usual, which is not "
            "supported; save the tokenizer with transformers as a tokenizer.json."
        )
    charsmap = normalizer.get(2, b"")
    return Spiece(pieces, charsmap if isinstance(charsmap, bytes) else b"", int(trainer.get(40, 0)))


class CharsMap:
    """`replace` what a SentencePiece character map says; an empty map changes nothing."""

    def __init__(self, charsmap: bytes):
        size = struct.unpack_from("<I", charsmap)[0] if charsmap else 0
        self._units = struct.unpack_from(f"<{size // 4}I", charsmap, 4) if size else ()
        self._strings = charsmap[4 + size :]

    def first(self, data: bytes, start: int) -> tuple[bytes, int]:
        """What replaces the longest known sequence at `start` (else its character), and its end."""
        units, best = self._units, None
        if units:
            node = _offset(units[0])
            for end in range(start, len(data)):
                node ^= data[end]
                if node >= len(units):
                    break
                unit = units[node]
                if unit & 0x800000FF != data[end]:
                    break
                node ^= _offset(unit)
                if unit >> 8 & 1:
                    best = (units[node] & 0x7FFFFFFF, end + 1)
        if best is not None:
            where, end = best
            return self._strings[where : self._strings.index(b"\0", where)], end
        end = start + 1
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
        return data[start:end], end


class Encoder:
    """Text to the ids that SentencePiece gives, with its usual normalisation.

    Pieces of the `unspelt` ids (the unknown and the control tokens) are never found in a text.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[str, float]],
        charsmap: bytes,
        unk_id: int,
        unspelt: Container[int],
    ):
        self._map = CharsMap(charsmap)
        words = [
            (f"\0{index}\0" if index in unspelt else text, score)
            for index, (text, score) in enumerate(pieces)
        ]
        self._model = models.Unigram(words, unk_id, False)

    def ids(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        normal = self.normalise(text)
        return [token.id for token in self._model.tokenize(normal)] if normal else []

    def normalise(self, text: str) -> str:
        """Characters mapped, runs of spaces made one, "▁" for each and before the first word."""
        data = text.encode("utf-8", "replace")
        out = bytearray()
        begun, after_space = False, True
        start, space = 0, SPACE.encode()
        while start < len(data):
            chunk, start = self._map.first(data, start)
            if not begun:
                if chunk == b" ":
                    continue
                begun = True
                out += space
            if after_space:
                chunk = chunk.lstrip(b" ")
            if chunk:
                out += chunk.replace(b" ", space)
                after_space = chunk.endswith(b" ")
        while out.endswith(space):
            del out[-len(space) :]
        return out.decode("utf-8", "replace")


class SiglipText:
    """SigLIP's text: lower case, no ASCII punctuation, single spaces, then SentencePiece.

    As `SiglipTokenizer` of transformers: special tokens that stand in the text are kept and take
    the spaces around them, and the pieces are those after an unknown token, which keeps a word's
    first piece as it is inside a text.
    """

    def __init__(self, encoder: Encoder, specials: dict[str, int], unk: str, lowercase: bool):
        self._encoder = encoder
        self._specials = specials
        self._lowercase = lowercase
        self._before = unk
        self._skip = len(encoder.ids(unk))
        longest = sorted(specials, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest)) + ")")

    def ids(self, text: str) -> list[int]:
        """Ids of a text without the closing token."""
        parts = self._split.split(SPACE + text.replace(SPACE, " "))
        found: list[int] = []
        for place, part in enumerate(parts):
            if place % 2:
                found.append(self._specials[part])
                continue
            if place:
                part = part.lstrip()
            if place + 1 < len(parts):
                part = part.rstrip()
            if part:
                if place == 0 and len(parts) > 1 and part == SPACE:
                    continue  # a lone prefix before a special token
                ids = self._encoder.ids(self._before + self._clean(part))
                found += ids[self._skip :] if len(ids) >= self._skip else ids
        return found

    def _clean(self, text: str) -> str:
        if self._lowercase:
            text = text.lower()
        text = text.translate(_NO_PUNCTUATION)
        return re.sub(r"\s+", " ", text).strip()


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(number, value) of every field of a protobuf message."""
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
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _last(model: list[tuple[int, int | float | bytes]], number: int) -> bytes:
    found = [value for at, value in model if at == number]
    return found[-1] if found and isinstance(found[-1], bytes) else b""


def _piece(data: int | float | bytes) -> Piece:
    if not isinstance(data, bytes):
        raise ValueError("a piece is not a message")
    fields = dict(_fields(data))
    text = fields.get(1, b"")
    return Piece(
        text.decode() if isinstance(text, bytes) else "",
        float(fields.get(2, 0.0)),
        int(fields.get(3, NORMAL)),
    )
