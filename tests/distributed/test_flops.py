"""FLOPs by arithmetic, against hand counts and XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from mmflax.distributed.flops import count_flops
from mmflax.models.layers.chunked_attention import ATTENTION_OUTPUT
from mmflax.models.layers.splash_attention import splash_attention


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_of_matrices_and_their_derivatives():
    def product(x, w):
        return (x @ w).sum()

    x, w = floats(8, 3, 5), floats(5, 7)
    once = 2 * 8 * 3 * 5 * 7
    assert count_flops(product, x, w) == once
    assert count_flops(jax.grad(product), x, w) == 2 * once
    assert count_flops(jax.grad(product, (0, 1)), x, w) == 3 * once


def test_a_scan_counts_as_often_as_it_runs():
    def looped(x, w):
        for i in range(6):
            x = jnp.tanh(x @ w[i])
        return x.sum()

    def scanned(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    x, w = floats(4, 8), floats(6, 8, 8)
    for make in (lambda f: f, lambda f: jax.grad(f, (0, 1)), jax.jit):
        assert count_flops(make(scanned), x, w) == count_flops(make(looped), x, w)
    assert count_flops(scanned, x, w) == 6 * 2 * 4 * 8 * 8


def test_what_is_computed_again_counts_again():
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    def loss(x, w):
        return layer(x, w).sum()

    def again(x, w):
        return jax.checkpoint(layer)(x, w).sum()

    x, w = floats(4, 8), floats(8, 8)
    once = 2 * 4 * 8 * 8
    assert count_flops(jax.grad(loss, (0, 1)), x, w) == 6 * once
    # Of the last product the backward pass needs no output but the tanh's, so both run again.
    assert count_flops(jax.grad(again, (0, 1)), x, w) == 8 * once


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_convolutions_agree_with_xla(stride, groups):
    def loss(x, w):
        out = jax.lax.conv_general_dilated(
            x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip
        return (out * out).sum()

    x, w = floats(2, 16, 16, 8), floats(4, 4, 8 // groups, 16)
    side = (16 - 4) // stride + 1
    forward = 2 * 2 * side * side * 16 * 4 * 4 * (8 // groups)
    assert count_flops(loss, x, w) == forward
    kernel = count_flops(jax.grad(loss, 1), x, w) - forward
    assert kernel == pytest.approx(forward, rel=0.02)
    image = count_flops(jax.grad(loss, 0), x, w) - forward
    # The gradient of the image is counted at every pixel, also at those near the edge.
    assert forward <= 1.02 * image and image <= forward * (16 / (side * stride)) ** 2 * 1.02


def test_branches_count_by_the_longest():
    def either(x, w):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    assert count_flops(either, floats(4, 8), floats(8, 8)) == 2 * 2 * 4 * 8 * 8


def test_shard_map_counts_all_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    @jax.jit
    def split(x, w):
        return jax.shard_map(
            lambda x, w: x @ w, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()),
            out_specs=spec,
        )(x, w)  # fmt: skip

    assert count_flops(split, floats(16, 4), floats(4, 4)) == 2 * 16 * 4 * 4


def test_a_kernel_counts_its_body_for_every_step_of_its_grid():
    """Flash attention: 2 products forward; 4 for keys and values and 3 for queries backward (Dao
    et al. 2022, algorithms 2 and 4, with one pass each for dq and for dk and dv)."""

    def attend(query, key, value):
        return splash_attention(query, key, value, interpret=True).sum()

    rows, length, heads, width = 2, 1024, 3, 64  # two blocks of 512 in each direction
    x = floats(rows, length, heads, width)
    product = 2 * rows * heads * length * length * width
    assert count_flops(attend, x, x, x) == 2 * product
    rowwise = 2 * x.size  # of the output and its derivative
    assert count_flops(jax.grad(attend, (0, 1, 2)), x, x, x) == 9 * product + rowwise


def test_a_kernel_whose_results_are_kept_is_not_run_again():
    def attend(x):
        return splash_attention(x, x, x, interpret=True)

    x = floats(1, 512, 1, 64)
    once = count_flops(attend, x)

    def again(policy):
        layer = jax.checkpoint(attend, policy=policy)
        return count_flops(jax.grad(lambda x: jnp.tanh(layer(x)).sum()), x)

    kept = jax.checkpoint_policies.save_only_these_names(ATTENTION_OUTPUT)
    none = count_flops(jax.grad(lambda x: jnp.tanh(attend(x)).sum()), x)
    assert once > 0 and again(kept) == none
    assert again(jax.checkpoint_policies.nothing_saveable) == none + once
