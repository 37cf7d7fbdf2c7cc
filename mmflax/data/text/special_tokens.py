"""What stands around a text and pads it: `[CLS] x [SEP]`, `<s> x </s>`, or only `x </s>`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

TEXT, SECOND = "A", "B"
Part = tuple[int | str, int]  # a token's id, TEXT or SECOND; then the token type


class Frame(NamedTuple):
    """The special tokens of one text, and of two texts that are read together."""

    single: tuple[Part, ...]
    pair: tuple[Part, ...]

    def around(self, pair: bool) -> int:
        """How many special tokens a text (or two) is given."""
        return sum(isinstance(what, int) for what, _ in (self.pair if pair else self.single))

    def fill(
        self, text: Sequence[int], second: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and token types of a text, or two, among the special tokens."""
        ids: list[int] = []
        types: list[int] = []
        for what, kind in self.single if second is None else self.pair:
            new = [what] if isinstance(what, int) else text if what == TEXT else second or ()
            ids += new
            types += [kind] * len(new)
        return ids, types


def bert_frame(cls: int, sep: int) -> Frame:
    """`[CLS] a [SEP] b [SEP]`, with type 1 from b on."""
    single: tuple[Part, ...] = ((cls, 0), (TEXT, 0), (sep, 0))
    return Frame(single, (*single, (SECOND, 1), (sep, 1)))


def roberta_frame(cls: int, sep: int) -> Frame:
    """`<s> a </s></s> b </s>`, all of type 0; CLIP's too, with its own tokens."""
    single: tuple[Part, ...] = ((cls, 0), (TEXT, 0), (sep, 0))
    return Frame(single, (*single, (sep, 0), (SECOND, 0), (sep, 0)))


def ending_frame(sep: int) -> Frame:
    """`a </s> b </s>`: nothing before a text (T5, SigLIP)."""
    return Frame(((TEXT, 0), (sep, 0)), ((TEXT, 0), (sep, 0), (SECOND, 0), (sep, 0)))


def frame_of(section: Mapping[str, Any] | None) -> Frame | None:
    """The frame that the `post_processor` of a tokenizer.json says, if it says one."""
    for one in _processors(section):
        if one["type"] == "TemplateProcessing":
            ids = {name: token["ids"] for name, token in one["special_tokens"].items()}
            return Frame(_template(one["single"], ids), _template(one["pair"], ids))
        if one["type"] in ("RobertaProcessing", "BertProcessing"):
            build = roberta_frame if one["type"] == "RobertaProcessing" else bert_frame
            return build(one["cls"][1], one["sep"][1])
    return None


def _processors(section: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if section is not None:
        yield from section["processors"] if section["type"] == "Sequence" else (section,)


def _template(parts: Sequence[Mapping[str, Any]], ids: Mapping[str, Sequence[int]]) -> tuple:
    found: list[Part] = []
    for part in parts:
        ((kind, value),) = part.items()
        if kind == "Sequence":
            found.append((value["id"], value["type_id"]))
        else:
            found += [(index, value["type_id"]) for index in ids[value["id"]]]
    return tuple(found)


def share(first: int, second: int, room: int) -> tuple[int, int]:
    """How many pieces of each text stay where both have `room`: the longer one loses first.

    What `longest_first` means in the `tokenizers` library.
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if first > second else (short, long)
