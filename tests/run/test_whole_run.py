"""Real processes: killed and resumed, and two at once, against one that nothing happened to."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from mmflax.run import lock
from mmflax.run.build import Experiment
from mmflax.run.restore import restore
from tests import tiny

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]

CONFIG = """
import json
from ml_collections import ConfigDict
def get_config(arg=None):
  return ConfigDict(json.loads({text!r}))
"""


@pytest.fixture(scope="module")
def config_file(shapes_dir, tmp_path_factory):
    config = tiny.config(shapes_dir, steps=24, log_every=1, eval_every=12, checkpoint_every=3)
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(text=json.dumps(config)))
    return path


def environment(devices: int | None = None) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MMFLAX_", "JAX_", "XLA_"))}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return env | ({"MMFLAX_LOCAL_DEVICES": str(devices)} if devices else {})


def command(config: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    return [sys.executable, "-m", "mmflax.cli", "train", "--config", str(config),
            "--workdir", str(workdir)]  # fmt: skip


def logged(workdir: pathlib.Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in logged(workdir) if "loss" in line}


def parameters(workdir: pathlib.Path, last: int) -> list[np.ndarray]:
    import jax

    _, _, params, step = restore(workdir, last, devices=jax.local_devices()[:1])
    assert step == last
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


@pytest.fixture(scope="module")
def undisturbed(config_file, shapes_dir, tmp_path_factory):
    Experiment(tiny.config(shapes_dir)).dataset()  # prepared once, for all processes
    workdir = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(config_file, workdir), env=environment(4), check=True, timeout=300)
    return workdir


def test_killed_at_random_steps_equals_never_killed(undisturbed, config_file, tmp_path):
    """SIGKILL when a random step has been logged; the same command until it is done."""
    rng = random.Random(7)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(
            command(config_file, tmp_path), env=environment(4),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        target = max(losses(tmp_path), default=0) + rng.randint(1, 8) if kills < 3 else 10**6
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if max(losses(tmp_path), default=0) >= target:
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        if process.wait(timeout=60) == 0:
            break
    assert kills >= 2
    for found, expected in zip(parameters(tmp_path, 24), parameters(undisturbed, 24), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert losses(tmp_path) == losses(undisturbed)  # and no step is written twice
    assert len(losses(tmp_path)) == sum("loss" in line for line in logged(tmp_path))


def test_the_second_of_two_trainings_in_one_workdir_is_refused(config_file, tmp_path):
    first = subprocess.Popen(
        command(config_file, tmp_path), env=environment(1),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (tmp_path / lock.NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second = subprocess.run(
        command(config_file, tmp_path), env=environment(1), capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    ended = first.poll() is not None  # then the second found nobody
    assert first.wait(timeout=300) == 0
    assert not (tmp_path / lock.NAME).exists() and len(losses(tmp_path)) == 24
    if not ended:
        assert second.returncode == 1
        assert f"Another training runs in {tmp_path} (process {first.pid} on" in second.stderr


def test_a_run_of_batch_4_is_evaluated_on_3_devices(shapes_dir, tmp_path):
    config = tiny.config(shapes_dir, steps=4, eval_every=4, checkpoint_every=4)
    config["data"]["batch_size"] = config["evaluation"]["batch_size"] = 4
    file, workdir = tmp_path / "four.py", tmp_path / "w"
    file.write_text(CONFIG.format(text=json.dumps(config)))
    subprocess.run(command(file, workdir), env=environment(2), check=True, timeout=300)
    words = [sys.executable, "-m", "mmflax.cli", "evaluate", "--workdir", str(workdir), "--json"]
    found = []
    for devices in (1, 3):
        done = subprocess.run(
            words, env=environment(devices), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1])["metrics"])
    assert found[1]["full"] == pytest.approx(found[0]["full"], rel=1e-5)


def test_two_processes_of_two_devices_equal_one_of_four(shapes_dir, tmp_path):
    """Every loss, the evaluation and the parameters, but for the order in which sums are added."""
    config = tiny.config(shapes_dir, steps=8, log_every=1, eval_every=4, checkpoint_every=8)
    config["model"]["text_encoder"]["dropout_rate"] = 0.0  # it draws per device
    # Adam turns the rounding noise of gradients that are zero into whole steps; SGD does not.
    config["optim"] = {"name": "sgd", "schedule": {"name": "constant", "peak": 0.05}}
    config["mesh"] = {"data": -1, "fsdp": 2, "tensor": 1}
    Experiment(config).dataset()  # prepared once, for all processes
    file = tmp_path / "plain.py"
    file.write_text(CONFIG.format(text=json.dumps(config)))
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run(command(file, one), env=environment(4), check=True, timeout=300)
    launcher = [sys.executable, str(ROOT / "launch" / "local_processes"), "2", "2", "--"]
    done = subprocess.run(
        launcher + command(file, two),
        env=environment(),
        timeout=400,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "total" in done.stdout and done.stdout.count("train: ") == 1

    assert losses(two).keys() == set(range(1, 9))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    evaluations = [
        {line["step"]: line for line in logged(directory) if "loss" not in line}
        for directory in (one, two)
    ]
    assert evaluations[1].keys() == {4, 8}
    for step, expected in evaluations[0].items():
        assert evaluations[1][step] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # What both processes wrote together, one process reads.
    for value, expected in zip(parameters(two, 8), parameters(one, 8), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_an_error_in_one_process_ends_all_with_its_message(config_file, tmp_path):
    launcher = [sys.executable, str(ROOT / "launch" / "local_processes"), "2", "2", "--"]
    words = [*command(config_file, tmp_path), "--config.data.batch_size=6"]
    done = subprocess.run(
        launcher + words, env=environment(), timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "data.batch_size is 6" in done.stdout + done.stderr
