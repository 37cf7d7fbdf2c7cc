"""Collectives read from compiled programs: of eight CPU devices, of libtpu, and written here."""

import gzip
import math
import operator
import os
import pathlib
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmflax.distributed import hlo
from mmflax.distributed.collectives import (
    Collective,
    collectives,
    ring_bytes,
)
from mmflax.distributed.groups import replica_groups
from mmflax.distributed.mesh import AXES

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "hlo"


def mesh_of(data, fsdp, tensor, devices=None):
    """The devices' ids are in no order: a position in the program is one in the mesh."""
    count = data * fsdp * tensor
    order = np.random.default_rng(0).permutation(count) if devices is None else devices
    devices = np.array(jax.devices(), object)[order]
    return Mesh(devices.reshape(data, fsdp, tensor), AXES)


@pytest.fixture(scope="module")
def cube():
    mesh = mesh_of(2, 2, 2)
    assert [device.id for device in mesh.devices.flat] != list(range(8))
    return mesh


def compiled(function, mesh, *shapes, specs, out):
    """The text of a program over each device's own part."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def swap(x):
    return jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)])


SPLIT = P(("data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("function", "kind", "axes", "sent"),
    [
        # Each device has [8, 4] float32, 128 bytes.
        (lambda x: jax.lax.psum(x, "data"), "all-reduce", ("data",), 128),
        (lambda x: jax.lax.psum(x, ("data", "tensor")), "all-reduce", ("data", "tensor"), 192),
        (lambda x: jax.lax.all_gather(x, "fsdp"), "all-gather", ("fsdp",), 128),
        (lambda x: jax.lax.all_gather(x, AXES), "all-gather", AXES, 896),
        (lambda x: jax.lax.psum_scatter(x, "tensor"), "reduce-scatter", ("tensor",), 64),
        (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True), "all-to-all", ("fsdp",), 64),
        (swap, "collective-permute", ("fsdp",), 128),
    ],
)
def test_kind_axes_and_bytes(cube, function, kind, axes, sent):
    leading = 2 if kind == "reduce-scatter" else 8
    shape = (leading * 8, 32 // leading)
    text = compiled(function, cube, (shape, jnp.float32), specs=(SPLIT,), out=SPLIT)
    group = math.prod(cube.shape[axis] for axis in axes)
    assert collectives(text, cube) == (Collective(kind, axes, sent, group, 1, False),)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_a_gather_in_a_scan_counts_for_every_layer(cube, length):
    def layers(x, weights):
        def layer(x, part):
            return jnp.tanh(x @ jax.lax.all_gather(part, "fsdp", tiled=True)), None

        return jax.lax.scan(layer, x, weights)[0]

    shapes = ((16, 8), jnp.bfloat16), ((length, 8, 8), jnp.bfloat16)
    specs = P("data"), P(None, "fsdp")
    text = compiled(layers, cube, *shapes, specs=specs, out=P("data"))
    (gather,) = (one for one in collectives(text, cube) if one.kind == "all-gather")
    assert (gather.axes, gather.times, gather.exact) == (("fsdp",), length, True)


def test_fsdp_of_a_jitted_scan(cube):
    """Sharding annotations alone, with the gradient: two gathers and a reduction of a layer."""

    def loss(weights, x):
        def layer(x, part):
            x = jax.lax.with_sharding_constraint(x, NamedSharding(cube, P(("data", "fsdp"))))
            part = jax.lax.with_sharding_constraint(part, NamedSharding(cube, P()))
            return jnp.tanh(x @ part), None

        return jax.lax.scan(jax.checkpoint(layer), x, weights)[0].sum()

    weights = jax.ShapeDtypeStruct(
        (5, 32, 32), jnp.float32, sharding=NamedSharding(cube, P(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct(
        (64, 32), jnp.float32, sharding=NamedSharding(cube, P(("data", "fsdp")))
    )
    text = jax.jit(jax.grad(loss)).lower(weights, x).compile().as_text()
    assert "T(1,0,2)" in text  # a transposed mesh
    counts = Counter()
    for one in collectives(text, cube):
        assert one.exact
        counts[one.kind, one.axes] += one.times
    assert counts["all-gather", ("fsdp",)] == 2 * 5
    assert counts["all-reduce", ("data", "fsdp")] == 5


def test_nested_loops_multiply(cube):
    def outer(x):
        def twice(_, x):
            return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.psum(x, "tensor") / 2, x)

        return jax.lax.fori_loop(2, 6, twice, x)

    text = compiled(outer, cube, ((64, 4), jnp.float32), specs=(SPLIT,), out=SPLIT)
    assert [(one.times, one.exact) for one in collectives(text, cube)] == [(12, True)]
    assert "known_trip_count" in text
    # Without the compiler's note, from the conditions, the bodies and what the loops begin with.
    bare = text.replace("known_trip_count", "unknown")
    assert [(one.times, one.exact) for one in collectives(bare, cube)] == [(12, True)]


LOOP = """HloModule loop

