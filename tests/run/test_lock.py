"""One training at a time in a workdir."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from mmflax.errors import MmflaxError
from mmflax.run import lock


def test_a_second_training_is_refused_and_the_lock_is_removed(tmp_path):
    root = tmp_path / "runs" / "w"
    lock.check_free(root)
    with lock.locked(root):
        assert json.loads((root / lock.NAME).read_text())["process"] == os.getpid()
        for attempt in (lambda: lock.check_free(root), lock.locked(root).__enter__):
            with pytest.raises(MmflaxError, match=f"process {os.getpid()} on .*delete") as error:
                attempt()
            assert "\n" not in str(error.value)
    assert list(root.iterdir()) == []
    with pytest.raises(ZeroDivisionError), lock.locked(root):
        _ = 1 / 0
    assert list(root.iterdir()) == []


def held(root, **fields):
    owner = {"host": socket.gethostname(), "process": os.getpid(), "time": "now"}
    owner["started"] = lock._started(os.getpid())
    (root / lock.NAME).write_text(json.dumps(owner | fields))


@pytest.mark.parametrize(
    ("fields", "age", "refused"),
    [
        ({}, 1e6, True),  # on this machine the process decides, not the time
        ({"started": "1"}, 0, False),  # another process has its number
        ({"process": 2**22 + 1}, 0, False),
        ({"host": "elsewhere"}, 0, True),
        ({"host": "elsewhere"}, 1000, False),
    ],
)
def test_a_lock_of_a_process_that_ended_does_not_hold(fields, age, refused, tmp_path):
    held(tmp_path, **fields)
    then = time.time() - age
    os.utime(tmp_path / lock.NAME, (then, then))
    if refused:
        with pytest.raises(MmflaxError, match="Another training runs"):
            lock.check_free(tmp_path)
        return
    lock.check_free(tmp_path)
    with lock.locked(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
    assert not (tmp_path / lock.NAME).exists()


def test_a_file_that_says_nothing_holds_only_while_it_is_new(tmp_path):
    path = tmp_path / lock.NAME
    path.write_text("{")
    with pytest.raises(MmflaxError, match="an unknown machine"):
        lock.check_free(tmp_path)
    os.utime(path, (1, 1))
    lock.check_free(tmp_path)


def test_a_killed_process_leaves_nothing_to_remove_by_hand(tmp_path):
    code = (
        "import pathlib, sys, time; from mmflax.run import lock\n"
        f"with lock.locked(pathlib.Path({str(tmp_path)!r})): print('in', flush=True); "
        "time.sleep(60)"
    )
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None and child.stdout.readline() == b"in\n"
    with pytest.raises(MmflaxError, match=f"process {child.pid}"):
        lock.check_free(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with lock.locked(tmp_path):
        pass


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MmflaxError, match="file is a file"):
        lock.check_free(tmp_path / "file" / "w")
