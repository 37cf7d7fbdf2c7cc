"""Ahead-of-time compilation for TPU slices, in processes of its own: libtpu loads once in each."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import tiny

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent.parent

CONFIG = """
import json
from ml_collections import ConfigDict
def get_config(arg=None):
  return ConfigDict(json.loads({text!r}))
"""


def plan(tmp_path, shapes_dir, topology, *words):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(text=json.dumps(tiny.config(shapes_dir))))
    command = [sys.executable, "-m", "mmflax.cli", "plan", "--config", str(path), "--json",
               "--topology", topology, *words]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "MMFLAX_"))}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)


def test_fsdp_splits_what_a_chip_holds(tmp_path, shapes_dir):
    found = {}
    for fsdp in (1, 4):
        done = plan(tmp_path, shapes_dir, "v5e:2x2", f"--config.mesh.fsdp={fsdp}")
        assert done.returncode == 0, done.stderr[-2000:]
        found[fsdp] = json.loads(done.stdout.splitlines()[-1])
    assert found[1]["chips"] == found[4]["chips"] == 4
    assert found[4]["state"] < 0.75 * found[1]["state"]
    assert found[4]["collectives"].get("all-gather", 0) > 0
    assert found[1]["collectives"].get("all-reduce", 0) > 0


def test_an_unknown_topology_is_one_sentence(tmp_path, shapes_dir):
    done = plan(tmp_path, shapes_dir, "v99:2x2")
    assert done.returncode == 1
    assert "expected a name such as v5e:4x4" in done.stderr
