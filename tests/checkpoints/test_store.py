"""The store: round trips, what is kept, damage found, and what does not fit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmflax.checkpoints.store import Store
from mmflax.distributed.mesh import make_mesh
from mmflax.errors import MmflaxError
from tests.tiny import same


def value(step):
    return {
        "params": {"fc1": {"kernel": jnp.arange(64.0).reshape(8, 8) + step, "bias": jnp.ones(8)}},
        "opt_state": optax.adam(0.1).init({"fc1": {"kernel": jnp.zeros((8, 8))}}),
        "half": jnp.arange(8, dtype=jnp.bfloat16) / 7,
        "key": jax.random.key(step),
        "step": jnp.int32(step),
        "ema": None,
    }


def saved(directory, steps, **fields):
    """A store holding these steps; a dict gives their accuracy."""
    store = Store(directory, **fields)
    for step in steps:
        metrics = {"accuracy": steps[step]} if isinstance(steps, dict) else {}
        store.save(step, value(step), {"position": step}, metrics)
    store.wait()
    return store


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with steps 1 and 2, to be copied before it is spoilt."""
    directory = tmp_path_factory.mktemp("store")
    saved(directory, [1, 2]).close()
    return directory


def test_round_trip(two_steps):
    state, data, step = Store(two_steps).restore(jax.eval_shape(lambda: value(0)))
    assert (step, data) == (2, {"position": 2})
    same(state, value(2))
    drawn = jax.random.normal(state["key"], (3,))
    np.testing.assert_array_equal(drawn, jax.random.normal(jax.random.key(2), (3,)))


def test_an_older_step_or_a_part_of_the_tree(two_steps):
    store = Store(two_steps)
    wanted = {"params": jax.eval_shape(lambda: value(0))["params"]}
    state, _, step = store.restore(wanted, 1, partial=True)
    assert step == 1
    same(state, {"params": value(1)["params"]})
    with pytest.raises(MmflaxError, match="key is only in the checkpoint"):
        store.restore(wanted)
    with pytest.raises(MmflaxError, match="no checkpoint of step 7 in .*: found 1, 2"):
        store.restore(wanted, 7)


def test_arrays_may_be_donated_right_after_save(tmp_path):
    double = jax.jit(lambda x: x * 2, donate_argnums=0)
    big = jnp.arange(1 << 20, dtype=jnp.float32)
    expected = np.array(big)
    store = Store(tmp_path)
    store.save(1, {"big": big}, {})
    for _ in range(5):
        big = double(big)
    state, _, _ = (store.wait(), store.restore({"big": jax.eval_shape(lambda: big)}))[1]
    np.testing.assert_array_equal(state["big"], expected)
    again = double(state["big"])  # and restored arrays may be donated too
    np.testing.assert_array_equal(again, expected * 2)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        (dict(keep_last=2), [4, 5]),
        (dict(keep_last=1, keep_best=2, best_metric="accuracy"), [2, 3, 5]),
        (dict(keep_last=1, keep_best=1, best_metric="accuracy", best_mode="min"), [1, 5]),
        (dict(keep_last=1, keep_best=1, best_metric="loss"), [5]),
    ],
)
def test_what_is_kept(tmp_path, fields, kept):
    scores = {1: 0.1, 2: 0.9, 3: 0.9, 4: 0.5, 5: 0.2}
    store = saved(tmp_path, scores, **fields)
    assert store.steps() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in kept]


def test_whether_metrics_improve(tmp_path):
    store = saved(
        tmp_path, {1: 0.5, 2: 0.7, 3: 0.6}, keep_last=3, keep_best=2, best_metric="accuracy"
    )
    assert store.best_step() == 2
    assert store.improves({"accuracy": 0.65}) and not store.improves({"accuracy": 0.55})
    assert not store.improves({"loss": 1.0})


def test_settings_are_checked(tmp_path):
    for fields in (dict(keep_last=0), dict(best_mode="most"), dict(keep_best=1)):
        with pytest.raises(MmflaxError):
            Store(tmp_path, **fields)