%add (p: s32[]) -> s32[] {{
  %p = s32[] parameter(0)
  %step = s32[] constant({step})
  ROOT %next = s32[] add(%step, %p)
}}

%body (s: (f32[8], s32[])) -> (f32[8], s32[]) {{
  %s = (f32[8], s32[]) parameter(0)
  %x = f32[8] get-tuple-element(%s), index=0
  %i = s32[] get-tuple-element(%s), index=1
  %sum = f32[8] all-reduce(%x), channel_id=1, replica_groups={{{{0,1}}}}, to_apply=%plus
  %next = s32[] fusion(%i), kind=kLoop, calls=%add
  ROOT %t = (f32[8], s32[]) tuple(%sum, %next)
}}

%condition (s: (f32[8], s32[])) -> pred[] {{
  %s = (f32[8], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=1
  %limit = s32[] constant({limit})
  ROOT %test = pred[] compare({sides}), direction={direction}
}}

ENTRY %main (x: f32[8]) -> (f32[8], s32[]) {{
  %x = f32[8] parameter(0)
  %first = s32[] constant({start})
  %copied = s32[] copy(%first)
  %t = (f32[8], s32[]) tuple(%x, %copied)
  ROOT %loop = (f32[8], s32[]) while(%t), condition=%condition, body=%body
}}
"""


@given(
    st.integers(-5, 5),
    st.integers(-3, 3),
    st.integers(-9, 9),
    st.sampled_from(["LT", "LE", "GT", "GE", "NE"]),
    st.booleans(),
)
def test_iterations_are_those_of_running_the_loop(start, step, limit, direction, swapped):
    holds = {"LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
             "NE": operator.ne}[direction]  # fmt: skip
    value, times = start, 0
    while times < 40 and (holds(limit, value) if swapped else holds(value, limit)):
        value, times = value + step, times + 1
    sides = "%limit, %i" if swapped else "%i, %limit"
    text = LOOP.format(start=start, step=step, limit=limit, direction=direction, sides=sides)
    found = [(one.times, one.exact) for one in collectives(text, mesh_of(1, 2, 1))]
    if times == 40:  # it does not end, or only when the counter overflows
        assert found == [(1, False)]
    else:
        assert found == ([(times, True)] if times else [])


def test_an_unknown_number_of_iterations_is_marked(cube):
    def until(x):
        return jax.lax.while_loop(
            lambda x: x[0, 0] < 3.0, lambda x: jax.lax.psum(x, "tensor") + 1, x
        )

    text = compiled(until, cube, ((64, 4), jnp.float32), specs=(SPLIT,), out=SPLIT)
    assert [(one.times, one.exact) for one in collectives(text, cube)] == [(1, False)]


@given(
    st.sampled_from(["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]),
    st.integers(2, 9),
    st.integers(1, 50),
)
def test_ring_bytes(kind, n, part):
    """Counted by passing parts to the right-hand neighbor until everybody has what it should."""
    if kind == "all-to-all":  # each sends every other its part
        assert ring_bytes(kind, n * part, n) == sum(part for other in range(n) if other)
        return
    sent = 0
    if kind in ("reduce-scatter", "all-reduce"):
        # sums[chip][k]: whose contribution to part k the chip has summed
        sums = [[{chip} for _ in range(n)] for chip in range(n)]
        while not all(len(sums[chip][chip]) == n for chip in range(n)):
            moved = {c: (c - 1 - sent // part) % n for c in range(n)}
            copies = {c: set(sums[c][k]) for c, k in moved.items()}
            for c, k in moved.items():
                sums[(c + 1) % n][k] |= copies[c]
            sent += part
    if kind in ("all-gather", "all-reduce"):
        has = [[chip] for chip in range(n)]
        while not all(len(set(parts)) == n for parts in has):
            last = [parts[-1] for parts in has]
            for c in range(n):
                has[(c + 1) % n].append(last[c])
            sent += part
    assert ring_bytes(kind, part if kind == "all-gather" else n * part, n) == sent


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=[4,2]<=[2,2,2]T(1,0,2)", [[0, 1], [4, 5], [2, 3], [6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", [[3, 1], [2, 0]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=something new", None),
    ],
)
def test_the_forms_of_replica_groups(text, groups):
    assert replica_groups(text, 4) == groups


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048),
        ("f32[]{:T(128)}", 4),
        ("(s8[3]{0}, /*index=1*/pred[5]{0}, u32[2,2]{1,0})", 24),
        ("f8e4m3fn[10]{0}", 10),
        ("s4[7]{0}", 4),
        ("f32[<=6,2]{1,0}", 48),
        ("(token[], c64[2]{0})", 16),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert hlo.bytes_of(shape) == size


ASYNC = """HloModule written, is_scheduled=true

%fused (p: f32[8]) -> bf16[4] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %c = bf16[4]{{0}} custom-call(%p), custom_call_target="kernel"
}}

