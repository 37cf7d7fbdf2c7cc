"""Multi-process runs: initialization, preemption, exit.

``initialize`` reads the environment that a launcher sets:

========================  ==========================================================
MMFLAX_COORDINATOR        ``host:port`` of process 0, or ``auto`` (TPU pods, Slurm: jax finds it)
MMFLAX_NUM_PROCESSES      number of processes
MMFLAX_PROCESS_ID         this process, from 0
MMFLAX_LOCAL_DEVICES      simulated CPU devices in this process
========================  ==========================================================
"""

import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmflax.errors import MmflaxError

# Seconds without a heartbeat after which the other processes abort.
_LOCAL_HEARTBEAT, _HEARTBEAT = 30, 100


def initialize() -> None:
    """Join the run that the environment describes; without one, a run of one process.

    Call before anything touches a device.
    """
    local = os.environ.get("MMFLAX_LOCAL_DEVICES")
    coordinator = os.environ.get("MMFLAX_COORDINATOR")
    if local:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(local))
    if not coordinator:
        return
    if coordinator == "auto":
        jax.distributed.initialize()
    else:
        try:
            count = int(os.environ["MMFLAX_NUM_PROCESSES"])
            index = int(os.environ["MMFLAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise MmflaxError(
                "MMFLAX_COORDINATOR is set, so MMFLAX_NUM_PROCESSES and MMFLAX_PROCESS_ID must be "
                f"whole numbers; found {error}"
            ) from None
        if count == 1:
            return
        beat = _LOCAL_HEARTBEAT if local else _HEARTBEAT
        jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=beat)
    # An uncaught error would otherwise wait at exit for the others, who wait for this process.
    show = sys.excepthook

    def report_and_leave(*error: Any) -> None:
        show(*error)
        leave(1)

    sys.excepthook = report_and_leave


def is_main() -> bool:
    """True in the one process that writes logs and files."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """What process 0 has, in every process, as JSON gives it back: lists for tuples."""
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return json.loads(text)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    own = np.zeros(length, np.uint8)
    own[: len(text)] = np.frombuffer(text, np.uint8)[:length]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(own))))


def leave(code: int) -> NoReturn:
    """End this process; after an error in a multi-process run, without waiting for the others."""
    if code and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class Preemption:
    """Handles SIGTERM; ``reached(step)`` turns true at one step that all processes agree on.

    SIGTERM to any process of a run stops all. A context manager, which restores the signal's former
    handler.
    """

    def __init__(self) -> None:
        self._received = False
        self._former: signal._HANDLER = None

    def __enter__(self) -> "Preemption":
        # jax.distributed has its own handler, which notifies the other processes.
        if jax.process_count() == 1:
            self._former = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)
            self._former = None

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step. Call once a step, in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
