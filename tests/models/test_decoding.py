"""Search: against brute force and a plain rewriting, row by row, and the filters against numpy."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmflax.errors import MmflaxError
from mmflax.models.decoder.decoding import (
    Limits,
    beam_search,
    greedy,
    keep_top_k,
    keep_top_p,
    length_penalty,
    row_keys,
    sample,
)

PAD, BEGIN, END, WORDS = 0, 1, 2, (3, 4, 5)
LIMITS = Limits(begin=BEGIN, end=END, pad=PAD, length=6, forbidden=(PAD, BEGIN))
STATES = 97
TABLE = np.random.default_rng(0).normal(size=(STATES, 6)).astype(np.float32) * 1.5
TABLE[:, END] += 0.7  # so that texts end early enough for beams to move up
ROWS = 24


def step(cache, token, position):
    """Logits that depend on the row and its whole text so far, through a hash in the cache."""
    state = (cache["state"] * 31 + token * 7 + position) % STATES
    return jnp.asarray(TABLE)[state], {"state": state}


def start(rows=range(ROWS)):
    return {"state": jnp.asarray([11 * row + 5 for row in rows], jnp.int32)}


def log_probabilities(row, text):
    """The model in numpy: log p of every token after `text` (begin included)."""
    state = 11 * row + 5
    for position, token in enumerate(text):
        state = (state * 31 + token * 7 + position) % STATES
    logits = TABLE[state].astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def padded(text, length):
    return list(text) + [PAD] * (length - len(text))


def all_texts(row, limits, alpha):
    """Every text there is with its score, best first."""
    found = []
    for count in range(limits.min_length, limits.length - 1):
        for words in itertools.product(WORDS, repeat=count):
            text = (BEGIN, *words, END)
            score = sum(log_probabilities(row, text[:i])[text[i]] for i in range(1, len(text)))
            found.append((score / penalty(len(text) - 1, alpha), text))
    return sorted(found, reverse=True)


def plain_beam_search(row, limits, beams, alpha):
    """The same search in plain Python, which never stops early for a bound."""
    alive, finished = [(0.0, (BEGIN,))], []
    for position in range(limits.length - 1):
        allowed = [END] if position == limits.length - 2 else [*WORDS, END]
        if position < limits.min_length:
            allowed.remove(END)
        grown = sorted(
            (
                (score + log_probabilities(row, text)[token], (*text, token))
                for score, text in alive
                for token in allowed
            ),
            reverse=True,
        )
        finished += [
            (score / penalty(position + 1, alpha), text)
            for score, text in grown[:beams]
            if text[-1] == END
        ]
        alive = [(score, text) for score, text in grown if text[-1] != END][:beams]
        ahead = (
            finished and alive and max(finished)[0] >= alive[0][0] / penalty(position + 1, alpha)
        )
        if not alive or (len(finished) >= beams and ahead):
            break
    return max(finished)


@functools.cache
def run(beams, alpha, min_length=0, rows=tuple(range(ROWS))):
    limits = LIMITS._replace(min_length=min_length)
    search = jax.jit(
        lambda cache: beam_search(step, cache, limits, rows=len(rows), beams=beams, alpha=alpha)
    )
    return search(start(rows))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beam_search_wide_enough_finds_the_best_text_of_all(alpha):
    found = run(110, alpha)
    lengths = set()
    for row in range(ROWS):
        score, text = all_texts(row, LIMITS, alpha)[0]
        assert found.tokens[row].tolist() == padded(text, 6)
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)
        lengths.add(len(text))
    assert len(lengths) > 1 or alpha == 2.0  # the rows do not all look alike


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("alpha, min_length", [(0.0, 0), (0.6, 0), (2.0, 0), (0.6, 2)])
def test_narrow_beam_search_equals_the_plain_one(beams, alpha, min_length):
    limits = LIMITS._replace(min_length=min_length)
    found = run(beams, alpha, min_length)
    for row in range(ROWS):
        score, text = plain_beam_search(row, limits, beams, alpha)
        assert found.tokens[row].tolist() == padded(text, 6)
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)


def test_wider_beams_find_other_texts():
    """The toy is no trivial one: width and penalty both change what is found."""
    assert (run(1, 0.0).tokens != run(3, 0.0).tokens).any()
    assert (run(3, 0.0).tokens != run(3, 2.0).tokens).any()


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_one_beam_is_greedy(alpha):
    found = jax.jit(lambda cache: greedy(step, cache, LIMITS, rows=ROWS))(start())
    beam = run(1, alpha)
    np.testing.assert_array_equal(found.tokens, beam.tokens)
    lengths = (found.tokens != PAD).sum(axis=1) - 1
    np.testing.assert_allclose(
        found.scores, beam.scores * penalty(np.asarray(lengths), alpha), rtol=1e-6
    )


def test_greedy_follows_the_model():
    found = greedy(step, start(), LIMITS, rows=ROWS)
    for row in range(ROWS):
        text, score = [BEGIN], 0.0
        while text[-1] != END:
            log_p = log_probabilities(row, text)
            allowed = [END] if len(text) == LIMITS.length - 1 else [END, *WORDS]
            token = max(allowed, key=lambda t, log_p=log_p: log_p[t])
            score += log_p[token]
            text.append(token)
        assert found.tokens[row].tolist() == padded(text, 6)
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)


SEARCHES = {
    "greedy": lambda cache, keys: greedy(step, cache, LIMITS, rows=keys.shape[0]),
    "beam": lambda cache, keys: beam_search(
        step, cache, LIMITS, rows=keys.shape[0], beams=3, alpha=0.6
    ),
    "sample": lambda cache, keys: sample(
        step, cache, LIMITS, keys=keys, temperature=1.3, top_k=3, top_p=0.9
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_rows_decoded_together_come_out_as_alone(name):
    search = jax.jit(SEARCHES[name])
    keys = row_keys(jax.random.key(7), ROWS)
    together = search(start(), keys)
    for row in range(ROWS):
        alone = search(start([row]), keys[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])


@pytest.mark.parametrize("name", SEARCHES)
def test_devices_tell_each_other_nothing_but_whether_they_are_done(name):
    """Rows spread over 8 devices stay there: one all-reduce, the loop's condition."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    keys = row_keys(jax.random.key(7), ROWS)
    search = jax.jit(SEARCHES[name], out_shardings=rows)
    placed = jax.device_put((start(), keys), rows)
    program = search.lower(*placed).compile()
    collectives = re.findall(r"(all-\w+|collective-\w+)(?:-start)?\(", program.as_text())
    assert collectives == ["all-reduce"]
    together, alone = program(*placed), jax.jit(SEARCHES[name])(start(), keys)
    np.testing.assert_array_equal(together.tokens, alone.tokens)


