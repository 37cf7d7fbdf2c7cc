"""Contrastive losses against their equations in plain numpy, and over a mesh against both."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.distributed.mesh import make_mesh, on_mesh
from mmflax.losses import contrastive
from mmflax.losses.pairs import dense_pairs

ROWS, WIDTH = 16, 4
KEYS = np.array([0, 1, 2, 3, 0, 5, 6, 7, 8, 9, 1, 11, 12, 13, 14, 0], np.int32)
TWO_KEYS = np.stack([KEYS, np.arange(ROWS, dtype=np.int32) // 3], axis=1)
MASK = np.arange(ROWS) != 3
LOSSES = ("clip", "nt_xent", "sigmoid")


def features(rows=ROWS, width=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, rows, width))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return x.astype(np.float32), y.astype(np.float32)


def expected(name, x, y, scale, bias, keys, mask):
    """The papers' sums, pair by pair, over the rows in use."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    found = np.zeros(len(x))
    for i in np.flatnonzero(mask):
        others = [j for j in np.flatnonzero(mask) if np.all(keys[j] != keys[i])]
        right = np.exp(scale * x[i] @ y[i])
        if name == "clip":  # Radford et al. 2021, fig. 3
            rows = sum(np.exp(scale * x[i] @ y[j]) for j in others)
            columns = sum(np.exp(scale * x[j] @ y[i]) for j in others)
            sums = (rows, columns)
        if name == "nt_xent":  # Chen et al. 2020, eq. 1
            ahead = sum(np.exp(scale * x[i] @ y[j]) + np.exp(scale * x[i] @ x[j]) for j in others)
            back = sum(np.exp(scale * y[i] @ x[j]) + np.exp(scale * y[i] @ y[j]) for j in others)
            sums = (ahead, back)
        if name == "sigmoid":  # Zhai et al. 2023, sec. 3.2: -sum_j log 1 / (1 + exp(z (-tx.y - b)))
            logit = {j: scale * x[i] @ y[j] + bias for j in (i, *others)}
            found[i] = sum(np.log1p(np.exp(-z if j == i else z)) for j, z in logit.items())
        else:
            found[i] = np.mean([-np.log(right / (right + wrong)) for wrong in sums])
    return found


def arguments(name, x, y):
    own = (jnp.float32(-1.5),) if name == "sigmoid" else ()
    return (jnp.asarray(x), jnp.asarray(y), jnp.float32(5.0), *own)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("keys", [None, KEYS, TWO_KEYS], ids=["unmarked", "key", "two keys"])
def test_loss_is_the_papers_sum(name, keys):
    x, y = features()
    given = {} if keys is None else dict(keys=jnp.asarray(keys), mask=jnp.asarray(MASK))
    keys, mask = (np.arange(ROWS), np.ones(ROWS, bool)) if keys is None else (keys, MASK)
    found = jax.jit(getattr(contrastive, name))(*arguments(name, x, y), **given)
    np.testing.assert_allclose(found, expected(name, x, y, 5.0, -1.5, keys, mask), rtol=2e-5)


def test_ties_and_rows_out_of_use_are_no_hits():
    x = jnp.eye(4)
    hits, back = contrastive.recall_at_1(x, x[jnp.array([0, 1, 3, 2])])
    np.testing.assert_array_equal(hits, [1, 1, 0, 0])
    np.testing.assert_array_equal(back, [1, 1, 0, 0])
    same, _ = contrastive.recall_at_1(jnp.ones((4, 2)), jnp.ones((4, 2)))
    np.testing.assert_array_equal(same, 0)
    used, _ = contrastive.recall_at_1(x, x, mask=jnp.array([True, False, True, True]))
    np.testing.assert_array_equal(used, [1, 0, 1, 1])
    twins = jnp.array([7, 7, 2, 3], jnp.int32)  # rows 0 and 1 show one image, and are alike
    alike, _ = contrastive.recall_at_1(x.at[1].set(x[0]), x.at[1].set(x[0]), keys=twins)
    np.testing.assert_array_equal(alike, 1)


