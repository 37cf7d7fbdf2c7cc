"""Search for a text, one token at a time: greedy, beam search and sampling, for any model.

The model is `step(cache, token[r], position) -> (logits[r v], cache)`: it takes the token at
`position` (the same for all rows) and scores the next one. `cache` is any tree of arrays with the
rows in front. Everything is of static shape, so a whole search is one compiled loop; it ends as
soon as every row has its text, and a finished row changes no more, so rows decoded together come
out as they would alone.

Scores are sums of the model's own log-probabilities, the end token's included, whatever a filter, a
temperature or a penalty did to the choice. Beam search compares texts by their scores, so there a
repetition penalty is part of them, and it divides by its length penalty.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmflax.errors import MmflaxError
from mmflax.models.decoder.repetition import penalized, repeating

Step = Callable[[Any, Array, Array], tuple[Array, Any]]


class Limits(NamedTuple):
    """What a text looks like: `begin`, tokens, `end`, then `pad` up to `length` columns.

    Between begin and end stand at least `min_length` and at most `length - 2` tokens: a row that
    reaches the last column ends there, at the end token's log-probability. `forbidden`
    tokens are never chosen.

    `repetition_penalty` above 1 makes tokens that the text has already less probable: their logits
    (in beam search their log-probabilities) are divided by it where they are positive and
    multiplied where they are negative. No group of `no_repeat_ngram_size` tokens occurs twice; 0
    forbids none. Both count the token that begins the text; see `mmflax.models.decoder.repetition`.
    """

    begin: int
    end: int
    pad: int
    length: int
    min_length: int = 0
    forbidden: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def check(self) -> None:
        if not 0 <= self.min_length <= self.length - 2:
            raise MmflaxError(
                f"texts are asked for with at least {self.min_length} tokens in {self.length} "
                "columns, begin and end included; expected 0 <= min_length <= length - 2."
            )
        if self.end in self.forbidden:
            raise MmflaxError(f"token {self.end} is both the end and forbidden; allow it.")
        penalty, size = self.repetition_penalty, self.no_repeat_ngram_size
        if not 0 < penalty < math.inf or type(size) is not int or size < 0:
            raise MmflaxError(
                f"repetition_penalty is {penalty} and no_repeat_ngram_size {size}; expected a "
                "number above 0 (1 changes nothing) and a whole number of tokens (0 = none)."
            )


class Decoded(NamedTuple):
    """Texts as tokens, padded, and their scores."""

    tokens: Int[Array, "b s"]
    scores: Float[Array, "b"]


def greedy(step: Step, cache: Any, limits: Limits, *, rows: int) -> Decoded:
    """The most probable token every time; of equals, the one with the lower id."""
    return _follow(step, cache, limits, rows, lambda allowed, _: jnp.argmax(allowed, axis=-1))


def sample(
    step: Step,
    cache: Any,
    limits: Limits,
    *,
    keys: Key[Array, "b"],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
    """Tokens drawn from softmax(logits / temperature), after `keep_top_k`, then `keep_top_p`.

    Every row has its own key (`row_keys`), so that it draws the same tokens in any batch.
    `top_k=0` and `top_p=1` filter nothing.
    """
    check_sampling(temperature, top_k, top_p)

    def choose(allowed: Array, position: Array) -> Array:
        scaled = allowed / temperature
        if top_k:
            scaled = keep_top_k(scaled, top_k)
        if top_p < 1.0:
            scaled = keep_top_p(scaled, top_p)
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, position)
        return jax.vmap(jax.random.categorical)(now, scaled)

    return _follow(step, cache, limits, keys.shape[0], choose)


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raises for options of `sample` that are out of range."""
    if not 0.0 < temperature < math.inf or top_k < 0 or not 0.0 < top_p <= 1.0:
        raise MmflaxError(
            f"temperature is {temperature}, top_k {top_k}, top_p {top_p}; expected a temperature "
            'above 0 (method "greedy" is its limit), top_k >= 0 and 0 < top_p <= 1.'
        )


def row_keys(key: Key[Array, ""], rows: int) -> Key[Array, "b"]:
    """One key a row: `key` folded with the row's number."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def keep_top_k(logits: Float[Array, "b v"], k: int) -> Float[Array, "b v"]:
    """`logits` with all but the `k` largest at -inf; equals of the k-th stay too."""
    least = jnp.sort(logits, axis=-1)[:, -min(k, logits.shape[-1]), None]
    return jnp.where(logits >= least, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "b v"], p: float) -> Float[Array, "b v"]:
    """`logits` with all but the nucleus at -inf (Holtzman et al. 2020, eq. 2).

    That is the smallest set of most probable tokens whose probabilities reach `p` together; never
    fewer than one.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    kept = (before < p).at[:, 0].set(True)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(kept, rank, axis=-1), logits, -jnp.inf)


