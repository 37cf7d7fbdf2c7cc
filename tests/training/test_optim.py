"""Schedules against their formulas; optimizers' masks, multipliers and errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmflax.errors import MmflaxError
from mmflax.training import optim

PARAMS = {
    "fusion": {"fc1": {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.full((4,), 2.0)}},
    "head": {"kernel": jnp.full((4, 2), 2.0), "bias": jnp.full((2,), 2.0)},
}
GRADS = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), PARAMS)
FLAT = dict(name="constant", peak=0.1)


def update(**fields):
    tx, _ = optim.build(PARAMS, **{"schedule": FLAT, **fields})
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    return updates


def cosine(t):
    return 1.0 * t / 10 if t < 10 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (t - 10) / 90))


def linear(t):
    return t / 10 if t < 10 else 1 - (t - 10) / 90


def rsqrt(t):
    if t < 10:
        return t / 10
    return math.sqrt(10 / (10 + t - 10)) * min(1.0, max(0.0, (100 - t) / 20))


@pytest.mark.parametrize(
    ("fields", "formula"),
    [
        (dict(name="constant", peak=1.0), lambda t: 1.0),
        (dict(name="constant", peak=1.0, warmup_steps=10), lambda t: min(1.0, t / 10)),
        (dict(name="warmup_cosine", peak=1.0, warmup_steps=10, total_steps=100, end=0.1), cosine),
        (dict(name="warmup_linear", peak=1.0, warmup_steps=10, total_steps=100), linear),
        (
            dict(
                name="rsqrt_cooldown", peak=1.0, warmup_steps=10, total_steps=100, cooldown_steps=20
            ),
            rsqrt,
        ),
    ],
)
def test_schedule_follows_its_formula(fields, formula):
    schedule = optim.build_schedule(**fields)
    for t in [0, 1, 5, 9, 10, 11, 50, 79, 80, 90, 99, 100]:
        assert float(schedule(jnp.int32(t))) == pytest.approx(formula(t), abs=1e-6), t


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            dict(name="cosine"),
            "schedule 'cosine', did you mean 'warmup_cosine'.*known are constant",
        ),
        (dict(name="constant", peek=1.0), "optim.schedule.peek .* did you mean 'peak'"),
        (dict(name="warmup_linear", warmup_steps=1, total_steps=9), "needs peak"),
        (dict(name="constant", peak=1.0, warmup_fraction=1.0), "a fraction of the run below 1"),
        (dict(name="warmup_linear", peak=1.0, warmup_steps=9, total_steps=9), "take 9 of 9 steps"),
    ],
)
def test_schedule_errors(fields, words):
    with pytest.raises(MmflaxError, match=words):
        optim.build_schedule(**fields)


def test_adamw_is_adamw():
    expected = optax.adamw(0.1, weight_decay=0.3, mask=jax.tree.map(lambda p: p.ndim > 1, PARAMS))
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = expected.update(GRADS, expected.init(PARAMS), PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        update(name="adamw", weight_decay=0.3),
        updates,
    )


def test_weight_decay_spares_what_the_mask_names():
    plain, decayed = update(name="sgd"), update(name="sgd", weight_decay=0.5, no_decay=(r"^head/",))
    difference = jax.tree.map(lambda a, b: np.asarray(b - a), plain, decayed)
    np.testing.assert_allclose(difference["fusion"]["fc1"]["bias"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(difference["head"]["kernel"], 0.0)


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "sgd", "muon"])
def test_multipliers_scale_updates_and_the_first_match_counts(name):
    plain = update(name=name, weight_decay=0.1)
    scaled = update(
        name=name, weight_decay=0.1, lr_multipliers=((r"^head/bias", 3.0), (r"(fusion|head)/", 5.0))
    )
    ratio = jax.tree.map(lambda a, b: np.asarray(b / a), plain, scaled)
    np.testing.assert_allclose(ratio["head"]["bias"], 3.0, rtol=1e-5)
    np.testing.assert_allclose(ratio["head"]["kernel"], 5.0, rtol=1e-5)
    np.testing.assert_allclose(ratio["fusion"]["fc1"]["kernel"], 5.0, rtol=1e-5)


def test_multipliers_and_decay_work_beside_frozen_parameters():
    updates = update(
        name="adamw", weight_decay=0.1, freeze=(r"^fusion/",), lr_multipliers=((r"^head/", 2.0),)
    )
    np.testing.assert_array_equal(updates["fusion"]["fc1"]["kernel"], 0.0)
    np.testing.assert_allclose(updates["head"]["bias"], -0.2, rtol=1e-5)


def test_clipping_bounds_the_global_norm():
    norm = float(optax.tree.norm(update(name="sgd", momentum=0.0, clip_norm=0.25)))
    assert norm == pytest.approx(0.1 * 0.25, rel=1e-5)


@pytest.mark.parametrize("field", ["freeze", "no_decay"])
def test_a_regex_that_decides_nothing_is_an_error(field):
    with pytest.raises(MmflaxError, match=f"{field}: 'encoder' decides no parameter"):
        update(weight_decay=0.1, **{field: ("encoder",)})


def test_a_multiplier_hidden_by_an_earlier_one_is_an_error():
    with pytest.raises(MmflaxError, match=r"lr_multipliers: 'head/bias' decides no parameter"):
        update(lr_multipliers=((r"^head", 2.0), (r"head/bias", 3.0)))


def test_other_errors():
    with pytest.raises(MmflaxError, match="unknown optimizer 'adam': known are adamw, lamb"):
        update(name="adam")
    with pytest.raises(MmflaxError, match="freezes every parameter"):
        update(freeze=("",))


@pytest.mark.parametrize(
    "fields",
    [dict(clip_norm=0.0), dict(b1=1.0), dict(b2=-0.1), dict(eps=0.0), dict(weight_decay=-1.0)],
)
def test_numbers_with_which_nothing_is_learned_are_errors(fields):
    (name,) = fields
    with pytest.raises(MmflaxError, match=f"optim.{name} is"):
        optim.build({"w": jnp.zeros(2)}, schedule={"name": "constant", "peak": 1.0}, **fields)