@pytest.mark.parametrize("name", SEARCHES)
def test_texts_begin_and_end_within_the_limits(name, monkeypatch):
    limits = LIMITS._replace(min_length=2)
    monkeypatch.setitem(globals(), "LIMITS", limits)
    tokens = np.asarray(SEARCHES[name](start(), row_keys(jax.random.key(3), ROWS)).tokens)
    for text in tokens.tolist():
        body = text[1 : text.index(END)]
        assert text[0] == BEGIN and 2 <= len(body) <= 4 and set(body) <= set(WORDS)
        assert set(text[text.index(END) + 1 :]) <= {PAD}


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_the_loop_stops_with_the_last_row(name):
    calls = []

    def counted(cache, token, position):
        jax.debug.callback(lambda p: calls.append(int(p)), position)
        # Row i is sure to end after `cache` words and cannot before; one beam of five is alive.
        logits = jnp.full((token.shape[0], 6), -jnp.inf).at[:, 3].set(0.0)
        return logits.at[:, END].set(jnp.where(position >= cache, 15.0, -jnp.inf)), cache

    limits = LIMITS._replace(length=40)
    cache = jnp.asarray([0, 3, 1], jnp.int32)
    if name == "greedy":
        found = jax.jit(lambda c: greedy(counted, c, limits, rows=3))(cache)
    else:
        found = jax.jit(lambda c: beam_search(counted, c, limits, rows=3, beams=5))(cache)
    assert (found.tokens == END).argmax(axis=1).tolist() == [1, 4, 2]
    jax.effects_barrier()
    assert sorted(calls) == [0, 1, 2, 3]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_poor_early_ends_do_not_stop_a_good_text(alpha):
    """Ending is second best at first, by far; `beams` such texts must not close the row."""

    def late(cache, token, position):
        odds = jnp.where(position == 4, jnp.asarray(0.98), jnp.asarray(0.01))
        rest = jnp.where(position == 4, jnp.asarray(0.005), jnp.asarray(0.975))
        logits = jnp.full((token.shape[0], 6), jnp.log(0.005))
        return logits.at[:, END].set(jnp.log(odds)).at[:, 3].set(jnp.log(rest)), cache

    limits = LIMITS._replace(length=8)
    found = beam_search(late, {}, limits, rows=1, beams=2, alpha=alpha)
    assert found.tokens[0].tolist() == [BEGIN, 3, 3, 3, 3, END, PAD, PAD]
    total = sum(math.log(p / (p + q + 0.02)) for p, q in [(0.975, 0.01)] * 4 + [(0.98, 0.005)])
    np.testing.assert_allclose(found.scores[0], total / penalty(5, alpha), rtol=1e-5)