def spoil(directory, draw, truncate):
    """Change one file of step 2; its name, or None where nothing could change."""
    files = sorted(path for path in (directory / "2").rglob("*") if path.is_file())
    path = files[draw.integers(len(files))]
    content = bytearray(path.read_bytes())
    if truncate:
        del content[draw.integers(len(content)) :]
    else:
        content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)
    return path.name


def check_damage(two_steps, tmp_path, seed, truncate):
    directory = tmp_path / str(seed)
    shutil.copytree(two_steps, directory)
    name = spoil(directory, np.random.default_rng(seed), truncate)
    store = Store(directory)
    state, data, step = store.restore(jax.eval_shape(lambda: value(0)))
    assert (step, data) == (1, {"position": 1})
    same(state, value(1))
    (problem,) = store.problems
    assert f"{directory}/2 is damaged" in problem
    assert ("checksum file" if name == "SEAL" else name) in problem
    with pytest.raises(MmflaxError, match="2 is damaged: .*; restore another step"):
        store.restore(jax.eval_shape(lambda: value(0)), 2)
    return store


@pytest.mark.parametrize("truncate", [False, True])
def test_damage_is_found_and_the_step_before_is_used(two_steps, tmp_path, truncate):
    for seed in range(10):
        check_damage(two_steps, tmp_path, seed, truncate)


@pytest.mark.slow
def test_two_hundred_damages(two_steps, tmp_path):
    for seed in range(100, 300):
        check_damage(two_steps, tmp_path, seed, seed % 2 == 0)
        shutil.rmtree(tmp_path / str(seed))


def test_missing_and_additional_files_are_damage(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "a")
    (tmp_path / "a" / "2" / "state" / "extra").write_text("x")
    assert Store(tmp_path / "a").verify(2) == "state/extra is unexpected"
    (tmp_path / "a" / "1" / "data" / "metadata").unlink()
    assert Store(tmp_path / "a").verify(1) == "data/metadata is missing"
    with pytest.raises(MmflaxError, match=r"no checkpoint to restore in .* \(2 damaged\)"):
        Store(tmp_path / "a").restore(jax.eval_shape(lambda: value(0)))


def test_a_changed_number_in_the_checksum_file_is_damage(tmp_path):
    store = saved(tmp_path, {1: 0.25})
    path = tmp_path / "1" / "SEAL"
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.35"))
    assert store.verify(1) == "the checksum file SEAL is damaged (its digest and content differ)"


def test_what_was_just_written_stays_though_its_number_is_low(tmp_path):
    store = saved(tmp_path, [5], keep_last=1)
    store.save(3, value(3), {"position": 3})
    store.wait()
    assert store.steps() == [3, 5]


def test_a_damaged_step_is_set_aside_and_never_counts_as_kept(two_steps, tmp_path):
    store = check_damage(two_steps, tmp_path, 3, False)
    store.keep_last = 1
    store.save(5, value(5), {"position": 5})
    store.close()
    assert sorted(path.name for path in store.directory.iterdir()) == ["2.damaged", "5"]


def test_a_step_can_be_written_again(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "a")
    store = Store(tmp_path / "a")
    store.save(2, value(9), {"position": 2})
    store.wait()
    state, _, _ = store.restore(jax.eval_shape(lambda: value(0)))
    same(state, value(9))


def test_what_does_not_fit_is_named(two_steps):
    abstract = jax.eval_shape(lambda: value(0))
    other = jax.eval_shape(
        lambda: {
            **value(0),
            "params": {"fc1": {"kernel": jnp.zeros((8, 16)), "bias": jnp.ones(8, jnp.bfloat16)}},
            "new": jnp.ones(3),
        }
    )
    with pytest.raises(MmflaxError) as caught:
        Store(two_steps).restore(other)
    text = str(caught.value)
    assert f"checkpoint {two_steps}/2 does not fit the config" in text
    assert (
        "params/fc1/kernel is float32[8, 8] in the checkpoint and float32[8, 16] in the config"
        in text
    )
    assert "params/fc1/bias is float32[8] in the checkpoint and bfloat16[8]" in text
    assert "new is only in the config's model" in text
    del abstract["half"]
    with pytest.raises(MmflaxError, match="half is only in the checkpoint"):
        Store(two_steps).restore(abstract)


