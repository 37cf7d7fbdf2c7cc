"""launch/local_processes by itself, and training on it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mmflax.distributed import processes
from mmflax.errors import MmflaxError

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = str(ROOT / "launch" / "local_processes")
TOY = str(pathlib.Path(__file__).with_name("toy_run.py"))


def start(count, each, *command):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MMFLAX_")}
    return subprocess.Popen(
        [LAUNCH, str(count), str(each), "--", sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(started, timeout=300):
    out, err = started.communicate(timeout=timeout)
    return started.returncode, out, err


def launch(*arguments):
    return finish(start(*arguments))


def test_help_and_usage():
    done = subprocess.run([LAUNCH, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "local_processes 2 2 -- mmflax train" in done.stdout
    assert subprocess.run([LAUNCH, "0", "1", "--", "x"], capture_output=True).returncode == 2
    assert subprocess.run([LAUNCH, "1", "1"], capture_output=True).returncode == 2
    missing = subprocess.run([LAUNCH, "1", "1", "--", "no-such"], capture_output=True, text=True)
    assert missing.returncode == 1 and "cannot start no-such" in missing.stderr


def test_children_get_their_place_and_process_0_speaks(tmp_path):
    code = (
        "import os, pathlib; e = {k: v for k, v in os.environ.items() if k.startswith('MMFLAX')};"
        f"pathlib.Path('{tmp_path}', e['MMFLAX_PROCESS_ID']).write_text(str(e));"
        "print('hello from', e['MMFLAX_PROCESS_ID'])"
    )
    assert launch(3, 2, "-c", code)[:2] == (0, "hello from 0\n")
    found = [eval((tmp_path / str(i)).read_text()) for i in range(3)]
    assert len({place["MMFLAX_COORDINATOR"] for place in found}) == 1
    for i, place in enumerate(found):
        assert place["MMFLAX_PROCESS_ID"] == str(i) and place["MMFLAX_NUM_PROCESSES"] == "3"
        assert place["MMFLAX_LOCAL_DEVICES"] == "2"


def test_an_error_in_one_ends_all_with_its_message():
    code = (
        "import os, sys, time\n"
        "if os.environ['MMFLAX_PROCESS_ID'] == '1': sys.exit('a bad record')\n"
        "time.sleep(100)"
    )
    began = time.time()
    status, _, err = launch(3, 1, "-c", code)
    assert status == 1 and time.time() - began < 20
    assert "a bad record" in err and "process 1 ended with exit code 1" in err


def test_the_killed_one_is_named_and_not_the_one_that_noticed(tmp_path):
    code = (
        "import os, pathlib, signal, sys, time\n"
        f"dead = pathlib.Path('{tmp_path}', 'dead')\n"
        "if os.environ['MMFLAX_PROCESS_ID'] == '1':\n"
        "    dead.touch(); time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)\n"
        "while not dead.exists(): time.sleep(0.01)\n"
        "sys.exit('connection lost')"
    )
    status, _, err = launch(2, 1, "-c", code)
    assert status == 128 + signal.SIGKILL and "process 1 ended with exit code 137" in err


def test_the_error_is_named_and_not_the_one_that_aborted_over_it(tmp_path):
    """A runtime that loses its coordinator aborts, often before the coordinator has ended."""
    code = (
        "import os, sys, time\n"
        "if os.environ['MMFLAX_PROCESS_ID'] == '1': os.abort()\n"
        "time.sleep(2); sys.exit('a bad batch size')"
    )
    status, _, err = launch(2, 1, "-c", code)
    assert status == 1 and "a bad batch size" in err and "process 0 ended with exit code 1" in err


def test_an_abort_of_its_own_is_named():
    status, _, err = launch(2, 1, "-c", "import os; os.abort()")
    assert status == 128 + signal.SIGABRT and "ended with exit code 134" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_child(tmp_path, number):
    code = (
        "import os, pathlib, signal, sys, time\n"
        f"mine = pathlib.Path('{tmp_path}', os.environ['MMFLAX_PROCESS_ID'])\n"
        "def end(*_): mine.write_text('asked'); sys.exit(0)\n"
        f"signal.signal({int(number)}, end); mine.write_text('ready')\n"
        "time.sleep(100)"
    )
    started = start(2, 1, "-c", code)
    files = [tmp_path / "0", tmp_path / "1"]
    while not all(file.exists() and file.read_text() == "ready" for file in files):
        time.sleep(0.05)
    started.send_signal(number)
    assert finish(started)[0] == 0
    assert [file.read_text() for file in files] == ["asked", "asked"]


def test_half_an_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("MMFLAX_COORDINATOR", "127.0.0.1:1")
    monkeypatch.setenv("MMFLAX_NUM_PROCESSES", "two")
    with pytest.raises(MmflaxError, match="must be whole numbers; found .*two"):
        processes.initialize()


def records(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_train_like_one_and_take_turns(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for directory, shape in ((one, (1, 4)), (two, (2, 2))):
        status, _, err = launch(*shape, TOY, directory, 10)
        assert status == 0, err
        assert err.count("step 10/10  loss") == 1  # logs of process 0 alone
    expected, found = records(one), records(two)
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for a, b in zip(found, expected, strict=True):
        (name,) = {"loss", "val/loss"} & a.keys()
        assert a[name] == pytest.approx(b[name], rel=1e-5)
    assert (two / "end1of2.json").exists()

    # Each goes on from what the other wrote; evaluation stays the same on both.
    for directory, shape in ((one, (2, 2)), (two, (1, 4))):
        status, _, err = launch(*shape, TOY, directory, 14)
        assert status == 0 and "resumed from step 10" in err
    a, b = records(one)[-1], records(two)[-1]
    assert a["step"] == 14 and a["val/loss"] == pytest.approx(b["val/loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_sigterm_to_one_saves_the_same_step_everywhere(tmp_path, count):
    started = start(count, 2 if count == 2 else 1, TOY, tmp_path, 100_000, 0.05)
    while not (tmp_path / "checkpoints" / "4" / "SEAL").exists():
        time.sleep(0.1)
        assert started.poll() is None, finish(started)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(started.pid)], capture_output=True, text=True
    )
    asked = time.time()
    os.kill(int(children.stdout.split()[-1]), signal.SIGTERM)
    status, _, err = finish(started)
    assert status == 0, err
    assert time.time() - asked < 60
    ends = [json.loads((tmp_path / f"end{i}of{count}.json").read_text()) for i in range(count)]
    assert all(end == ends[0] and end["preempted"] for end in ends)
    assert (tmp_path / "checkpoints" / str(ends[0]["step"]) / "SEAL").exists()
    assert "asked to stop (SIGTERM)" in err


@pytest.mark.slow
def test_an_error_in_one_training_process_ends_all(tmp_path):
    status, _, err = launch(2, 2, TOY, tmp_path, 100_000, 0, 1)
    assert status == 1
    assert "error: this process found a bad record" in err
    assert "process 1 ended with exit code 1" in err


@pytest.mark.slow
def test_a_killed_process_ends_all(tmp_path):
    started = start(2, 2, TOY, tmp_path, 100_000, 0.05)
    while not (tmp_path / "checkpoints" / "4" / "SEAL").exists():
        time.sleep(0.1)
        assert started.poll() is None, finish(started)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(started.pid)], capture_output=True, text=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    status, _, err = finish(started, timeout=60)
    assert status == 128 + signal.SIGKILL and "ended with exit code 137" in err