def test_a_short_text_does_not_hide_a_better_long_one():
    """The empty text is more probable than any other; with alpha 1 a sure long one beats it."""

    def sure(cache, token, position):
        first = jnp.asarray([0.0, 0.0, 0.4, 0.3, 0.2, 0.1])
        later = jnp.asarray([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
        last = jnp.asarray([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        odds = jnp.where(position == 0, first, jnp.where(position == 4, last, later))
        return jnp.broadcast_to(jnp.log(odds + 1e-9)[None], (token.shape[0], 6)), cache

    texts = {0.0: [BEGIN, END, PAD, PAD, PAD, PAD], 1.0: [BEGIN, 3, 3, 3, 3, END]}
    for alpha, text in texts.items():
        found = beam_search(sure, {}, LIMITS, rows=1, beams=3, alpha=alpha)
        assert found.tokens[0].tolist() == text
    np.testing.assert_allclose(found.scores[0], math.log(0.3) / penalty(5, 1.0), rtol=1e-5)


def test_samples_follow_the_distribution():
    rows, probabilities = 2000, np.asarray([0.05, 0.1, 0.1, 0.25, 0.3, 0.2], np.float32)

    def fixed(cache, token, position):
        return jnp.broadcast_to(jnp.log(probabilities)[None], (rows, 6)), cache

    def draw(**options):
        limits = LIMITS._replace(length=4, forbidden=())
        keys = row_keys(jax.random.key(0), rows)
        return np.asarray(jax.jit(lambda: sample(fixed, {}, limits, keys=keys, **options))().tokens)

    def share(tokens):
        return np.bincount(tokens[:, 1], minlength=6) / rows

    plain = draw()
    np.testing.assert_allclose(share(plain), probabilities, atol=0.03)
    going = plain[plain[:, 1] != END]  # a later token is drawn afresh
    same = (probabilities**2).sum() - probabilities[END] ** 2
    assert abs((going[:, 1] == going[:, 2]).mean() - same / (1 - probabilities[END])) < 0.03
    # Temperature 0.5 squares; 3 tokens stay; of these the nucleus of 0.75 is two (of all: three).
    kept = probabilities[[3, 4]] ** 2
    expected = [0, 0, 0, *kept / kept.sum(), 0]
    found = share(draw(temperature=0.5, top_k=3, top_p=0.75))
    np.testing.assert_allclose(found, expected, atol=0.03)
    np.testing.assert_array_equal(found == 0, np.asarray(expected) == 0)


def test_filters_equal_their_formulas():
    logits = np.random.default_rng(1).normal(size=(50, 12)).astype(np.float32) * 2
    for k in (1, 3, 12, 40):
        kept = np.isfinite(keep_top_k(jnp.asarray(logits), k))
        expected = logits >= np.sort(logits, axis=1)[:, ::-1][:, min(k, 12) - 1, None]
        np.testing.assert_array_equal(kept, expected)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for p in (1e-6, 0.3, 0.7, 0.95):
        filtered = np.asarray(keep_top_p(jnp.asarray(logits), p))
        for row in range(50):
            order = np.argsort(-probabilities[row])
            size = next(
                n for n in range(1, 13) if probabilities[row][order[:n]].sum() >= p
            )  # the smallest set that reaches p
            assert set(np.flatnonzero(np.isfinite(filtered[row]))) == set(order[:size])
        np.testing.assert_array_equal(
            filtered[np.isfinite(filtered)], logits[np.isfinite(filtered)]
        )


def test_the_nucleus_takes_the_fewest_of_equals():
    assert np.isfinite(keep_top_p(jnp.zeros((1, 4)), 0.5)).sum() == 2


def test_length_penalty_is_that_of_the_paper():
    np.testing.assert_allclose(length_penalty(1, 0.7), 1.0)
    np.testing.assert_allclose(length_penalty(7, 0.5), math.sqrt(2.0))


def test_bad_limits_and_options_are_one_sentence():
    cache, keys = start(), row_keys(jax.random.key(0), ROWS)
    with pytest.raises(MmflaxError, match="at least 5 tokens in 6 columns"):
        greedy(step, cache, LIMITS._replace(min_length=5), rows=ROWS)
    with pytest.raises(MmflaxError, match="both the end and forbidden"):
        greedy(step, cache, LIMITS._replace(forbidden=(END,)), rows=ROWS)
    with pytest.raises(MmflaxError, match="beams is 0"):
        beam_search(step, cache, LIMITS, rows=ROWS, beams=0)
    with pytest.raises(MmflaxError, match="alpha -1"):
        beam_search(step, cache, LIMITS, rows=ROWS, beams=2, alpha=-1.0)
    for options in (dict(temperature=0.0), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5)):
        with pytest.raises(MmflaxError, match="expected a temperature above 0"):
            sample(step, cache, LIMITS, keys=keys, **options)
