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


def sizes(*more):
    """Nothing is read: a few words and answers."""
    words = ("answers=5", "examples=320", *more)
    return [f"--config.plan.shapes.{word}" for word in words]


def test_a_report_of_a_slice_that_is_not_there(tmp_path, shapes_dir):
    """Bytes of the compiler, traffic by mesh axis, time and money; nothing else is printed."""
    split = ("--config.mesh.fsdp=4", "--price=2", f"--figure={tmp_path / 'plan.png'}")
    done = plan(tmp_path, tmp_path / "none", "v5e:2x2", *sizes(), *split)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    found = json.loads(done.stdout)
    whole = json.loads(plan(tmp_path, tmp_path / "none", "v5e:2x2", *sizes()).stdout)
    assert not (tmp_path / "none").exists()
    assert found["kind"] == "TPU v5 lite" and found["chips"] == whole["chips"] == 4
    assert found["memory"]["parameters"] < 0.5 * whole["memory"]["parameters"]
    assert found["memory"]["limit"] == 16 * 2**30
    gathers = [one for one in found["sent"] if one["kind"] == "all-gather"]
    assert gathers and all(one["axes"] == ["fsdp"] for one in gathers)
    reduced = [one for one in whole["sent"] if one["axes"] == ["data"]]
    sent = sum(one["bytes"] * one["times"] for one in reduced)
    # Each gradient once, in a ring of four: 2 * 3/4 of its bytes.
    assert sent == pytest.approx(1.5 * whole["memory"]["parameters"], rel=0.1)
    assert found["roofline"]["step"] >= found["roofline"]["network_exposed"] > 0
    assert found["cost"] == pytest.approx(2 * 4 * found["hours"])
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_names_a_command_that_can_be_planned(tmp_path, shapes_dir):
    words = sizes("max_length=16")
    done = plan(tmp_path, tmp_path / "none", "v5e:2x2", "--search=2", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["considered"] > 20 and done.stderr.count(" ms, ") == 2
    again = plan(
        tmp_path, tmp_path / "none", "v5e:2x2", *sizes("max_length=16"), *found["overrides"]
    )
    assert json.loads(again.stdout)["memory"] == found["best"]["memory"]


def test_a_step_that_does_not_fit_says_by_how_much(tmp_path, shapes_dir):
    huge = ("--config.data.batch_size=2000000", "--config.evaluation.batch_size=16")
    done = plan(tmp_path, tmp_path / "none", "v5e:2x2", *sizes(), *huge)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    said = "does not fit into the memory of one of 4 chips (the compiler counts 127,"
    assert said in done.stderr and "MiB and has 16,128, 111," in done.stderr
    assert "--config.data.batch_size=ROWS" in done.stderr


def test_an_unknown_topology_is_one_sentence(tmp_path, shapes_dir):
    done = plan(tmp_path, shapes_dir, "v99:2x2")
    assert done.returncode == 1
    assert "such as v2:4x4, v3:8x8, v4:2x2x4, v5e:4x4, v5p:2x2x4" in done.stderr
    assert "Invalid TPU external name: TPU v99" in done.stderr
    assert done.stderr.count("\n") == 1  # libtpu says nothing beside it


TWO_SLICES = """
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from mmflax.distributed.mesh import batch_sharding, make_mesh
from mmflax.distributed.plan import FAMILIES, topology_devices
from mmflax.errors import MmflaxError
devices = topology_devices("v5e:2x2*2")
mesh = make_mesh(-1, 2, 2, devices)
print(dict(mesh.shape))
print([[device.slice_index for device in row.flat] for row in mesh.devices])
rows = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=batch_sharding(mesh))
weight = jax.ShapeDtypeStruct(
    (128, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
)
loss = lambda weight, rows: jnp.sum((rows @ weight) ** 2)
step = jax.jit(jax.grad(loss), out_shardings=weight.sharding)
print("all-reduce" in step.lower(weight, rows).compile().as_text())
try:
    make_mesh(1, 4, 2, devices)
except MmflaxError as error:
    print(error)
for example in FAMILIES.replace(" or ", ", ").split(", "):
    found = topology_devices(example)
    print(example, len(found), dict(make_mesh(-1, 8, 2, found).shape))
print(dict(make_mesh(-1, 32, 2, topology_devices("v5e:16x16*2")).shape))
for name in ("v5e:2x2*0", "v5e:2x2*", "v5e:2x2*two", "v5e:3x3"):
    try:
        topology_devices(name)
    except MmflaxError as error:
        print(error)
"""


def test_the_data_axis_crosses_slices():
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TPU_"))}
    done = subprocess.run(
        [sys.executable, "-c", TWO_SLICES], env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    sizes, slices, reduces, axis, *rest = done.stdout.splitlines()
    assert sizes == "{'data': 2, 'fsdp': 2, 'tensor': 2}"
    assert slices == "[[0, 0, 0, 0], [1, 1, 1, 1]]"
    assert reduces == "True"  # gradients, over both slices
    assert axis.startswith("mesh axis data = 1 must be a multiple of the 2 TPU slices")
    families, split, wrong = rest[:7], rest[7], rest[8:]
    chips = {"v2": 32, "v3": 128, "v4": 16, "v5e": 16, "v5p": 16, "v6e": 256, "tpu7x": 32}
    for (family, devices), line in zip(chips.items(), families, strict=True):
        assert line.startswith(f"{family}:") and f" {devices} " in line
        assert line.endswith(f"{{'data': {devices // 16}, 'fsdp': 8, 'tensor': 2}}")
    # 32 is no dimension of 16x16 chips, nor a product of any.
    assert split == "{'data': 8, 'fsdp': 32, 'tensor': 2}"
    for what, line in zip(("'0'", "''", "'two'", "not divisible"), wrong, strict=True):
        assert what in line and "with *N behind it for N slices" in line
