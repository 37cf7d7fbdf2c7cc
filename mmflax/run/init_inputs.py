"""Whether a run makes its batches as the weights that it starts from expect them.

Numbers that depend on the pixels' normalization or on the tokens' ids are silently wrong with
another mean, another vocabulary or another order of the answers, so these are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmflax.data.processor import Processor
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.pretrained.processor import PublishedProcessor
from mmflax.run.init_meaning import Difference
from mmflax.run.init_sources import Model

# What two tokenizers of the same words may read differently: case, accents, spaces, digits,
# punctuation, other scripts.
TEXTS = (
    "A photo of a Cat.", "what  color is the man's T-SHIRT?", "CAFÉ naïve, 3,000.50 km/h",
    "don't (maybe) re-open #1", "Ünïcode ｆｕｌｌ 東京 かき",
)  # fmt: skip
_LENGTH = 64
_CLOSE = 1e-5


def pixel_differences(theirs: Model, ours: Model, source: object) -> Iterator[Difference]:
    """What differs in the normalization of pixels, where both are known."""
    given, own = normalization(theirs.processor), normalization(ours.processor)
    if given is None or own is None:
        return
    for name, a, b in zip(("mean", "std"), given, own, strict=True):
        if not np.allclose(a, b, rtol=0, atol=_CLOSE):
            a, b = (tuple(round(float(x), 8) for x in value) for value in (a, b))
            text = f"({','.join(map(str, a))})"
            yield Difference("processor", name, a, b, f"processor.{name}={text}")


def normalization(processor: Processor | PublishedProcessor | None) -> tuple | None:
    """(mean, std) of pixels in 0..1; None where no pixels are read."""
    if isinstance(processor, Processor):
        return (processor.mean, processor.std) if processor.image_size else None
    if processor is None or processor.pixels is None:
        return None
    slope, start = processor.pixels.scale_and_shift()
    std = 1 / (255 * slope)
    return -start * std, std


def pixel_notes(theirs: Model, ours: Model, source: object) -> Iterator[str]:
    """Lines on how images are resized otherwise than for the weights: a choice, not a mistake."""
    pixels: Any = getattr(theirs.processor, "pixels", theirs.processor)
    own = ours.processor
    if not isinstance(own, Processor) or not own.image_size or pixels is None:
        return
    if pixels.filter != own.filter:
        yield f"images are resized with {own.filter} here, with {pixels.filter} in {source}"
    how = getattr(pixels.resize, "how", pixels.resize)
    if how is not None and how != own.resize:
        yield f"images are resized by {own.resize!r} here, by {how!r} in {source}"


def word_differences(theirs: Model, ours: Model, source: object) -> Iterator[Difference]:
    """What differs in the tokens of a text, where both tokenizers are known."""
    given, own = (getattr(model.processor, "tokenizer", None) for model in (theirs, ours))
    if given is None or own is None:
        return
    found = different_tokens(given, own)
    if found is not None:
        yield Difference("processor", "tokenizer", *found, f"processor.from={source}")


def different_tokens(theirs: Tokenizer, ours: Tokenizer) -> tuple[str, str] | None:
    """A word's id, or a text's tokens, that two tokenizers give differently; None if all agree."""
    if theirs == ours:
        return None
    words = theirs.vocabulary(), ours.vocabulary()
    for word in sorted(words[0].keys() | words[1].keys(), key=lambda w: words[0].get(w, 1 << 62)):
        a, b = (vocabulary.get(word) for vocabulary in words)
        if a != b:
            return tuple(  # type: ignore[return-value]
                f"without {word!r}" if index is None else f"with id {index} for {word!r}"
                for index in (a, b)
            )
    for text in TEXTS:
        given, own = (x.ids_and_types(text, _LENGTH)[0] for x in (theirs, ours))
        if given != own:
            return f"one that gives {given} for {text!r}", f"one that gives {own}"
    if theirs.reads_padding != ours.reads_padding:
        says = {True: "one whose padding is read", False: "one whose padding is masked"}
        return says[theirs.reads_padding], says[ours.reads_padding]
    return None


def answer_differences(theirs: Model, ours: Model) -> Iterator[Difference]:
    """What differs in the answers that a head's scores stand for, where both are known."""
    if theirs.answers and ours.answers and theirs.answers != ours.answers:
        pairs = zip(theirs.answers, ours.answers, strict=False)
        index = next(
            (i for i, (a, b) in enumerate(pairs) if a != b),
            min(len(theirs.answers), len(ours.answers)),
        )
        a, b = (
            f"a list with {x.answers[index]!r} at place {index}"
            if index < len(x.answers)
            else f"a list of {len(x.answers)}"
            for x in (theirs, ours)
        )
        yield Difference("processor", "answers", a, b)
