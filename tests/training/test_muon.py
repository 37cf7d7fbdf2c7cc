"""Muon: which parameters are matrices, of which shape, and what their updates are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import scale_by_muon

from mmflax.distributed.mesh import make_mesh, on_mesh, param_specs, with_rules
from mmflax.errors import MmflaxError
from mmflax.training import muon, optim
from mmflax.training.muon import Sides as Axes
from mmflax.training.muon import dimension_numbers

# path, rank -> rows and columns, or None: for Adam
PATHS = {
    ("fusion/encoder/layers_0/mlp/fc1/kernel", 2): Axes((0,), (1,)),
    ("fusion/encoder/layers/mlp/fc1/kernel", 3): Axes((1,), (2,)),
    ("fusion/encoder/layers_0/attention/query/kernel", 3): Axes((0,), (1, 2)),
    ("fusion/encoder/layers/cross_attention/value/kernel", 4): Axes((1,), (2, 3)),
    ("fusion/encoder/layers_0/attention/out/kernel", 3): Axes((0, 1), (2,)),
    ("fusion/encoder/layers/attention/out/kernel", 4): Axes((1, 2), (3,)),
    ("image_encoder/conv_stem/conv_0/kernel", 4): Axes((0, 1, 2), (3,)),
    ("fusion/encoder/layers/image_reads/output/kernel", 3): Axes((1,), (2,)),
    ("fusion/image_projection/kernel", 2): Axes((0,), (1,)),
    ("image_encoder/patch_embedding/kernel", 4): None,
    ("image_encoder/position_embedding", 2): None,
    ("image_encoder/cls", 3): None,
    ("text_encoder/word_embedding/embedding", 2): None,
    ("fusion/encoder/layers/mlp/fc1/bias", 2): None,
    ("fusion/encoder/layers/attention/query/bias", 3): None,
    ("fusion/encoder/layers_0/attention_norm/scale", 1): None,
    ("head/fc1/kernel", 2): None,
    ("image_head/attention/query/kernel", 3): None,
    ("objectives_mlm/words/dense/kernel", 2): None,
    ("decoder/output/kernel", 2): None,
    ("some/own/kernel", 3): None,
}


@pytest.mark.parametrize(("path", "ndim"), PATHS)
@pytest.mark.parametrize("prefix", ["", "backbone/"])
def test_matrices_are_those_inside_the_network(path, ndim, prefix):
    assert dimension_numbers(prefix + path, ndim) == PATHS[path, ndim]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {
    "attention": {
        "query": {"kernel": draw(16, 4, 6), "bias": draw(4, 6)},
        "out": {"kernel": draw(4, 6, 16, seed=1)},
    },
    "layers": {"fc1": {"kernel": draw(3, 16, 32, seed=2), "bias": draw(3, 32)}},
    "conv": {"kernel": draw(3, 3, 4, 12, seed=3)},
    "word_embedding": {"embedding": draw(20, 16, seed=4)},
    "head": {"kernel": draw(16, 5, seed=5)},
}
GRADS = jax.tree.map(lambda leaf: jnp.sin(9 * leaf), PARAMS)
RATE = 0.01


def step(params=PARAMS, grads=GRADS, **fields):
    tx, _ = optim.build(params, schedule=dict(peak=RATE), **{"name": "muon", **fields})
    return jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])(
        grads, params
    )


def test_updates_of_matrices_are_orthogonal_and_as_large_as_those_of_adamw():
    updates, adamw = step(), step(name="adamw")
    found = {
        "query": updates["attention"]["query"]["kernel"].reshape(16, 24),
        "out": updates["attention"]["out"]["kernel"].reshape(24, 16),
        "conv": updates["conv"]["kernel"].reshape(36, 12),
        **{f"layer {i}": updates["layers"]["fc1"]["kernel"][i] for i in range(3)},
    }
    for name, matrix in found.items():
        values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        values /= RATE * 0.2 * np.sqrt(max(matrix.shape))
        assert 0.6 < values.min() and values.max() < 1.25, name
    # The sign of the gradient is kept, and the rest is AdamW's.
    assert (found["query"] * GRADS["attention"]["query"]["kernel"].reshape(16, 24)).sum() < 0
    others = ("word_embedding", "head"), (("attention", "query", "bias"), ("layers", "fc1", "bias"))
    for path in (*((name,) for name in others[0]), *others[1]):
        one, other = updates, adamw
        for name in path:
            one, other = one[name], other[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


def test_every_layer_of_a_scanned_stack_is_a_matrix_of_its_own():
    alone = {f"layers_{i}": {"fc1": {"kernel": draw(3, 16, 32, seed=2)[i]}} for i in range(3)}
    grads = jax.tree.map(lambda leaf: jnp.sin(9 * leaf), alone)
    found, together = step(alone, grads), step()["layers"]["fc1"]["kernel"]
    for i in range(3):
        np.testing.assert_allclose(
            found[f"layers_{i}"]["fc1"]["kernel"], together[i], rtol=1e-4, atol=1e-6
        )


def test_decay_freezing_and_clipping_are_those_of_every_optimizer():
    plain = step()
    decayed = step(weight_decay=0.5)
    np.testing.assert_allclose(
        decayed["conv"]["kernel"] - plain["conv"]["kernel"],
        -RATE * 0.5 * PARAMS["conv"]["kernel"], rtol=1e-3, atol=1e-6,
    )  # fmt: skip
    np.testing.assert_array_equal(decayed["layers"]["fc1"]["bias"], plain["layers"]["fc1"]["bias"])
    frozen = step(freeze=("^attention/", "^head/"), clip_norm=1.0)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(frozen["attention"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(frozen["layers"]))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, GRADS))
    updates = step(*half, weight_decay=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    with pytest.raises(MmflaxError, match="optim.muon_momentum is 1.0; expected at least 0"):
        step(muon_momentum=1.0)


def test_on_a_mesh_the_updates_are_those_of_one_device():
    specs = param_specs(PARAMS, with_rules(((r"^head/", ()),)), make_mesh(2, 2, 2))
    params, grads = jax.device_put((PARAMS, GRADS), (specs, specs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6),
        step(params, grads, weight_decay=0.1),
        step(weight_decay=0.1),
    )


def layer(seed, *depth):
    """Kernels of a transformer's layer of width 16, or of a scanned stack of such layers."""
    return {
        "attention": {
            "query": {"kernel": draw(*depth, 16, 4, 4, seed=seed)},
            "key": {"kernel": draw(*depth, 16, 4, 4, seed=seed + 1)},
            "out": {"kernel": draw(*depth, 4, 4, 16, seed=seed + 2)},
        },
        "mlp": {
            "fc1": {"kernel": draw(*depth, 16, 32, seed=seed + 3)},
            "fc2": {"kernel": draw(*depth, 32, 16, seed=seed + 4)},
        },
    }


