"""The table of where parameters lie."""

import jax
import jax.numpy as jnp

from mmflax.distributed.layout import layout_table
from mmflax.distributed.mesh import make_mesh, param_specs, with_rules

PARAMS = {
    "layers": {"query": {"kernel": jax.ShapeDtypeStruct((3, 16, 4, 8), jnp.float32)}},
    "fc1": {"bias": jax.ShapeDtypeStruct((32,), jnp.bfloat16)},
    "table": jax.ShapeDtypeStruct((8, 16), jnp.float32),
    "temperature": jax.ShapeDtypeStruct((), jnp.float32),
}


def table(*sizes):
    rules = with_rules(((r"table$", (("data", "fsdp"), None)),))
    text = layout_table(PARAMS, param_specs(PARAMS, rules, make_mesh(*sizes)))
    header, *rows = text.splitlines()
    assert header.split("  ")[0] == "parameter" and header.endswith("bytes of a chip")
    assert len({len(row) for row in (header, *rows)}) == 1
    return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows]


def test_each_parameter_has_its_axes_and_the_bytes_of_a_chip():
    assert table(2, 2, 2) == [
        ["fc1/bias", "32", "tensor", "32"],
        ["layers/query/kernel", "3x16x4x8", "-, fsdp, tensor, -", "1,536"],
        ["table", "8x16", "dataxfsdp, -", "128"],
        ["temperature", "scalar", "whole", "4"],
        ["all parameters", "1,700"],
    ]


def test_axes_of_one_device_split_nothing():
    assert [row[2:] for row in table(8, 1, 1)] == [
        ["whole", "64"],
        ["whole", "6,144"],
        ["data, -", "64"],
        ["whole", "4"],
        [],
    ]
