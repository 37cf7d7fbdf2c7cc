"""Records `hlo/NAME.txt.gz`: programs that libtpu compiled for a slice of v5e, as text.

    python tests/golden/record_hlo.py [FOLDER [NAME ...]]

Needs the extra `aot`; the tests that read the texts do not. Each program is a training step of
residual MLPs, in bf16 with float32 parameters.
"""

import gzip
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from mmflax.distributed.mesh import BATCH_AXES, make_mesh  # noqa: E402
from mmflax.distributed.plan import topology_devices  # noqa: E402

DEPTH, ROWS, TOKENS = 4, 64, 256


class Program(NamedTuple):
    topology: str
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    scan: bool
    width: int
    slices: int = 1


PROGRAMS = {
    "scan_fsdp": Program("v5e:4x4", (1, 16, 1), True, 1024),
    "loop_fsdp": Program("v5e:4x4", (1, 16, 1), False, 1024),
    "scan_tensor": Program("v5e:4x4", (1, 4, 4), True, 1024),
    "loop_data": Program("v5e:2x2", (2, 2, 1), False, 128),
    "two_slices": Program("v5e:2x2", (2, 4, 1), False, 128, slices=2),
}


def block(x, weights):
    hidden = jax.nn.gelu(x @ weights["up"].astype(x.dtype))
    return x + hidden @ weights["down"].astype(x.dtype)


def compiled(program: Program) -> str:
    devices = topology_devices(program.topology)
    if program.slices > 1:
        devices = topologies.get_topology_desc(
            program.topology, platform="tpu", num_slices=program.slices
        ).devices
    mesh = make_mesh(*program.mesh, devices=devices)

    def on(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def layer(x, weights):
        x = jax.lax.with_sharding_constraint(x, on(BATCH_AXES))
        return jax.lax.with_sharding_constraint(block(x, weights), on(BATCH_AXES)), None

    def loss(params, x):
        if program.scan:
            x, _ = jax.lax.scan(layer, x, params)
        else:
            for weights in params:
                x, _ = layer(x, weights)
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(params, x):
        value, gradient = jax.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), value

    def weights(*lead):
        none, d = (None,) * len(lead), program.width
        return {
            "up": jax.ShapeDtypeStruct(
                (*lead, d, 4 * d), jnp.float32, sharding=on(*none, "fsdp", "tensor")
            ),
            "down": jax.ShapeDtypeStruct(
                (*lead, 4 * d, d), jnp.float32, sharding=on(*none, "tensor", "fsdp")
            ),
        }

    params = weights(DEPTH) if program.scan else [weights() for _ in range(DEPTH)]
    x = jax.ShapeDtypeStruct((ROWS, TOKENS, program.width), jnp.bfloat16, sharding=on(BATCH_AXES))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, on()))
    text = jitted.lower(params, x).compile().as_text()
    # Without the table of source files, which has this machine's paths.
    return text[: text.index("\n") + 1] + text[text.index("\n%") :]


def main(folder: str = str(pathlib.Path(__file__).with_name("hlo")), *names: str) -> None:
    pathlib.Path(folder).mkdir(exist_ok=True)
    for name in names or PROGRAMS:
        packed = gzip.compress(compiled(PROGRAMS[name]).encode(), mtime=0)
        pathlib.Path(folder, f"{name}.txt.gz").write_bytes(packed)
        print(name, len(packed))


if __name__ == "__main__":
    main(*sys.argv[1:])