def check_beams(beams: int, alpha: float) -> None:
    """Raises for options of `beam_search` that are out of range."""
    if beams < 1 or not 0.0 <= alpha < math.inf:
        raise MmflaxError(
            f"beams is {beams} and alpha {alpha}; expected at least 1 beam and alpha >= 0."
        )


def length_penalty(length: Int[Array, ""] | int, alpha: float) -> Float[Array, ""]:
    """((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14), `length` counting the end token."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def beam_search(
    step: Step, cache: Any, limits: Limits, *, rows: int, beams: int, alpha: float = 0.0
) -> Decoded:
    """The best text found by keeping the `beams` most probable unfinished ones at every length.

    Texts are compared by log-probability / `length_penalty(their length, alpha)`; 0 compares the
    log-probabilities, which favors short texts, and 1 roughly their means. The coverage term of
    the paper is not offered. An extension that ends is a finished text if it is among the `beams`
    best extensions; unfinished ones move up into its place. A row is done when no unfinished text
    can win: log-probabilities only fall, so its bound is today's over the penalty of the longest
    text. It is also done when it has `beams` finished texts and the best of them is ahead of what
    is unfinished, each at its own length. One beam is therefore greedy search, unless a repetition
    penalty weighs log-probabilities here and logits there (as in transformers).

    `cache` has one row an example; `step` is called with `rows * beams` rows, those of one example
    side by side. Cost: `beams` times greedy's.
    """
    limits.check()
    check_beams(beams, alpha)
    wide = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), cache)
    longest = length_penalty(limits.length - 1, alpha)
    tokens = jnp.full((rows, beams, limits.length), limits.pad, jnp.int32)
    tokens = tokens.at[:, :, 0].set(limits.begin)
    lowest = jnp.full((rows,), -jnp.inf, jnp.float32)
    start = _Beams(
        position=jnp.asarray(0, jnp.int32),
        tokens=tokens,
        # All beams begin alike: one of them is enough.
        log_p=jnp.full((rows, beams), -jnp.inf, jnp.float32).at[:, 0].set(0.0),
        best=Decoded(tokens[:, 0], lowest),
        finished=jnp.zeros((rows,), jnp.int32),
        cache=wide,
    )

    def grow(state: _Beams) -> _Beams:
        position = state.position
        logits, cache = step(state.cache, state.tokens[:, :, position].reshape(-1), position)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        vocabulary = log_p.shape[-1]
        written = state.tokens.reshape(rows * beams, -1)
        allowed = _masked(limits, _weighed(limits, log_p, written, position), written, position)
        total = state.log_p[:, :, None] + allowed.reshape(rows, beams, vocabulary)
        # Each beam ends once, so of twice as many extensions at least `beams` go on.
        score, index = _largest(total.reshape(rows, -1), min(2, vocabulary) * beams)
        parent, chosen = index // vocabulary, (index % vocabulary).astype(jnp.int32)
        ends = chosen == limits.end

        # Finished: the best of this length against the best so far.
        ended = ends[:, :beams] & jnp.isfinite(score[:, :beams])
        today = length_penalty(position + 1, alpha)
        marks = jnp.where(ended, score[:, :beams] / today, -jnp.inf)
        first = jnp.argmax(marks, axis=1)
        texts = _pick(state.tokens, _pick(parent, first[:, None]))[:, 0]
        texts = texts.at[:, position + 1].set(limits.end)
        mark = marks.max(axis=1)
        better = mark > state.best.scores
        best = Decoded(
            jnp.where(better[:, None], texts, state.best.tokens),
            jnp.where(better, mark, state.best.scores),
        )
        finished = state.finished + ended.sum(axis=1, dtype=jnp.int32)

        # Unfinished: the best that go on.
        score = jnp.where(ends, -jnp.inf, score)
        log_p, kept = _largest(score, beams)
        parent, chosen = _pick(parent, kept), _pick(chosen, kept)
        tokens = _pick(state.tokens, parent).at[:, :, position + 1].set(chosen)
        ahead = (finished >= beams) & (best.scores >= log_p[:, 0] / today)
        done = ahead | (best.scores >= log_p[:, 0] / longest)
        log_p = jnp.where(done[:, None], -jnp.inf, log_p)
        cache = jax.tree.map(
            lambda leaf: _pick(leaf.reshape(rows, beams, *leaf.shape[1:]), parent).reshape(
                leaf.shape
            ),
            cache,
        )
        return _Beams(position + 1, tokens, log_p, best, finished, cache)

    def unfinished(state: _Beams) -> Array:
        return (state.position < limits.length - 1) & jnp.isfinite(state.log_p).any()

    return jax.lax.while_loop(unfinished, grow, start).best


class _Beams(NamedTuple):
    """The state of beam search; a row without a finite `log_p` is done."""

    position: Any
    tokens: Any  # [b k s]
    log_p: Any  # [b k]
    best: Decoded
    finished: Any  # [b]
    cache: Any


class _Path(NamedTuple):
    position: Any
    tokens: Any  # [b s]
    scores: Any  # [b]
    done: Any  # [b]
    cache: Any


def _follow(
    step: Step,
    cache: Any,
    limits: Limits,
    rows: int,
    choose: Callable[[Array, Array], Array],
) -> Decoded:
    """One path a row, each next token by `choose(log-probabilities[b v], position) -> [b]`."""
    limits.check()
    tokens = jnp.full((rows, limits.length), limits.pad, jnp.int32).at[:, 0].set(limits.begin)
    start = _Path(
        jnp.asarray(0, jnp.int32),
        tokens,
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows,), bool),
        cache,
    )

    def extend(path: _Path) -> _Path:
        position = path.position
        logits, cache = step(path.cache, path.tokens[:, position], position)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        # Without a penalty the logits, from which a constant may be taken, would do as well.
        scores = log_p if limits.repetition_penalty == 1.0 else logits.astype(jnp.float32)
        scores = _weighed(limits, scores, path.tokens, position)
        chosen = choose(_masked(limits, scores, path.tokens, position), position).astype(jnp.int32)
        gained = jnp.take_along_axis(log_p, chosen[:, None], axis=-1)[:, 0]
        scores = jnp.where(path.done, path.scores, path.scores + gained)
        written = jnp.where(path.done, limits.pad, chosen)
        tokens = path.tokens.at[:, position + 1].set(written)
        return _Path(position + 1, tokens, scores, path.done | (chosen == limits.end), cache)

    def unfinished(path: _Path) -> Array:
        return (path.position < limits.length - 1) & ~path.done.all()

    path = jax.lax.while_loop(unfinished, extend, start)
    return Decoded(path.tokens, path.scores)


def _weighed(limits: Limits, scores: Array, tokens: Array, position: Array) -> Array:
    """Scores [r v] of the next token after the repetition penalty."""
    if limits.repetition_penalty == 1.0:
        return scores
    return penalized(scores, tokens, position, limits.repetition_penalty)


def _masked(limits: Limits, scores: Array, tokens: Array, position: Array) -> Array:
    """Scores [r v] with -inf at what may not follow the token at `position`."""
    allowed = _allowed(limits, position, scores.shape[-1])[None]
    if limits.no_repeat_ngram_size:
        size, vocabulary = limits.no_repeat_ngram_size, scores.shape[-1]
        end = jnp.arange(vocabulary)[None] == limits.end
        kept = allowed & ~repeating(tokens, position, size, vocabulary)
        # Where nothing is left, as in the last column or a tiny vocabulary, the text ends.
        allowed = jnp.where(kept.any(axis=-1, keepdims=True), kept, end)
    return jnp.where(allowed, scores, -jnp.inf)


def _allowed(limits: Limits, position: Array, vocabulary: int) -> Bool[Array, "v"]:
    """Which tokens may follow the one at `position`."""
    token = jnp.arange(vocabulary)
    end = token == limits.end
    allowed = end | (position < limits.length - 2)
    allowed = allowed & (~end | (position >= limits.min_length))
    for forbidden in limits.forbidden:
        allowed = allowed & (token != forbidden)
    return allowed


def _largest(values: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest of each row [b n] and their places; of equals, the first.

    `lax.top_k` would do, but XLA gathers a sharded batch onto every device for it. Once nothing
    finite is left, places repeat.
    """
    places = jnp.arange(values.shape[1])[None]

    def take(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        place = jnp.argmax(left, axis=1)
        chosen = places == place[:, None]
        return jnp.where(chosen, -jnp.inf, left), (left.max(axis=1), place)

    largest, place = jax.lax.scan(take, values, length=count)[1]
    return largest.T, place.T


def _pick(values: Array, index: Array) -> Array:
    """`values[b k …]` at `index[b j]`, row by row."""
    return jax.vmap(lambda row, i: row[i])(values, index)