STACKS = {
    "looped": {f"layers_{i}": layer(10 * i) for i in range(3)},
    "scanned": {"layers": layer(40, 5)},
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2)])
def test_a_mesh_gathers_a_matrix_at_most_once_and_divides_the_work(stack, sizes):
    params = STACKS[stack]
    grads = jax.tree.map(lambda leaf: jnp.sin(9 * leaf), params)
    mesh = make_mesh(*sizes)
    tx, _ = optim.build(params, name="muon", schedule=dict(peak=RATE))
    specs = param_specs(params, with_rules(()), mesh)
    placed = jax.device_put(grads, specs)
    state = tx.init(placed)
    update = jax.jit(lambda grads, state: tx.update(grads, state, params)[0], out_shardings=specs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6),
        on_mesh(update, mesh)(placed, state),
        jax.jit(tx.update)(grads, tx.init(grads))[0],
    )
    text = on_mesh(update.lower, mesh)(placed, state).compile().as_text()
    # The matrices that a device multiplies; all would be 9 or 15, and 6 or 10.
    products = re.findall(r"f32\[(\d+),16,(?:16|32)\]\S* dot\(", text)
    assert products and {int(matrices) for matrices in products} <= {1, 2}
    matrices = sum(len(leaf) if "layers" in params else 1 for leaf in jax.tree.leaves(params))
    gathered = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    assert 0 < len(gathered) <= min(matrices, 8)  # there and back, of two shapes, over two axes
    # Nothing is communicated between the products.
    assert not re.findall(r" (?:all-reduce|reduce-scatter)(?:-start)?\(", text)


@pytest.mark.parametrize(
    ("matrices", "sizes", "axes"),
    [
        (16, dict(data=4, fsdp=4), ("data", "fsdp")),
        (12, dict(data=4, fsdp=4), ("data", "fsdp")),  # one each; four devices have padding
        (18, dict(data=4, fsdp=4), ("data", "fsdp")),  # two each
        (4, dict(data=4, fsdp=4), ("data",)),
        (4, dict(data=2, fsdp=4), ("fsdp",)),
        (2, dict(data=1, fsdp=256), ()),  # 254 of 256 would be padding
        (1, dict(data=4, fsdp=4), ()),
    ],
)
def test_a_stack_is_divided_over_the_axes_that_leave_the_least_work(matrices, sizes, axes):
    assert muon.shared_over(matrices, sizes) == axes


def test_a_stack_beyond_the_limit_is_taken_in_parts(monkeypatch):
    stacks = [draw(3, 16, 32, seed=1), draw(2, 16, 32, seed=2), draw(1, 16, 16, seed=3)]
    expected = [muon.orthogonal(stack) for stack in stacks]
    sizes = []
    divided = muon._divided
    monkeypatch.setattr(
        muon, "_divided", lambda function, x: sizes.append(len(x)) or divided(function, x)
    )
    for limit, parts in ((2**28, [5, 1]), (2 * 16 * 32 * 4, [2, 2, 1, 1]), (1, [1] * 6)):
        monkeypatch.setattr(muon, "STACK_BYTES", limit)
        sizes.clear()
        for found, want in zip(muon.all_orthogonal(stacks), expected, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
        assert sizes == parts


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("shape", [(16, 16), (12, 200), (200, 12), (3, 24, 9)])
def test_matrices_are_made_orthogonal_as_optax_does(monkeypatch, platform, shape):
    """Over three updates, so that momentum and its correction are the same too."""
    monkeypatch.setattr(muon, "platform", lambda: platform)
    path = "layers/fc1/kernel" if len(shape) == 3 else "fc1/kernel"
    ours = muon.scale_by_muon_and_adam({path: jnp.zeros(shape)}, 0.9, 0.9, 0.99, 1e-8)
    alone = scale_by_muon(beta=0.9)
    one, many = jnp.zeros(shape), shape[0] if len(shape) == 3 else 1
    params = {"layers": {"fc1": {"kernel": one}}} if len(shape) == 3 else {"fc1": {"kernel": one}}
    state = ours.init(params)
    theirs = [alone.init(jnp.zeros(shape[-2:])) for _ in range(many)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i in range(3):
            grad = draw(*shape, seed=i)
            updates, state = ours.update(jax.tree.map(lambda _, g=grad: g, params), state)
            (found,) = jax.tree.leaves(updates)
            found, grad = (x.reshape(many, *shape[-2:]) for x in (found, grad))
            for k in range(many):
                want, theirs[k] = alone.update(grad[k], theirs[k])
                size = 0.2 * np.sqrt(max(shape[-2:]))
                np.testing.assert_allclose(found[k] / size, want, atol=2e-3)
