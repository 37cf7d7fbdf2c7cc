"""Learns a WordPiece vocabulary, always the same one from the same texts.

Merges the most frequent pair of pieces until the vocabulary is full, as BPE does (Sennrich et al.
2016, algorithm 1), over pieces marked ``##`` inside a word (Schuster and Nakajima 2012 merge by
likelihood; the ``tokenizers`` trainer merges by count, and so do we). We do not use that trainer
because it breaks ties by the iteration order of a randomly seeded hash map: the same texts gave
another vocabulary in every process, and so a run could not be repeated.
"""

import heapq
from collections import Counter
from collections.abc import Mapping

Pair = tuple[str, str]


def learn_wordpieces(word_counts: Mapping[str, int], max_pieces: int) -> list[str]:
    """At most ``max_pieces`` pieces: the alphabet, then merges, most frequent first.

    Each letter enters both as a word's start and as its continuation, so that any word made of
    known letters can be spelled. Ties go to the pair that sorts first.
    """
    letters: Counter[str] = Counter()
    for word, count in word_counts.items():
        for letter in word:
            letters[letter] += count
    # The rarest letters go first when even the alphabet does not fit.
    ranked = sorted(letters, key=lambda letter: (-letters[letter], letter))[: max_pieces // 2]
    pieces = [piece for letter in sorted(ranked) for piece in (letter, "##" + letter)]
    known = set(pieces)

    spellable = [word for word in sorted(word_counts) if set(word) <= set(ranked)]
    words = [[word[0], *("##" + letter for letter in word[1:])] for word in spellable]
    counts = [word_counts[word] for word in spellable]
    pair_counts: Counter[Pair] = Counter()
    where: dict[Pair, set[int]] = {}
    for index, word_pieces in enumerate(words):
        for pair in zip(word_pieces, word_pieces[1:], strict=False):
            pair_counts[pair] += counts[index]
            where.setdefault(pair, set()).add(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    while heap and len(pieces) < max_pieces:
        negative, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -negative:  # stale: the count changed since this entry was pushed
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        merged = pair[0] + pair[1][2:]
        if merged not in known:
            known.add(merged)
            pieces.append(merged)
        changed: set[Pair] = set()
        for index in where.pop(pair):
            before, after = words[index], _merge(words[index], pair, merged)
            for old in zip(before, before[1:], strict=False):
                pair_counts[old] -= counts[index]
            for new in zip(after, after[1:], strict=False):
                pair_counts[new] += counts[index]
                where.setdefault(new, set()).add(index)
                changed.add(new)
            words[index] = after
        pair_counts[pair] = 0
        for new in changed:
            heapq.heappush(heap, (-pair_counts[new], new))
    return pieces


def _merge(pieces: list[str], pair: Pair, merged: str) -> list[str]:
    result: list[str] = []
    index = 0
    while index < len(pieces):
        if tuple(pieces[index : index + 2]) == pair:
            result.append(merged)
            index += 2
        else:
            result.append(pieces[index])
            index += 1
    return result