def test_restore_onto_fewer_devices(tmp_path):
    def on(count):
        mesh = make_mesh(data=1, fsdp=-1, devices=jax.devices()[:count])
        place = {
            "w": NamedSharding(mesh, PartitionSpec("fsdp")),
            "key": NamedSharding(mesh, PartitionSpec()),
        }
        state = {"w": jnp.arange(64.0).reshape(16, 4), "key": jax.random.key(3)}
        return jax.device_put(state, place)

    store = Store(tmp_path)
    state = on(8)
    store.save(0, state, {})
    for step, count in ((1, 4), (2, 1)):
        store.wait()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), on(count)
        )
        state, _, _ = store.restore(abstract)
        assert state["w"].sharding == abstract["w"].sharding
        same(state, on(8))
        store.save(step, state, {})
    store.wait()
    assert store.steps() == [0, 1, 2]


def test_a_failed_write_is_one_sentence_and_harms_nothing(two_steps, tmp_path, monkeypatch):
    shutil.copytree(two_steps, tmp_path / "a")
    store = Store(tmp_path / "a")
    store.save(3, value(3), {"position": 3})
    store.wait()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mmflax.checkpoints.checksums.write", full)
        store.save(4, value(4), {"position": 4})
        with pytest.raises(MmflaxError) as caught:
            store.save(5, value(5), {"position": 5})
    text = str(caught.value)
    assert "/4: " in text and "No space left on device; step 3 is the last good" in text
    assert "\n" not in text
    assert Store(tmp_path / "a").steps() == [1, 2, 3]
    store.save(6, value(6), {"position": 6})
    store.close()
    assert Store(tmp_path / "a").steps() == [2, 3, 6]
    assert not (tmp_path / "a" / "4").exists()


SCRIPT = pathlib.Path(__file__).with_name("limited_save.py")


def script(*arguments):
    root = pathlib.Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def check_killed(tmp_path, points):
    """SIGKILL at the n-th file operation of the second save, for every n in points."""
    done = script("kill", tmp_path, *points)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    found = []
    for point, status in zip(points, outcomes, strict=True):
        assert status in (-signal.SIGKILL, 0), (point, done.stderr)
        store = Store(tmp_path / str(point), keep_last=1)
        abstract = {"w": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
        state, data, step = store.restore(abstract)
        assert not store.problems and data == {"position": step}
        np.testing.assert_array_equal(state["w"], np.full((256, 256), float(step), np.float32))
        assert status == -signal.SIGKILL or step == 2
        store.save(3, {"w": jnp.full((256, 256), 3.0)}, {"position": 3})
        store.close()
        assert sorted(path.name for path in store.directory.iterdir()) == ["3"]
        found.append(step)
    return found


def test_killed_inside_a_save(tmp_path):
    assert check_killed(tmp_path, [3, 25, 10_000]) == [1, 1, 2]


@pytest.mark.slow
def test_killed_anywhere_inside_a_save(tmp_path):
    found = check_killed(tmp_path, [*range(1, 40, 4), *range(40, 120, 2), 10_000])
    assert found[0] == 1 and found[-1] == 2 and found == sorted(found)


def test_a_full_disk_is_one_sentence_and_harms_nothing(tmp_path):
    done = script("full", tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout.strip().splitlines()[-1]
    assert text.startswith(f"could not write checkpoint {tmp_path}/2: ")
    assert "step 1 is the last good checkpoint" in text
    assert "Traceback" not in done.stderr
    state, _, step = Store(tmp_path).restore({"w": jax.ShapeDtypeStruct((256, 256), jnp.float32)})
    assert step == 1
    np.testing.assert_array_equal(state["w"], np.ones((256, 256), np.float32))
