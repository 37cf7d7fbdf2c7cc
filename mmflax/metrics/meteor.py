"""METEOR 1.5 with exact and stem matches (Denkowski & Lavie 2014, "Meteor Universal").

Parameters and weights are version 1.5's for English ("rank" task): alpha 0.85, beta 0.2, gamma 0.6,
delta 0.75; exact 1, stem 0.6. Left out: WordNet synonyms and the paraphrase table, so scores are
somewhat below those that coco-caption prints, and should be compared with each other alone. On the
same tokens this is the official program run with `-m "exact stem" -w "1.0 0.6"`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from mmflax.metrics.stemmer import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
WEIGHTS = (1.0, 0.6)  # exact, stem
BEAM = 40
# Version 1.5's English function words: relative frequency above 1e-3 in its training text
# (Denkowski & Lavie 2011).
FUNCTION_WORDS = frozenset(
    """the , . to of and a in that for " is on 's it with was as said at he by be from have has are
    his but an this not i will ’ they ) -rrb- ( -lrb- who their had we which were been more or s its
    would about new one after you : also up when there than $ all out her people she year two - can
    if last first “ over other ” into some what so -- no time years could ? 't — '""".split()
)


class _Counts(NamedTuple):
    """What scores are made of; those of a corpus are sums of those of its sentences."""

    length: tuple[int, int] = (0, 0)  # candidate, reference
    function: tuple[int, int] = (0, 0)
    content_matches: tuple[int, ...] = (0, 0, 0, 0)  # candidate exact, stem; reference exact, stem
    function_matches: tuple[int, ...] = (0, 0, 0, 0)
    chunks: int = 0

    @property
    def matches(self) -> int:
        """Matched candidate words, as many as matched reference words."""
        return sum(self.content_matches[:2]) + sum(self.function_matches[:2])

    @property
    def perfect(self) -> bool:
        return self.length == (self.matches, self.matches) and self.chunks == 1

    def plus(self, other: _Counts) -> _Counts:
        def add(a, b):
            return tuple(x + y for x, y in zip(a, b, strict=True))

        chunks = 0 if other.perfect else other.chunks  # a perfect sentence is not broken
        return _Counts(
            add(self.length, other.length),
            add(self.function, other.function),
            add(self.content_matches, other.content_matches),
            add(self.function_matches, other.function_matches),
            self.chunks + chunks,
        )


def corpus_score(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, list[float]]:
    """The corpus's score (of summed counts, as coco-caption reports it) and each sentence's.

    Both are in 0..1, of tokens already in lower case. The best reference of a candidate counts.
    """
    total, scores = _Counts(), []
    for candidate, texts in zip(candidates, references, strict=True):
        best, best_score = _Counts(), -1.0
        for reference in texts:
            counts = _count(tuple(candidate), tuple(reference))
            score = _score(counts)
            if score > best_score:
                best, best_score = counts, score
        total = total.plus(best)
        scores.append(best_score)
    return _score(total), scores


def _score(c: _Counts) -> float:
    """F-mean of precision and recall, less the penalty for a broken order."""
    rates = []
    for side in (0, 1):
        matched = sum(
            weight
            * (
                DELTA * c.content_matches[2 * side + stage]
                + (1 - DELTA) * c.function_matches[2 * side + stage]
            )
            for stage, weight in enumerate(WEIGHTS)
        )
        length = DELTA * (c.length[side] - c.function[side]) + (1 - DELTA) * c.function[side]
        rates.append(matched / length if length else 0.0)
    precision, recall = rates
    if not precision or not recall:
        return 0.0
    mean = 1.0 / ((1 - ALPHA) / precision + ALPHA / recall)
    broken = 0.0 if c.perfect else c.chunks / c.matches
    return max(mean * (1.0 - GAMMA * broken**BETA), 0.0)


@functools.lru_cache(maxsize=1 << 15)  # a bootstrap asks for the same pairs again and again
def _count(candidate: tuple[str, ...], reference: tuple[str, ...]) -> _Counts:
    pairs = _align(candidate, reference)
    content, function = [0] * 4, [0] * 4
    for at, found in enumerate(pairs):
        if found is not None:
            where, stage = found
            for side, word in enumerate((candidate[where], reference[at])):
                kind = function if word in FUNCTION_WORDS else content
                kind[2 * side + stage] += 1
    return _Counts(
        (len(candidate), len(reference)),
        (_functional(candidate), _functional(reference)),
        tuple(content),
        tuple(function),
        _chunks(pairs),
    )


def _functional(words: Sequence[str]) -> int:
    return sum(word in FUNCTION_WORDS for word in words)


_Match = tuple[int, int]  # position in the candidate, stage (0 exact, 1 stem)


class _Path(NamedTuple):
    """A partial alignment: how good it is, and which candidate words it has used."""

    matches: int = 0
    chunks: int = 0
    distance: int = 0
    end: int = -1  # where the open chunk would continue in the candidate; -1 = none is open
    used: int = 0  # a bit for each candidate word
    pairs: tuple[_Match | None, ...] = ()

    @property
    def order(self) -> tuple[int, int, int]:
        return -self.matches, self.chunks, self.distance

    def take(self, at: int, match: _Match) -> _Path:
        where, stage = match
        return self._replace(
            # The official search keeps weighted matches as whole numbers, so a stem's half is 0.
            matches=self.matches + (2 if stage == 0 else 0),
            chunks=self.chunks + (self.end not in (-1, where)),
            end=where + 1,
            used=self.used | 1 << where,
            pairs=(*self.pairs, match),
        )

    def skip(self) -> _Path:
        return self._replace(
            chunks=self.chunks + (self.end != -1), end=-1, pairs=(*self.pairs, None)
        )


def _align(candidate: Sequence[str], reference: Sequence[str]) -> tuple[_Match | None, ...]:
    """For every reference word, the candidate word it is matched with (Denkowski & Lavie
    2011): most matches, then fewest chunks, then least distance, by beam search.

    The order in which equal paths are kept, and distances that are charged to the sibling paths,
    are the official program's, or scores of repeated words would differ.
    """
    if not candidate or not reference:
        return (None,) * len(reference)
    stages = [list(candidate)]
    ours = [list(reference)]
    if list(candidate) != list(reference):
        stages.append([stem(word) for word in candidate])
        ours.append([stem(word) for word in reference])
    options: list[list[_Match]] = [[] for _ in reference]
    covered = [0] * len(candidate)
    for stage, (words, own) in enumerate(zip(stages, ours, strict=True)):
        for at, word in enumerate(own):
            for where, other in enumerate(words):
                if word == other and not (stage and reference[at] == candidate[where]):
                    options[at].append((where, stage))
                    covered[where] += 1
    fixed = [len(found) == 1 and covered[found[0][0]] == 1 for found in options]
    taken = sum(1 << found[0][0] for found, one in zip(options, fixed, strict=True) if one)

    paths = [_Path(used=taken)]
    for at, found in enumerate(options):
        following: list[_Path] = []
        for path in sorted(paths, key=lambda path: path.order)[:BEAM]:
            if fixed[at]:
                step = path.take(at, found[0])
                following.append(step._replace(distance=path.distance + abs(at - found[0][0])))
                continue
            distance = path.distance
            for match in found:
                if not path.used >> match[0] & 1:
                    following.append(path.take(at, match)._replace(distance=distance))
                    distance += abs(at - match[0])
            following.append(path.skip()._replace(distance=distance))
        paths = following
    closed = [
        path._replace(chunks=path.chunks + (path.end != -1))
        for path in sorted(paths, key=lambda path: path.order)[:BEAM]
    ]
    return min(closed, key=lambda path: path.order).pairs


def _chunks(pairs: Sequence[_Match | None]) -> int:
    """Runs of matches that are adjacent and in order in both sentences."""
    count, end = 0, -1
    for pair in pairs:
        if pair is None:
            end = -1
            continue
        count += pair[0] != end
        end = pair[0] + 1
    return count
