"""The contrastive losses over a mesh, in memory that does not grow with the number of devices.

Every device keeps its own rows of x while the blocks of y travel round a ring (as attention's keys
do in Liu et al. 2023, "Ring Attention", sec. 3; for the sigmoid loss Zhai et al. 2023, sec. 3.3). A
device compares its rows with the block it holds, adds to its rows' sums and to the sums that travel
with the block, and passes the block on; after a full round both are complete. The largest array is
[k k] for k rows a device: no [B B] matrix, and no gathered features.

The backward pass goes round again and recomputes each block from x, y and the finished sums
instead of keeping blocks; gradients of y travel with their block. Without a mesh, on axes of size
1, or with a batch that does not divide over them, the dense losses are computed.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array

from mmflax.losses.pairs import KINDS, NEGATIVE, Reduce, Sums, allowed, dense_pairs, similarities

AXES = ("data", "fsdp")


def ring_pairs(rows: int) -> Reduce:
    """The reduction for a batch of that many rows: a ring over the mesh in force, if there is one,
    else `dense_pairs`.

    Axes that the mesh lacks count as size 1; those not in `AXES` ("tensor") repeat the work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in AXES if mesh.shape.get(axis, 1) > 1)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if devices == 1 or rows % devices:
        return dense_pairs

    def reduce(x, y, scale, bias, keys, used, *, kind, diagonal):
        if kind == "max":
            x, y = jax.lax.stop_gradient((x, y))
        return _pairs(mesh, axes, kind, diagonal, x, y, scale, bias, keys, used)

    return reduce


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _pairs(mesh, axes, kind, diagonal, x, y, scale, bias, keys, used) -> Sums:
    return _forward(mesh, axes, kind, diagonal, x, y, scale, bias, keys, used)[0]


def _forward(mesh, axes, kind, diagonal, x, y, scale, bias, keys, used) -> Any:
    reduce, merge, empty = KINDS[kind]

    def local(x, y, scale, bias, keys, used):
        tags = _tags(axes, keys, used)

        def step(_, carry):
            rows, y, columns, guests = carry
            following = _pass_on((y, guests), axes)  # sent first, to travel while we compute
            logits, _, _ = _block(x, y, scale, bias, tags, guests, diagonal)
            rows = merge(rows, reduce(logits, 1))
            columns = merge(columns, reduce(logits, 0))
            y, guests = following
            return rows, y, _pass_on(columns, axes), guests

        start = jnp.full(x.shape[:1], empty, jnp.float32)
        rows, _, columns, _ = jax.lax.fori_loop(
            0, _ring_size(mesh, axes), step, (start, y, start, tags)
        )
        return rows, columns

    row, whole = PartitionSpec(axes), PartitionSpec()
    places = (row, row, whole, whole, row, row)
    sums = _over(mesh, local, places, (row, row))(x, y, scale, bias, keys, used)
    return sums, (x, y, scale, bias, keys, used, *sums)


def _backward(mesh, axes, kind, diagonal, saved, grads) -> Any:
    def local(x, y, scale, bias, keys, used, rows, columns, row_grad, column_grad):
        tags = _tags(axes, keys, used)
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
        wide = jnp.float32

        def step(_, carry):
            x_grad, scale_grad, bias_grad, guest, y_grad = carry
            following = _pass_on(guest, axes)
            y, guests, columns, column_grad = guest
            logits, products, counts = _block(x, y, scale, bias, tags, guests, diagonal)
            if kind == "logsumexp":
                grad = row_grad[:, None] * jnp.exp(logits - rows[:, None])
                grad += column_grad[None] * jnp.exp(logits - columns[None])
            else:
                grad = (row_grad[:, None] + column_grad[None]) * jax.nn.sigmoid(logits)
            grad = jnp.where(counts, grad, 0.0)
            x_grad += scale * _product("pq,qd->pd", grad, y.astype(wide))
            y_grad += scale * _product("pq,pd->qd", grad, x.astype(wide))
            scale_grad += (grad * products).sum()
            bias_grad += grad.sum()
            return x_grad, scale_grad, bias_grad, following, _pass_on(y_grad, axes)

        zero, zeros = jnp.zeros((), wide), jnp.zeros(x.shape, wide)
        start = (zeros, zero, zero, (y, tags, columns, column_grad), zeros)
        x_grad, scale_grad, bias_grad, _, y_grad = jax.lax.fori_loop(
            0, _ring_size(mesh, axes), step, start
        )
        scale_grad, bias_grad = jax.lax.psum((scale_grad, bias_grad), axes)
        return x_grad, y_grad, scale_grad, bias_grad

    x, y, scale, bias = saved[:4]
    row, whole = PartitionSpec(axes), PartitionSpec()
    places = (row, row, whole, whole, *[row] * 6)
    gradients = _over(mesh, local, places, (row, row, whole, whole))(*saved, *grads)
    like = (x, y, scale, bias)
    return *(g.astype(v.dtype) for g, v in zip(gradients, like, strict=True)), None, None


_pairs.defvjp(_forward, _backward)


def _block(x, y, scale, bias, tags, guests, diagonal) -> tuple[Array, Array, Array]:
    """Logits [k k] of the rows here with the block that visits, their products, which count."""
    products = similarities(x, y)
    counts = allowed(tags, guests, diagonal)
    logits = scale.astype(jnp.float32) * products + bias.astype(jnp.float32)
    return jnp.where(counts, logits, NEGATIVE), products, counts


def _tags(axes: tuple[str, ...], keys: Array, used: Array) -> tuple[Array, Array, Array]:
    """(index in the global batch, key, used) of this device's rows."""
    rows = keys.shape[0]
    return jax.lax.axis_index(axes) * rows + jnp.arange(rows), keys, used


def _pass_on(tree: Any, axes: tuple[str, ...]) -> Any:
    size = jax.lax.axis_size(axes)
    ring = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axes, ring), tree)


def _product(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def _ring_size(mesh: AbstractMesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _over(mesh: AbstractMesh, function: Any, in_specs: Any, out_specs: Any) -> Any:
    # Sums are whole after a round, which the replication check cannot see.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
