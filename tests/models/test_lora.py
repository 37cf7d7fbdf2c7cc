"""Adapters beside dense kernels: the numbers of the formula, for every kind of kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths
from mmflax.errors import MmflaxError
from mmflax.models import lora
from mmflax.models.called import traced
from mmflax.models.layers.blocks import Block
from mmflax.models.layers.config import LayerConfig, StackConfig
from mmflax.models.layers.stack import Stack

RANK, SCALE = 3, 1.5


class Layers(nn.Module):
    """Every kind of dense kernel: heads out, heads in, MLP, one and two axes."""

    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x):
        config = LayerConfig(num_heads=2, mlp_dim=12)
        stack = StackConfig(depth=2, scan_layers=self.scan, remat=self.remat)
        x = Stack(lambda name: Block(config, name=name), stack, name="stack")(x, train=False)
        return nn.DenseGeneral((2, 5), axis=-1, name="two")(nn.Dense(4, name="one")(x))


def made(model=None, targets=("kernel$",), dtype=jnp.float32):
    """Inputs, the base's parameters, adapters with B drawn too, and what `find` says of them."""
    model = model or Layers()
    x = jax.random.normal(jax.random.key(1), (2, 5, 8), dtype)

    def init(key):
        return jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(key, x)["params"])

    shapes, modules = traced(init)
    found = lora.find(targets, shapes, modules)

    @jax.jit
    def draw(key):
        drawn = {}
        for adapter in found.values():
            drawn |= adapter.draw(jax.random.key(2), RANK)
        return init(key), drawn

    return model, x, *draw(jax.random.key(0)), found


def random_b(drawn):
    """The adapters as after some training."""
    return {
        path: 0.3 * jax.random.normal(jax.random.key(i), leaf.shape, leaf.dtype)
        if path.endswith(lora.B)
        else leaf
        for i, (path, leaf) in enumerate(drawn.items())
    }


def outputs(model, params, drawn, x, **fields):
    with lora.adapted(SCALE, **fields):
        return model.apply({"params": paths.union(params, drawn)}, x)


def merge(params, drawn, found):
    flat = paths.leaves(params)
    merged = {
        path: lora.merged(one, flat[path], *(drawn[name] for name in one.names), SCALE)
        for path, one in found.items()
    }
    return paths.nested({**flat, **merged})


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (True, "full")])
def test_adapted_equals_merged_and_begins_as_the_base(scan, remat):
    model, x, params, drawn, found = made(Layers(scan, remat))
    assert len(found) == (6 if scan else 12) + 2

    @jax.jit
    def run(params, drawn):
        first, drawn = outputs(model, params, drawn, x), random_b(drawn)
        merged = {"params": merge(params, drawn, found)}
        given = outputs(model, params, drawn, x)
        return model.apply({"params": params}, x), first, given, model.apply(merged, x)

    base, first, given, expected = run(params, drawn)
    np.testing.assert_array_equal(first, base)
    assert np.abs(given - base).max() > 0.1
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_merged_is_the_formula_of_peft_in_numpy():
    """peft: weight [out in] + scaling * (lora_B.weight [out r] @ lora_A.weight [r in])."""
    _, _, params, drawn, found = made(Layers(scan=True))
    drawn = random_b(drawn)
    merged, flat = paths.leaves(merge(params, drawn, found)), paths.leaves(params)
    sizes = {
        "stack/layers/attention/query/kernel": ((2,), 8, (2, 4)),
        "stack/layers/attention/out/kernel": ((2,), 2 * 4, (8,)),
        "stack/layers/mlp/fc1/kernel": ((2,), 8, (12,)),
        "one/kernel": ((), 8, (4,)),
        "two/kernel": ((), 4, (2, 5)),
    }
    for path, (stack, inputs, outputs) in sizes.items():
        a, b = (np.asarray(drawn[name], np.float64) for name in found[path].names)
        for index in np.ndindex(stack):
            weight = np.asarray(flat[path][index], np.float64).reshape(inputs, -1).T
            thin = a[index].reshape(inputs, RANK).T, b[index].reshape(RANK, -1).T
            expected = (weight + SCALE * thin[1] @ thin[0]).T.reshape(flat[path][index].shape)
            np.testing.assert_allclose(merged[path][index], expected, atol=1e-6)
        assert found[path].outputs == outputs
    assert set(sizes) < set(found)
    untouched = set(flat) - set(found)
    assert all(np.array_equal(merged[path], flat[path]) for path in untouched)


def test_half_precision_keeps_adapters_in_float32():
    model, x, params, drawn, found = made(
        nn.Dense(4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16), dtype=jnp.bfloat16
    )
    assert {leaf.dtype for leaf in drawn.values()} == {jnp.dtype(jnp.float32)}
    given = outputs(model, params, random_b(drawn), x)
    merged = merge(params, random_b(drawn), found)
    assert given.dtype == merged["kernel"].dtype == jnp.bfloat16


def test_a_starts_within_its_bound_and_by_its_path():
    _, _, _, drawn, found = made(Layers(scan=True))
    for path, one in found.items():
        a, b = (np.asarray(drawn[name]) for name in one.names)
        bound = np.prod(one.inputs) ** -0.5
        assert 0.7 * bound < np.abs(a).max() <= bound and not b.any(), path
    query, value = (drawn[f"stack/layers/attention/{n}/lora_a"] for n in ("query", "value"))
    assert not np.array_equal(query, value)
    again = found["one/kernel"].draw(jax.random.key(2), RANK)
    np.testing.assert_array_equal(again["one/lora_a"], drawn["one/lora_a"])


def test_dropout_acts_on_the_adapters_input_alone():
    model, x, params, drawn, _ = made(nn.Dense(4))
    x = jnp.ones((4000, 8))
    apply = {"params": paths.union(params, random_b(drawn))}
    with lora.adapted(SCALE, 0.25):
        given = model.apply(apply, x, rngs={"dropout": jax.random.key(0)})
    whole, base = outputs(model, params, random_b(drawn), x), model.apply({"params": params}, x)
    assert len(np.unique(given[:, 0])) > 50
    np.testing.assert_allclose((given - base).mean(0), (whole - base)[0], rtol=0.1, atol=0.02)
    zero_b = {"params": paths.union(params, drawn)}
    with lora.adapted(SCALE, 0.25):
        given = model.apply(zero_b, x, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(given, base)


class Others(nn.Module):
    """What no adapter fits."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Dense(8, name="dense")(x))
        return nn.Conv(8, (1,), name="conv")(x)


@pytest.mark.parametrize(
    ("targets", "kept", "message"),
    [
        (("dense/kernl",), (), r"'dense/kernl', which matches no parameter \(paths look like"),
        (("dense/",), (), r"matches dense/bias \[8\] of a Dense; only kernels of dense layers"),
        (("kernel$",), (), r"matches conv/kernel \[1, 8, 8\] of a Conv; only kernels of dense"),
        (("scale",), (), r"matches norm/scale \[8\] of a LayerNorm; only"),
        (("dense/kernel",), ("dense/kernel",), "only 'dense/kernel' and others that train whole"),
    ],
)
def test_what_cannot_be_adapted_is_one_sentence(targets, kept, message):
    model = Others()
    shapes, modules = traced(lambda key: model.init(key, jnp.ones((2, 3, 8)))["params"])
    with pytest.raises(MmflaxError, match=message):
        lora.find(targets, shapes, modules, kept)
