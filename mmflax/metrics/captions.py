"""Caption metrics against reference texts: BLEU, ROUGE-L and CIDEr-D.

On the same tokens the values are those of pycocoevalcap, the code behind the COCO caption server
(Chen et al. 2015): BLEU and ROUGE-L in 0..1, CIDEr-D in 0..10. Texts are tokenized here
(`mmflax.metrics.tokens`), where the official code starts Stanford's tokenizer in Java.
METEOR and SPICE are not offered (`mmflax.metrics.registry.NOT_OFFERED` has the reasons).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmflax.errors import MmflaxError
from mmflax.metrics.tokens import tokenize

Texts = Sequence[str]
References = Sequence[Sequence[str]]
Words = tuple[str, ...]
_ORDERS = (1, 2, 3, 4)
# Texts of a split, which a bootstrap scores again and again.
_REMEMBERED = 1 << 15


def bleu(candidates: Texts, references: References, *, tokenized: bool = False) -> list[float]:
    """BLEU-1 to BLEU-4 of the corpus (Papineni et al. 2002), without smoothing.

    The reference length is that of the closest reference, the shorter of two as close.
    `tokenized=True` takes texts as tokens with spaces between them.
    """
    words, texts = _tokens(candidates, references, tokenized)
    right, guessed = [0] * 4, [0] * 4
    length = reference_length = 0
    for candidate, refs in zip(words, texts, strict=True):
        length += len(candidate)
        reference_length += min((abs(len(r) - len(candidate)), len(r)) for r in refs)[1]
        most: Counter[Words] = Counter()
        for ref in refs:
            most |= _ngrams(ref)
        for gram, count in _ngrams(candidate).items():
            right[len(gram) - 1] += min(count, most[gram])
        for n in _ORDERS:
            guessed[n - 1] += max(0, len(candidate) - n + 1)
    # The official code's own guards against division by zero, so that values agree.
    tiny, small = 1e-15, 1e-9
    ratio = (length + tiny) / (reference_length + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in _ORDERS:
        product *= (right[n - 1] + tiny) / (guessed[n - 1] + small)
        scores.append(product ** (1 / n) * brevity)
    return scores


def rouge_l(candidates: Texts, references: References, *, tokenized: bool = False) -> float:
    """The mean ROUGE-L of the corpus (Lin 2004, section 3), beta 1.2.

    Precision and recall are each the best over the references, as in the official code.
    """
    words, texts = _tokens(candidates, references, tokenized)
    beta2 = 1.2**2
    scores = []
    for candidate, refs in zip(words, texts, strict=True):
        # An empty text is one empty token to the official code, equal to another such.
        ours = candidate or ("",)
        theirs = [ref or ("",) for ref in refs]
        shared = [_common(ref, ours) for ref in theirs]
        precision = max(n / len(ours) for n in shared)
        recall = max(n / len(ref) for n, ref in zip(shared, theirs, strict=True))
        both = recall + beta2 * precision
        scores.append((1 + beta2) * precision * recall / both if precision and recall else 0.0)
    return float(np.mean(scores))


def cider_d(
    candidates: Texts, references: References, *, tokenized: bool = False, sigma: float = 6.0
) -> float:
    """The mean CIDEr-D of the corpus (Vedantam et al. 2015), 0..10.

    The weights of words come from the references of this very corpus, so a corpus of one example
    scores 0, and values compare only on the same split.
    """
    words, texts = _tokens(candidates, references, tokenized)
    frequency: Counter[Words] = Counter()
    for refs in texts:
        frequency.update({gram for ref in refs for gram in _ngrams(ref)})
    log_size = math.log(len(texts))
    scores = []
    for candidate, refs in zip(words, texts, strict=True):
        ours, norm = _weights(candidate, frequency, log_size)
        total = 0.0
        for ref in refs:
            theirs, ref_norm = _weights(ref, frequency, log_size)
            cosine = [0.0] * 4
            for gram, weight in ours.items():
                other = theirs.get(gram, 0.0)
                cosine[len(gram) - 1] += min(weight, other) * other
            for n in range(4):
                if norm[n] and ref_norm[n]:
                    cosine[n] /= norm[n] * ref_norm[n]
            # The official code measures length in pairs of words.
            delta = max(len(candidate) - 1, 0) - max(len(ref) - 1, 0)
            total += sum(cosine) / 4 * math.exp(-(delta**2) / (2 * sigma**2))
        scores.append(10.0 * total / len(refs))
    return float(np.mean(scores))


def caption_scores(candidates: Texts, references: References) -> dict[str, float]:
    """`bleu_1` … `bleu_4`, `rouge_l` and `cider_d`, tokenizing once."""
    words, texts = _tokens(candidates, references, False)
    ours, theirs = [" ".join(w) for w in words], [[" ".join(r) for r in refs] for refs in texts]
    scores = {
        f"bleu_{n}": v for n, v in zip(_ORDERS, bleu(ours, theirs, tokenized=True), strict=True)
    }
    for name, measure in (("rouge_l", rouge_l), ("cider_d", cider_d)):
        scores[name] = measure(ours, theirs, tokenized=True)
    return scores


def _tokens(
    candidates: Texts, references: References, tokenized: bool
) -> tuple[list[Words], list[list[Words]]]:
    if not len(candidates) or len(candidates) != len(references):
        raise MmflaxError(
            f"There are {len(candidates)} generated texts for {len(references)} lists of "
            "references; expected as many, and at least one."
        )
    for row, refs in enumerate(references):
        if isinstance(refs, str) or not len(refs):
            raise MmflaxError(
                f"The references of text {row} are {refs!r}; expected a list of at least one text."
            )
    split = str.split if tokenized else tokenize

    def words(text: str) -> Words:
        return tuple(split(text))

    return [words(c) for c in candidates], [[words(r) for r in refs] for refs in references]


@functools.lru_cache(maxsize=_REMEMBERED)
def _ngrams(words: Words) -> Counter[Words]:
    return Counter(words[i : i + n] for n in _ORDERS for i in range(len(words) - n + 1))


def _weights(
    words: Words, frequency: Counter[Words], log_size: float
) -> tuple[dict[Words, float], list[float]]:
    """tf-idf of every n-gram, and the norm of each order's."""
    weights = {
        gram: count * (log_size - math.log(max(1.0, frequency[gram])))
        for gram, count in _ngrams(words).items()
    }
    squares = [0.0] * 4
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    return weights, [math.sqrt(square) for square in squares]


@functools.lru_cache(maxsize=_REMEMBERED)
def _common(a: Words, b: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            kept = row[j]
            row[j] = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal = kept
    return row[-1]
