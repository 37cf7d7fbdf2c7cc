"""One training at a time in a workdir: a lock file that says who trains there.

The lock of a process that ended without removing it (killed, or its machine went down) does not
hold: on the same machine the process is looked for, on another one the file's time of change must
be old, since a training renews it every few seconds. Commands that only read take no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmflax.errors import MmflaxError

NAME = "training.lock"
_RENEW, _STALE = 10.0, 120.0  # seconds


def check_free(root: pathlib.Path) -> None:
    """Raises where another process trains in a workdir, or where it cannot be written."""
    above = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise MmflaxError(
            f"{above} is a file, where --workdir {root} needs a folder; name another."
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise MmflaxError(f"{above} cannot be written, as --workdir {root} must; name another.")
    held = _read(root / NAME)
    if held is not None and _is_alive(root / NAME, held):
        raise MmflaxError(_taken(root, held))


@contextlib.contextmanager
def locked(root: pathlib.Path) -> Iterator[None]:
    """Holds the workdir while it is entered; in a run of several processes, process 0 does.

    Raises:
      MmflaxError: in every process of the run, if another one trains there.
    """
    problem, owner = "", None
    if jax.process_count() > 1:
        # None takes the lock before all have read the workdir as it was.
        multihost_utils.sync_global_devices("workdir read")
    if jax.process_index() == 0:
        try:
            owner = _acquire(root)
        except (MmflaxError, OSError) as error:
            problem = str(error)
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(bool(problem)))
        if failed and not problem:
            problem = f"The workdir {root} could not be locked by process 0, which says why."
    if problem:
        raise MmflaxError(problem)
    ended = threading.Event()
    if owner is not None:
        threading.Thread(target=_renew, args=(root / NAME, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if owner is not None and _read(root / NAME) == owner:
            (root / NAME).unlink(missing_ok=True)


def _acquire(root: pathlib.Path) -> dict[str, Any]:
    """Makes the lock file, which another process cannot do at the same time."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / NAME
    owner = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    own = root / f".{NAME}.{owner['host']}.{owner['process']}"
    own.write_text(json.dumps(owner) + "\n", encoding="utf-8")
    try:
        for _ in range(3):
            try:
                os.link(own, path)  # whole, or an error if there is one
                return owner
            except FileExistsError:
                held = _read(path)
                if held is not None and _is_alive(path, held):
                    raise MmflaxError(_taken(root, held)) from None
                path.unlink(missing_ok=True)
            except OSError:  # a file system without links
                with path.open("x", encoding="utf-8") as file:
                    file.write(json.dumps(owner) + "\n")
                return owner
    finally:
        own.unlink(missing_ok=True)
    raise MmflaxError(
        f"The workdir {root} could not be locked; others begin there, too. Run again."
    )


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Who holds a lock; None if nobody does, {} for a file that is not ours to read."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _is_alive(path: pathlib.Path, held: dict[str, Any]) -> bool:
    """Whether the process that made a lock is still there, as far as can be seen from here."""
    if held.get("host") == socket.gethostname() and isinstance(held.get("process"), int):
        started = _started(held["process"])
        return started is not None and started == held.get("started")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:  # the file server's clock
            return os.fstat(file.fileno()).st_mtime - path.stat().st_mtime < _STALE
    except FileNotFoundError:
        return False


def _started(process: int) -> str | None:
    """When a process of this machine began, which no later one of its number shares; or None."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = fields.rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except OSError:
        pass
    if pathlib.Path("/proc/self/stat").exists():
        return None
    try:  # not Linux: its number alone
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "unknown"


def _renew(path: pathlib.Path, ended: threading.Event) -> None:
    while not ended.wait(_RENEW):
        with contextlib.suppress(OSError):
            os.utime(path)


def _taken(root: pathlib.Path, held: dict[str, Any]) -> str:
    who = f"process {held.get('process', '?')} on {held.get('host', 'an unknown machine')}"
    return (
        f"Another training runs in {root} ({who}, since {held.get('time', '?')}); wait for it, "
        f"give another --workdir, or, if it has ended, delete {root / NAME}."
    )
