"""The train step: masks, accumulation, skipped updates, frozen parameters, averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.training.state import create_sharded
from mmflax.training.step import make_train_step
from tests.tiny import same


def close(a, b, **kinds):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kinds), a, b)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing(toy, accumulate):
    batch = {**toy().batch(0), "mask": np.arange(16) % 5 != 1}  # uneven over the micro-batches
    whole, sums = toy().run([batch])
    parts, part_sums = toy(step=dict(accumulate=accumulate)).run([batch])
    close(whole.params, parts.params, rtol=1e-5, atol=1e-6)
    close(sums["loss"], part_sums["loss"], rtol=1e-6)
    assert part_sums["accuracy"][1] == 13


def test_accumulation_must_divide_the_batch(toy):
    with pytest.raises(MmflaxError, match="batch of 16 does not divide into accumulate=3"):
        toy(step=dict(accumulate=3)).run([toy().batch(0)])


def test_padding_rows_never_matter(toy):
    batch = toy().batch(0)
    mask = np.arange(16) < 11
    spoilt = {"x": batch["x"], "y": np.where(mask[:, None], batch["y"], 1e4), "mask": mask}
    short = {name: value[:11] for name, value in batch.items()}
    a, sums = toy().run([spoilt])
    b, _ = toy().run([short])
    close(a.params, b.params, rtol=1e-6, atol=1e-7)
    assert sums["loss"][1] == 11 and sums["skipped"][0] == 0

    made = toy()
    start = made.create().params
    gradient = jax.grad(lambda p: made.loss(made.apply(p, short, None, True), short).mean())(start)
    close(a.params, jax.tree.map(lambda p, g: p - 0.1 * g, start, gradient), rtol=1e-5, atol=1e-6)


def test_non_finite_updates_are_skipped_bit_for_bit(toy):
    fields = dict(
        optim=dict(name="adamw", schedule=dict(name="warmup_linear", peak=0.1, warmup_steps=3,
                                            total_steps=20)),
        step=dict(ema_decay=0.9),
        ema=True,
    )  # fmt: skip
    made = toy(**fields)
    batches = [made.batch(i) for i in range(6)]
    for bad in ([2], [0], [5], [1, 2, 3]):
        spoilt = [
            {**batch, "x": np.where(np.arange(8) == 3, np.inf, batch["x"])} if i in bad else batch
            for i, batch in enumerate(batches)
        ]
        state, _ = made.run(spoilt)
        expected, _ = made.run([batch for i, batch in enumerate(batches) if i not in bad])
        for part in ("params", "opt_state", "ema"):
            same(getattr(state, part), getattr(expected, part))
        assert int(state.skipped) == len(bad) and int(state.step) == 6
        assert int(state.skipped_in_row) == (5 in bad)


def test_skips_in_a_row_are_counted_and_add_nothing_to_the_metrics(toy):
    made = toy()
    bad = {**made.batch(0), "y": np.full((16, 8), np.nan, np.float32)}
    state, sums = made.run([made.batch(1), bad, bad])
    assert int(state.skipped_in_row) == 2
    assert sums["skipped_in_row"][0] == 2 and sums["skipped"][0] == 1
    assert tuple(sums["loss"]) == (0, 0) and tuple(sums["grad_norm"]) == (0, 0)


def test_frozen_parameters_stay_and_have_no_moments(toy):
    made = toy(
        optim=dict(name="adamw", weight_decay=0.1, freeze=(r"^fc1/",)),
        step=dict(freeze=(r"^fc1/",)),
    )
    start = made.create()
    state, _ = made.run([made.batch(i) for i in range(3)])
    same(state.params["fc1"], start.params["fc1"])
    assert not np.array_equal(state.params["fc2"]["kernel"], start.params["fc2"]["kernel"])
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
    ]
    assert any("mu/fc2/kernel" in path for path in paths)
    assert not any("fc1" in path for path in paths)


def test_average_follows_its_recurrence(toy):
    made = toy(step=dict(ema_decay=0.75), ema=True)
    state = made.create()
    average = jax.tree.map(np.asarray, state.params)
    for i in range(3):
        state, _ = made.run([made.batch(i)], state)
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.asarray(p), average, state.params)
    close(state.ema, average, rtol=1e-6, atol=1e-7)


def test_average_and_state_must_agree(toy):
    with pytest.raises(MmflaxError, match="ema_decay=0.9 and a state without an average"):
        toy(step=dict(ema_decay=0.9)).run([toy().batch(0)])


def test_each_step_draws_its_own_randomness(toy):
    made = toy()
    keys = []

    def apply(params, batch, key, train):
        assert train
        jax.debug.callback(lambda k: keys.append(tuple(k.tolist())), jax.random.key_data(key))
        return made.apply(params, batch, key, train)

    made.train_step = make_train_step(apply, made.loss, made.metrics, made.tx)
    made.run([made.batch(0), made.batch(1)])
    jax.effects_barrier()
    base = jax.random.split(jax.random.key(1))[1]
    expected = {
        tuple(np.asarray(jax.random.key_data(jax.random.fold_in(base, i))).tolist()) for i in (0, 1)
    }
    assert set(keys) == expected


def test_given_parameters_replace_the_initial_ones(toy):
    made = toy(optim=dict(name="adamw"))
    given = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), made.create().params)
    state = create_sharded(*made.parts(), params=given)
    same(state.params, jax.tree.map(jnp.asarray, given))
    wrong = {**given, "fc1": {**given["fc1"], "kernel": np.zeros((8, 4), np.float32)}}
    with pytest.raises(MmflaxError, match=r"fc1/kernel is \[8, 4\], but the model needs \[8, 16\]"):
        create_sharded(*made.parts(), params=wrong)
