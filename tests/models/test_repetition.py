"""Repetition penalty and forbidden n-grams: each row's own text, in greedy, beam and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.decoder.decoding import Limits, beam_search, greedy, row_keys, sample
from mmflax.models.decoder.repetition import penalized, repeating
from mmflax.tasks.generation_model import check_options, limits_of

PAD, BEGIN, END, WORDS = 0, 1, 2, (3, 4, 5)
VOCABULARY = 6
LIMITS = Limits(begin=BEGIN, end=END, pad=PAD, length=9, forbidden=(PAD, BEGIN))
TABLE = np.random.default_rng(3).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32) * 1.5
TABLE[:, END] -= 1.5  # so that texts are long enough to repeat themselves
BIAS = np.random.default_rng(4).normal(size=(16, VOCABULARY)).astype(np.float32)
ROWS = len(BIAS)
# So that texts of the same pairs in another order are not equally probable.
DRIFT = np.random.default_rng(5).normal(size=(9, VOCABULARY)).astype(np.float32) * 0.3


def step(cache, token, position):
    """Logits of the row and, mostly, of the last token, so that texts run in circles."""
    return jnp.asarray(TABLE)[token] + cache["bias"] + jnp.asarray(DRIFT)[position][None], cache


def start():
    return {"bias": jnp.asarray(BIAS)}


# The references, one text at a time ---------------------------------------------------------------


def punished(scores, text, penalty):
    scores = np.array(scores, np.float64)
    for token in set(text):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    return scores


def completing(text, size):
    """Tokens that would make the last `size` tokens a group that stands in the text already."""
    before = text[len(text) - size + 1 :]
    groups = [text[i : i + size] for i in range(len(text) - size + 1)]
    return {group[-1] for group in groups if group[:-1] == before}


def logits_of(row, text):
    return TABLE[text[-1]] + BIAS[row] + DRIFT[len(text) - 1]


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum())


def allowed(text, limits):
    if len(text) == limits.length - 1:
        return [END]
    tokens = [*WORDS, *([END] if len(text) > limits.min_length else [])]
    if limits.no_repeat_ngram_size:
        banned = completing(text, limits.no_repeat_ngram_size)
        tokens = [token for token in tokens if token not in banned] or [END]
    return tokens


def plain_greedy(row, limits):
    text, score = (BEGIN,), 0.0
    while text[-1] != END:
        logits = logits_of(row, text)
        scores = punished(logits, text, limits.repetition_penalty)
        token = max(allowed(text, limits), key=lambda token: scores[token])
        score += log_softmax(logits)[token]
        text = (*text, token)
    return score, text


def plain_beam(row, limits, beams, alpha):
    def length(count):
        return ((5 + count) / 6) ** alpha

    alive, finished = [(0.0, (BEGIN,))], []
    for position in range(limits.length - 1):
        grown = []
        for score, text in alive:
            scores = log_softmax(logits_of(row, text))
            scores = punished(scores, text, limits.repetition_penalty)
            grown += [(score + scores[token], (*text, token)) for token in allowed(text, limits)]
        grown.sort(reverse=True)
        ends = [(score, text) for score, text in grown[:beams] if text[-1] == END]
        finished += [(score / length(position + 1), text) for score, text in ends]
        alive = [(score, text) for score, text in grown if text[-1] != END][:beams]
        ahead = finished and alive and max(finished)[0] >= alive[0][0] / length(position + 1)
        if not alive or (len(finished) >= beams and ahead):
            break
    return max(finished)


OPTIONS = [
    dict(repetition_penalty=1.7),
    dict(repetition_penalty=0.6),
    dict(no_repeat_ngram_size=1),
    dict(no_repeat_ngram_size=2),
    dict(no_repeat_ngram_size=3, min_length=6),
    dict(no_repeat_ngram_size=2, repetition_penalty=1.3, min_length=2),
]


def padded(text):
    return list(text) + [PAD] * (LIMITS.length - len(text))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_greedy_equals_the_plain_one(options):
    limits = LIMITS._replace(**options)
    found = jax.jit(lambda: greedy(step, start(), limits, rows=ROWS))()
    without = greedy(step, start(), LIMITS, rows=ROWS)
    assert (np.asarray(found.tokens) != np.asarray(without.tokens)).any()
    for row in range(ROWS):
        score, text = plain_greedy(row, limits)
        assert found.tokens[row].tolist() == padded(text)
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("beams, alpha", [(2, 0.0), (3, 0.6)])
def test_each_beam_has_its_own_history(options, beams, alpha):
    limits = LIMITS._replace(**options)
    found = jax.jit(
        lambda: beam_search(step, start(), limits, rows=ROWS, beams=beams, alpha=alpha)
    )()
    for row in range(ROWS):
        score, text = plain_beam(row, limits, beams, alpha)
        assert found.tokens[row].tolist() == padded(text)
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)


def test_samples_repeat_no_group():
    limits = LIMITS._replace(no_repeat_ngram_size=2, length=8, min_length=4)
    keys = row_keys(jax.random.key(0), ROWS)
    for text in np.asarray(sample(step, start(), limits, keys=keys).tokens).tolist():
        pairs = list(zip(text, text[1:], strict=False))[: text.index(END)]
        assert len(pairs) == len(set(pairs))


def test_nothing_asked_for_changes_nothing():
    tokens = jnp.asarray([[BEGIN, 3, 4, 3, PAD, PAD]])
    scores = jnp.asarray([[0.5, -0.5, 1.0, -1.0, 2.0, 0.0]])
    np.testing.assert_array_equal(penalized(scores, tokens, 3, 1.0), scores)
    assert not repeating(tokens, 3, 7, VOCABULARY).any()  # longer than any text
    assert np.flatnonzero(repeating(tokens, 3, 2, VOCABULARY)).tolist() == [4]
    # What stands after the position is not written yet.
    assert np.flatnonzero(repeating(tokens, 1, 1, VOCABULARY)).tolist() == [BEGIN, 3]


@pytest.mark.parametrize(
    "options",
    [
        dict(repetition_penalty=0.0),
        dict(repetition_penalty=float("nan")),
        dict(no_repeat_ngram_size=-1),
        dict(no_repeat_ngram_size=2.5),
        dict(no_repeat_ngram_size=True),
        dict(repetition_penalty="high"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_told_when_the_task_is_built(options):
    with pytest.raises(MmflaxError, match="expected"):
        limits_of(LIMITS, check_options("greedy", options))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("penalty", [0.5, 1.2, 2.0])
def test_equals_the_repetition_penalty_of_transformers(penalty):
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(0)
    tokens, scores = rng.integers(0, 20, (7, 12)), rng.normal(size=(7, 20)).astype(np.float32)
    for position in range(12):
        ours = penalized(jnp.asarray(scores), jnp.asarray(tokens), position, penalty)
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor(tokens[:, : position + 1]), torch.tensor(scores)
        )
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_equals_the_n_grams_of_transformers(size):
    torch = pytest.importorskip("torch")
    from transformers import NoRepeatNGramLogitsProcessor

    tokens = np.random.default_rng(size).integers(0, 3, (9, 14))
    for position in range(14):
        ours = repeating(jnp.asarray(tokens), position, size, 5)
        theirs = NoRepeatNGramLogitsProcessor(size)(
            torch.tensor(tokens[:, : position + 1]), torch.zeros(9, 5)
        )
        np.testing.assert_array_equal(ours, np.isinf(theirs.numpy()))
