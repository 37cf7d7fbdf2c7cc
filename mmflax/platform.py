"""Which kind of device the code being traced will run on, and the memory of a CPU that is one."""

import ctypes
import os
import sys

import jax

# Of glibc's malloc.h: what `mallopt` sets, and to what. Above the top of the heap 64 MiB are asked
# for at a time, the heap is never trimmed, and no block has a mapping of its own.
_TOP_PAD, _TRIM_THRESHOLD, _MMAP_MAX = -2, -1, -4
_KEPT = ((_TOP_PAD, 64 << 20), (_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))


def platform() -> str:
    """Such as "cpu" or "tpu": the mesh's, which may be another machine's, or this process's."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees, for what it allocates next; whether it does.

    By default glibc returns every large block to the system when it is freed, so a step of training
    on a CPU, which allocates the same blocks again, has every page of them zeroed anew: a quarter
    of its time for small models. Nothing changes where the C library is another (macOS, musl) or
    the environment says how glibc allocates (``MALLOC_…``, ``GLIBC_TUNABLES``).
    """
    if sys.platform != "linux" or any(_of_malloc(*variable) for variable in os.environ.items()):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all([mallopt(*setting) for setting in _KEPT])


def _of_malloc(name: str, value: str) -> bool:
    """Whether a variable of the environment says how glibc allocates."""
    return name.startswith("MALLOC_") or (name == "GLIBC_TUNABLES" and "glibc.malloc" in value)
