"""Attention compiled ahead of time for a TPU slice: what is built, what is gathered, what is kept.

In processes of their own, as in test_plan.py.
"""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent.parent

BEGIN = """
from mmflax.distributed.collectives import KINDS
from mmflax.distributed.plan import topology_devices
devices = topology_devices("v5e:2x2")
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from mmflax.distributed.mesh import activation_rules, make_mesh
from mmflax.models.layers.attention import attend
"""

# Eight examples over two, twelve heads over two, 1,297 tokens in bfloat16.
ATTENTION = """
mesh = make_mesh(1, 2, 2, devices=devices)
split = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
x = jax.ShapeDtypeStruct((8, 1297, 12, 64), jnp.bfloat16, sharding=split)
rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
mask = jax.ShapeDtypeStruct((8, 1, 1, 1297), bool, sharding=rows)

def compiled(implementation):
    def total(query, key, value, mask):
        mixed = attend(query, key, value, mask, implementation=implementation)
        return mixed.astype(jnp.float32).sum()

    with activation_rules(mesh):
        program = jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(x, x, x, mask).compile()
    return program.as_text(), program.memory_analysis().temp_size_in_bytes

matrix = 4 * 6 * 1297 * 1297 * 2
assert compiled("xla")[1] > matrix
for implementation in ("chunked", "splash", "auto"):
    text, temporary = compiled(implementation)
    assert temporary < matrix / 4, (implementation, temporary)
    assert ("splash_mha_dkv" in text) == (implementation != "chunked"), implementation
    for kind in KINDS:
        assert kind == "all-reduce" or f" {kind}(" not in text, (implementation, kind)
        assert kind == "all-reduce" or f" {kind}-start(" not in text, (implementation, kind)
print("done")
"""


def run(program):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "MMFLAX_"))}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", BEGIN + program]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)


def test_no_matrix_is_built_and_no_batch_is_gathered():
    done = run(ATTENTION)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-2000:]
