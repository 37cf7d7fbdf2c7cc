"""The vocabulary is a pure function of the texts, and ids lead back to them."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from mmflax.data.text.tokenizer import SPECIALS, Tokenizer
from mmflax.data.text.wordpiece import learn_wordpieces
from mmflax.errors import MmflaxError

TEXTS = ["What color is the cat?", "How many cats are there?", "Is the cat red?"] * 3


def test_specials_come_first_and_known_words_round_trip():
    tokenizer = Tokenizer.learn(TEXTS, vocab_size=400)
    assert [tokenizer.token(index) for index in range(5)] == list(SPECIALS)
    tokens, mask = tokenizer.encode("How many cats?", 12)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    assert tokens[0] == tokenizer.cls_id and tokens[mask.sum() - 1] == tokenizer.sep_id
    assert (tokens[~mask] == tokenizer.pad_id).all() and mask.sum() == 6
    assert tokenizer.decode(tokens) == "how many cats?"


def test_a_word_never_seen_is_spelled_from_known_letters():
    tokenizer = Tokenizer.learn(TEXTS, vocab_size=400)
    tokens, mask = tokenizer.encode("react", 12)
    assert tokenizer.unk_id not in tokens[mask]
    assert tokenizer.decode(tokens) == "react"
    assert tokenizer.unk_id in tokenizer.encode("日", 4)[0]


def test_a_long_text_keeps_its_sep():
    tokens, mask = Tokenizer.learn(TEXTS).encode("cat " * 50, 6)
    assert mask.all() and tokens[-1] == 3


def test_the_most_frequent_pair_merges_first_and_ties_sort():
    pieces = learn_wordpieces({"ab": 5, "cd": 5, "ef": 9}, 15)
    assert pieces[12:] == ["ef", "ab", "cd"]
    # The last place goes to the pair that counts 2 + 3 together, not to either word's own.
    assert learn_wordpieces({"xya": 2, "xyb": 3, "cd": 4}, 13)[12:] == ["xy"]


def test_counts_stay_right_while_merging():
    """Against the definition: recount every pair before each merge."""
    rng = np.random.default_rng(0)
    words = Counter("".join(rng.choice(list("abcd"), rng.integers(1, 7))) for _ in range(300))
    split = {word: [word[0], *("##" + letter for letter in word[1:])] for word in words}
    expected = [piece for letter in "abcd" for piece in (letter, "##" + letter)]
    while len(expected) < 40:
        pairs: Counter = Counter()
        for word, pieces in split.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged = best[0] + best[1][2:]
        if merged not in expected:
            expected.append(merged)
        for pieces in split.values():
            index = 0
            while index < len(pieces) - 1:
                if (pieces[index], pieces[index + 1]) == best:
                    pieces[index : index + 2] = [merged]
                index += 1
    assert learn_wordpieces(words, 40) == expected


def test_every_process_learns_the_same_vocabulary():
    """Hash seeds differ between processes; the trainer in `tokenizers` depends on its own."""
    code = (
        "import random, hashlib;"
        "from mmflax.data.text.tokenizer import Tokenizer; r = random.Random(0);"
        "texts = [''.join(r.choice('abcdefg ') for _ in range(30)) for _ in range(300)];"
        "t = Tokenizer.learn(texts, vocab_size=300);"
        "print(hashlib.sha256(t.to_json().encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_loaded_vocabulary_may_hold_the_specials_anywhere(tmp_path):
    words = ["[PAD]", "unused", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "hello", "##s"]
    tokenizer = Tokenizer.from_vocabulary(words)
    assert tokenizer.encode("Hellos", 5)[0].tolist() == [2, 6, 7, 3, 0]
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    assert Tokenizer.load(tmp_path / "tokenizer.json") == tokenizer


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda tmp: Tokenizer.learn(["", " "]), "no text"),
        (lambda tmp: Tokenizer.learn(TEXTS, vocab_size=3), "at least 7"),
        (lambda tmp: Tokenizer.from_vocabulary(["a", "[PAD]"]), r"no \[UNK\], \[CLS\]"),
        (lambda tmp: Tokenizer.from_vocabulary([*SPECIALS, "a", "a"]), "twice"),
        (lambda tmp: Tokenizer.load(tmp / "none.json"), "no tokenizer at .*none.json"),
    ],
)
def test_errors(act, message, tmp_path):
    with pytest.raises(MmflaxError, match=message):
        act(tmp_path)