# Devices in the ring -> mesh; with 4 the tensor axis, over which rows are not split, takes 2 more.
MESHES = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 2), 8: (4, 2, 1)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("keys", [KEYS, TWO_KEYS], ids=["key", "two keys"])
@pytest.mark.parametrize("devices", MESHES)
def test_ring_is_dense_in_value_and_gradient(name, devices, keys):
    shape = MESHES[devices]
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    x, y = features()
    weight = jnp.arange(1.0, ROWS + 1)  # every row its own, so that none can stand for another
    given = dict(keys=jnp.asarray(keys), mask=jnp.asarray(MASK))
    args = arguments(name, x, y)

    def weighted(loss):
        def total(*args):
            values = loss(*args, **given)
            return (values * weight).sum(), values

        return jax.jit(jax.value_and_grad(total, tuple(range(len(args))), has_aux=True))

    (_, dense), dense_grads = weighted(getattr(contrastive, name))(*args)
    ring = weighted(getattr(contrastive, name))
    (_, values), grads = on_mesh(ring, mesh)(*args)
    np.testing.assert_allclose(values, dense, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(grads, dense_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    parts = shape[0] * shape[1]
    assert len({str(s.index) for s in values.addressable_shards}) == parts


def test_ring_recall_is_dense():
    mesh = make_mesh(8, 1, 1)
    x, y = (jnp.asarray(z) for z in features())
    y = x + 0.5 * y
    given = dict(keys=jnp.asarray(KEYS), mask=jnp.asarray(MASK))
    dense = contrastive.recall_at_1(x, y, **given)
    ring = on_mesh(jax.jit(contrastive.recall_at_1), mesh)(x, y, **given)
    np.testing.assert_array_equal(ring, dense)
    assert 0 < np.sum(dense) < 2 * ROWS


def test_half_precision_keeps_its_type_and_float32_sums():
    mesh = make_mesh(8, 1, 1)
    x, y = (jnp.asarray(z, jnp.bfloat16) for z in features())
    ring = jax.jit(jax.value_and_grad(lambda x: contrastive.clip(x, y, SCALE).sum()))
    value, grad = on_mesh(ring, mesh)(x)
    dense = contrastive.clip(x.astype(jnp.float32), y.astype(jnp.float32), SCALE).sum()
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, dense, rtol=1e-5)


SCALE = jnp.float32(5.0)


def test_a_batch_that_does_not_divide_is_compared_densely():
    x, y = (jnp.asarray(z) for z in features(rows=6))
    found = on_mesh(jax.jit(contrastive.clip), make_mesh(4, 2, 1))(x, y, SCALE)
    np.testing.assert_allclose(found, contrastive.clip(x, y, SCALE), rtol=1e-5)


def compiled(name, devices, rows, loss=None):
    """The gradient of the mean loss, compiled for `rows` a device on that many devices."""
    mesh = make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
    loss = loss or getattr(contrastive, name)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    table = jax.ShapeDtypeStruct((devices * rows, 24), jnp.float32, sharding=place)
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * (2 if name == "sigmoid" else 1)

    def mean(x, y, *rest):
        return loss(x, y, *rest).mean()

    grads = jax.jit(jax.value_and_grad(mean, tuple(range(2 + len(scalars)))))
    with jax.set_mesh(mesh):
        return grads.lower(table, table, *scalars).compile()


@pytest.mark.parametrize(
    "name", ["clip", *(pytest.param(name, marks=pytest.mark.slow) for name in LOSSES[1:])]
)
def test_memory_of_a_device_does_not_grow_with_devices(name):
    rows = 40
    temps = {}
    for devices in (2, 4, 8):
        program = compiled(name, devices, rows)
        temps[devices] = program.memory_analysis().temp_size_in_bytes
        text = program.as_text()
        shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", text)}
        assert (rows, rows) in shapes and "collective-permute" in text
        assert "all-gather" not in text and "all-to-all" not in text
        assert devices * rows not in {size for shape in shapes for size in shape}
    # A few bytes may differ by alignment; one more block would be 40 * 40 * 4 = 6400.
    assert max(temps.values()) - min(temps.values()) < 1024, temps


def test_the_dense_loss_would_fail_the_memory_test():
    dense = functools.partial(contrastive.clip, reduce=dense_pairs)
    temps = [compiled("clip", n, 40, dense).memory_analysis().temp_size_in_bytes for n in (2, 8)]
    assert temps[1] > 2 * temps[0]
