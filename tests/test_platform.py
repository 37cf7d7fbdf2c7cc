"""Memory that is freed stays the process's own, so that a step has no pages zeroed anew."""

import pathlib
import platform
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Allocates and frees 64 MiB as a step does, and counts the pages that the system had to zero.
PAGES = """
import resource, sys
import numpy as np
from mmflax.platform import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
kept = keep_freed_memory()
faults()  # grows the heap
print(kept, returned, faults())
"""


def pages(**variables: str) -> tuple[bool, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PAGES], capture_output=True, text=True, check=True, cwd=ROOT,
        env={"PATH": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip
    kept, before, after = done.stdout.split()
    return kept == "True", int(before), int(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    kept, before, after = pages()
    assert kept and after < before / 10


def test_the_environment_goes_first():
    assert not pages(MALLOC_ARENA_MAX="2")[0]
    assert not pages(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0]