%wrapped (p: f32[8]) -> f32[2] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %scatter = f32[2]{{0}} reduce-scatter(%p), channel_id=9, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}, to_apply=%add
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %gather = (f32[8]{{0}}, f32[32]{{0}}) all-gather-start(%x), channel_id=1, replica_groups=[1,4]<=[4], dimensions={{0}}, use_global_device_ids=true
  {first}
  %gathered = f32[32]{{0}} all-gather-done(%gather)
  %two = (f32[8]{{0}}, bf16[4]{{0}}) all-reduce(%x, %y), channel_id=2, replica_groups={{{{0,2}},{{1,3}}}}, use_global_device_ids=true, to_apply=%add
  %start = ((f32[8]{{0}}), f32[2]{{0}}) async-start(%x), calls=%wrapped
  %update = ((f32[8]{{0}}), f32[2]{{0}}) async-update(%start)
  {second}
  ROOT %done = f32[2]{{0}} async-done(%update)
}}
"""  # noqa: E501
WORK = "%NAME = bf16[4]{0} fusion(%x), kind=kLoop, calls=%fused"
IDLE = "%NAME = bf16[4]{0} bitcast(%x)"


@pytest.mark.parametrize(("first", "second"), [(WORK, IDLE), (IDLE, WORK)])
def test_what_is_computed_between_start_and_end_overlaps(first, second):
    mesh = mesh_of(2, 2, 1)
    text = ASYNC.format(first=first.replace("NAME", "y"), second=second.replace("NAME", "z"))
    found = {one.kind: one for one in collectives(text, mesh)}
    gather, reduce, scatter = (
        found[kind] for kind in ("all-gather", "all-reduce", "reduce-scatter")
    )
    assert gather == Collective("all-gather", ("data", "fsdp"), 96, 4, 1, first == WORK)
    assert reduce == Collective("all-reduce", ("data",), 40, 2, 1, False)
    assert scatter == Collective("reduce-scatter", ("data", "fsdp"), 24, 4, 1, second == WORK)


def test_every_branch_counts():
    text = """HloModule branches

