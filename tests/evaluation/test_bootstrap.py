"""Bootstrap intervals: against the normal approximation, by groups, and repeatable."""

import math

import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.evaluation.bootstrap import interval, mean_interval, record_interval

RNG = np.random.default_rng(0)


def test_a_mean_has_the_width_that_theory_gives():
    values = RNG.normal(size=400)
    low, high = interval(values, samples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_any_statistic_gives_what_the_fast_mean_gives():
    values = list(RNG.random(30))
    slow = interval(values, lambda drawn: sum(drawn) / len(drawn), samples=200, seed=3)
    assert slow == pytest.approx(interval(values, samples=200, seed=3), abs=1e-12)
    groups = [i // 4 for i in range(30)]
    slow = interval(values, lambda d: sum(d) / len(d), groups=groups, samples=200, seed=3)
    assert slow == pytest.approx(interval(values, groups=groups, samples=200, seed=3), abs=1e-12)


def test_records_may_be_anything():
    records = [{"right": i % 3 == 0} for i in range(30)]
    low, high = interval(records, lambda rs: np.mean([r["right"] for r in rs]), samples=200)
    assert 0 < low < 1 / 3 < high < 1


def test_groups_that_agree_are_as_few_as_they_are():
    """Ten copies of each value tell no more than one copy does."""
    values = RNG.normal(size=50)
    copied, groups = np.repeat(values, 10), np.repeat(np.arange(50), 10)
    alone = interval(values)
    assert interval(copied, groups=groups) == pytest.approx(alone)
    blind = interval(copied)
    assert blind[1] - blind[0] < 0.5 * (alone[1] - alone[0])


def test_counts_make_a_ratio_of_sums():
    values, counts = np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 0, 0])
    low, high = mean_interval(values * counts, counts, samples=500)
    # Only two examples count, and some resamplings have neither.
    assert (low, high) == (0.0, 1.0)
    nothing = mean_interval(np.zeros(3), np.zeros(3))
    assert all(math.isnan(end) for end in nothing)


def test_the_draw_is_the_same_on_every_machine():
    assert interval([0.0, 1.0, 2.0, 5.0], samples=50, seed=7) == pytest.approx((0.5, 4.08125))
    values = RNG.random(9)
    assert interval(values, seed=0) == interval(values) != interval(values, seed=1)


def test_many_metrics_of_records_share_their_draws():
    records = [{"kind": "ab"[i % 2], "right": float(i % 3 == 0)} for i in range(20)]

    def score(drawn):
        parts = {k: [r["right"] for r in drawn if r["kind"] == k] for k in "ab"}
        found = {f"right/{k}": float(np.mean(v)) for k, v in parts.items() if v}
        return found | {"right": float(np.mean([r["right"] for r in drawn])), "none": math.nan}

    groups = [(i // 4, "tuples", "are", "groups", "too") for i in range(20)]
    found = record_interval(records, score, groups=groups, samples=100)
    whole = interval([r["right"] for r in records], groups=groups, samples=100)
    assert found["right"] == pytest.approx(whole)
    assert set(found) == {"right", "right/a", "right/b", "none"}
    assert all(math.isnan(end) for end in found["none"])


def test_a_wider_level_is_wider():
    values = RNG.random(50)
    narrow, wide = interval(values, level=0.5), interval(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_wrong_input_is_one_sentence():
    with pytest.raises(MmflaxError, match="empty"):
        interval([])
    with pytest.raises(MmflaxError, match="level is 95"):
        interval([1.0], level=95.0)
    with pytest.raises(MmflaxError, match="2 groups for 1 values"):
        interval([1.0], groups=[0, 1])
