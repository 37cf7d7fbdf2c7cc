"""Run by test_store.py: saves that are killed, or meet a full disk.

limited_save.py kill DIR N ...   in DIR/N: save step 1, then die at file operation N of step 2
limited_save.py full DIR         save step 1, then step 2 with no room for its arrays
"""

import json
import os
import resource
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from mmflax.checkpoints.store import Store

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def save(directory, step, fill):
    store = Store(directory, keep_last=1)
    store.save(step, {"w": jnp.asarray(fill, jnp.float32)}, {"position": step})
    store.close()


def die_at(directory, point):
    left = [point]

    def count(event, arguments):
        if event in EVENTS and arguments and str(arguments[0]).startswith(directory):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def kill(directory, points):
    outcomes = []
    for point in points:
        child = os.fork()  # before any device is touched: importing jax once is enough
        if child == 0:
            where = os.path.join(directory, point)
            save(where, 1, np.ones((256, 256)))
            die_at(where, int(point))
            save(where, 2, np.full((256, 256), 2.0))
            os._exit(0)
        outcomes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(outcomes))


def full(directory):
    save(directory, 1, np.ones((256, 256)))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        # Random numbers: a constant array would be compressed to almost nothing.
        save(directory, 2, np.random.default_rng(0).normal(size=(256, 256)))
    except ValueError as error:
        print(error)
        sys.stdout.flush()
        os._exit(0)
    os._exit(3)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    kill(sys.argv[2], sys.argv[3:]) if sys.argv[1] == "kill" else full(sys.argv[2])