%one (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

%two (q: f32[8]) -> f32[8] {
  ROOT %q = f32[8]{0} parameter(0)
}

ENTRY %main (x: f32[8], i: s32[]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %c = f32[8]{0} conditional(%i, %x, %x), branch_computations={%one, %two}
}
"""
    assert [one.times for one in collectives(text, mesh_of(1, 2, 1))] == [1]


def test_what_is_no_program_has_none(cube):
    assert collectives("", cube) == collectives("ENTRY nothing", cube) == ()


def golden(name, sizes):
    text = gzip.decompress((GOLDEN / f"{name}.txt.gz").read_bytes()).decode()
    return collectives(text, AbstractMesh(sizes, AXES))


SHARD = 64 * 4096 * 2  # bf16 bytes of a sixteenth of a kernel of 1024 x 4096
FSDP, TENSOR, DATA = ("fsdp",), ("tensor",), ("data",)


def test_libtpu_matches_a_scan_with_fsdp():
    """Collective matmuls: 8 kernels, 3 products with each, 17 permutes of a shard in a product."""
    permutes, loss = golden("scan_fsdp", (1, 16, 1))
    assert permutes == Collective("collective-permute", FSDP, SHARD, 16, 8 * 3 * 17, True)
    assert loss == Collective("all-reduce", FSDP, 7, 16, 1, False)


def test_libtpu_a_loop_with_fsdp():
    """The first kernel and all gradients by collective matmuls, 7 kernels gathered meanwhile."""
    permutes, gathers, loss = golden("loop_fsdp", (1, 16, 1))
    assert permutes == Collective("collective-permute", FSDP, SHARD, 16, 9 * 17, True)
    assert gathers == Collective("all-gather", FSDP, 15 * SHARD, 16, 7, True)
    assert loss == Collective("all-reduce", FSDP, 7, 16, 1, False)


def test_libtpu_a_scan_with_fsdp_and_tensor():
    """Megatron's sum of a layer's output, once forward and once backward, is waited for."""
    sums, permutes, gathers, loss = golden("scan_tensor", (1, 4, 4))
    activations = 16 * 256 * 1024 * 2
    assert sums == Collective("all-reduce", TENSOR, activations * 3 // 2, 4, 2 * 4, False)
    assert permutes == Collective("collective-permute", FSDP, SHARD, 4, 64, True)
    assert gathers == Collective("all-gather", FSDP, 3 * SHARD, 4, 8, True)
    assert loss.axes == FSDP


def test_libtpu_two_slices():
    """Gradients are scattered in a slice, summed between slices by their hosts, and updated."""
    found = golden("two_slices", (2, 4, 1))
    quarter = 128 * 512 * 2 // 4
    assert all(one.slices == 1 for one in found if one.axes == FSDP)
    between = [one for one in found if one.slices == 2]
    assert {(one.kind, one.axes, one.group) for one in between} == {("all-reduce", DATA, 2)}
    assert sum(one.bytes * one.times for one in between) == pytest.approx(8 * quarter, rel=0.02)
    # Only the first layer's gradient, the last to be ready, is waited for.
    assert [one.times for one in between if one.bytes == quarter and one.overlapped] == [7]
    assert [one.times for one in between if one.bytes == quarter and not one.overlapped] == [1]
    assert {one.axes for one in found} == {DATA, FSDP}


def test_libtpu_a_small_loop_with_data_and_fsdp():
    """Kernels of 128 x 512: gathered, scattered as a fused all-reduce, and summed over data."""
    found = golden("loop_data", (2, 2, 1))
    half = 128 * 512 * 2 // 2
    assert set(found) == {
        Collective("all-reduce", DATA, 8 * half, 2, 1, False),
        Collective("reduce-scatter", FSDP, 8 * half, 2, 1, False),
        Collective("all-gather", FSDP, half, 2, 7, True),
        Collective("all-gather", FSDP, half, 2, 1, False),
        Collective("all-reduce", ("data", "fsdp"), 6, 4, 1, False),
    }


@pytest.mark.slow
def test_the_installed_libtpu(tmp_path):
    """Of the weights' bytes 2 gathers and a reduction, whatever this version makes of them."""
    pytest.importorskip("libtpu")
    script = ROOT / "tests" / "golden" / "record_hlo.py"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(script), str(tmp_path), "scan_fsdp"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    text = gzip.decompress((tmp_path / "scan_fsdp.txt.gz").read_bytes()).decode()
    found = collectives(text, AbstractMesh((1, 16, 1), AXES))
    assert {one.axes for one in found} == {FSDP}
    assert all(one.exact for one in found)
    weights = 4 * 2 * 1024 * 4096 * 2
    assert 2.5 * weights < sum(one.bytes * one.times for one in found) < 4 * weights
