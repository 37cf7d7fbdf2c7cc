"""Scan, loop and rematerialization are one model; conversion between the two forms is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmflax.errors import MmflaxError
from mmflax.models.encoders import vit
from mmflax.models.layers.blocks import Block
from mmflax.models.layers.config import LayerConfig, StackConfig
from mmflax.models.layers.stack import Stack, stack_layers, unstack_layers


def loss_and_grads(model, params, inputs):
    def loss(params):
        encoded = model.apply({"params": params}, **inputs, train=False)
        return (encoded.pooled**2).sum() + (encoded.image**2).mean() + (encoded.text**2).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_close(left, right):
    """Within 1e-5 of the largest entry of the tree: key biases are rounding noise around zero."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(right))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / scale, b / scale, atol=1e-5), left, right
    )


def test_scan_equals_loop_with_gradients(tiny, zoo):
    scanned = zoo.model(form=tiny.form, scan_layers=True)
    loss, grads = loss_and_grads(tiny.model, tiny.params, tiny.inputs)
    scan_loss, scan_grads = loss_and_grads(scanned, stack_layers(tiny.params), tiny.inputs)
    np.testing.assert_allclose(loss, scan_loss, rtol=1e-5)
    assert_close(unstack_layers(scan_grads), grads)


def vit_loss(zoo, **fields):
    """A loss of a two-layer ViT's parameters, and parameters in the form of a loop."""
    image = zoo.inputs()["image"]
    sizes = dict(image_size=8, patch_size=4, width=16, num_heads=4, depth=2)
    model, loop = vit.build(**sizes, **fields), vit.build(**sizes)

    def loss(params):
        return (model.apply({"params": params}, image, train=False) ** 3).sum()

    return loss, zoo.params(loop, image, train=False)


@pytest.fixture(scope="module")
def plain(zoo):
    loss, params = vit_loss(zoo)
    assert "remat" not in str(jax.make_jaxpr(jax.grad(loss))(params))
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    ("remat", "scan_layers"),
    [("none", True)]
    + [(remat, scan) for remat in ("full", "dots", "block", "offload") for scan in (False, True)],
)
def test_remat_and_scan_change_nothing(zoo, plain, remat, scan_layers):
    loss, params = vit_loss(zoo, remat=remat, scan_layers=scan_layers)
    params = stack_layers(params) if scan_layers else params
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, plain[0], rtol=1e-5)
    assert_close(unstack_layers(grads), plain[1])
    if remat != "none":
        assert "remat" in str(jax.make_jaxpr(jax.grad(loss))(params)), "nothing is recomputed"


def gradient_of_blocks(remat, implementation, depth=8, **fields):
    """(function, parameters' shapes, input's shape) of the gradient of scanned blocks."""
    layer = functools.partial(Block, LayerConfig(2, 64, attention_impl=implementation, **fields))
    model = Stack(layer, StackConfig(depth, scan_layers=True, remat=remat))
    x = jax.ShapeDtypeStruct((2, 128, 32), jnp.float32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape), train=False))

    def loss(params, x):
        return (model.apply(params, x, train=False) ** 2).mean()

    return jax.grad(loss), params, x


@pytest.mark.optimized
def test_policies_are_ordered_by_memory():
    """Temporaries of the gradient of eight layers in a scan, which a CPU cannot reorder."""

    def temporaries(remat):
        gradient, *shapes = gradient_of_blocks(remat, "einsum")
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    none, dots, block, full = map(temporaries, ("none", "dots", "block", "full"))
    assert none > 1.5 * dots and dots > 1.2 * block and block > 1.05 * full


@pytest.mark.parametrize(("remat", "again"), [("full", True), ("block", False), ("offload", False)])
def test_kept_outputs_spare_the_chunks_of_the_forward_pass(remat, again):
    """The backward scan exponentiates the logits once for itself, and once to attend again."""
    gradient, *shapes = gradient_of_blocks(remat, "chunked", depth=2)
    program = jax.jit(gradient).lower(*shapes).as_text()
    matrices = program.count("exponential")
    plain, *shapes = gradient_of_blocks("none", "chunked", depth=2)
    assert (matrices > jax.jit(plain).lower(*shapes).as_text().count("exponential")) == again


def test_offload_moves_inputs_and_attention_to_the_host():
    """Both are annotated in the program; on a CPU the host's memory is the device's."""
    gradient, *shapes = gradient_of_blocks("offload", "einsum", depth=2)
    moved = str(jax.make_jaxpr(gradient)(*shapes)).count("MemorySpace.Host")
    gradient, *shapes = gradient_of_blocks("block", "einsum", depth=2)
    assert moved == 2 and str(jax.make_jaxpr(gradient)(*shapes)).count("MemorySpace.Host") == 0


def test_the_two_forms_of_parameters_convert_exactly(tiny, zoo):
    scanned = zoo.model(form=tiny.form, scan_layers=True)
    shapes = jax.eval_shape(
        lambda: scanned.init(jax.random.key(0), **tiny.inputs, train=False)["params"]
    )
    stacked = stack_layers(tiny.params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    back = unstack_layers(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(tiny.params)
    jax.tree.map(np.testing.assert_array_equal, back, tiny.params)


def test_conversion_keeps_layer_order_past_ten():
    tree = {"encoder": {f"layers_{i}": {"bias": np.full(2, i)} for i in range(12)}, "x": np.ones(1)}
    stacked = stack_layers(tree)
    np.testing.assert_array_equal(stacked["encoder"]["layers"]["bias"][:, 0], np.arange(12))
    assert isinstance(stacked["encoder"]["layers"]["bias"], np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), tree)


def test_scanned_layers_start_different_and_drop_differently(zoo):
    image = zoo.inputs()["image"]
    sizes = dict(image_size=8, patch_size=4, width=16, depth=3, num_heads=4, scan_layers=True)
    model = vit.build(**sizes, drop_path_rate=0.5, dropout_rate=0.1)
    params = jax.jit(lambda key: model.init(key, image, train=False))(jax.random.key(0))
    kernel = params["params"]["encoder"]["layers"]["mlp"]["fc1"]["kernel"]
    assert (kernel[0] != kernel[1]).all()

    @jax.jit
    def run(key):
        return model.apply(params, image, train=True, rngs={"dropout": key})

    assert (run(jax.random.key(0)) == run(jax.random.key(0))).all()
    assert (run(jax.random.key(0)) != run(jax.random.key(1))).any()


def test_scan_gives_attention_of_every_layer(tiny, zoo):
    scanned = zoo.model(form=tiny.form, scan_layers=True)

    def sown(model, params):
        run = jax.jit(
            lambda params: model.apply(
                {"params": params}, **tiny.inputs, train=False, mutable=["intermediates"]
            )
        )
        return run(params)[1]["intermediates"]

    loop, scan = sown(tiny.model, tiny.params), sown(scanned, stack_layers(tiny.params))
    assert_close(stack_layers(loop), scan)


def test_unknown_remat_lists_the_known(zoo):
    model = vit.build(image_size=8, variant="Ti/4", remat="some")
    with pytest.raises(MmflaxError, match="remat is 'some'.*none, full, dots"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), train=False))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_blocks_split_the_batch_over_devices(zoo, scan_layers):
    """Nothing but the blocks' own constraint says so here: input and parameters are whole."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    layer = functools.partial(Block, LayerConfig(4, 48))
    model = Stack(layer, StackConfig(2, scan_layers=scan_layers))
    x = jnp.ones((16, 5, 16))
    params = zoo.params(model, x, train=False)
    params, x = jax.device_put((params, x), NamedSharding(mesh, PartitionSpec()))

    def loss(params, x):
        return (model.apply({"params": params}, x, train=False) ** 2).mean()

    def hidden_is_split():
        text = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
        assert ("f32[2,5,48]" in text) != ("f32[16,5,48]" in text)
        return "f32[2,5,48]" in text

    with jax.set_mesh(mesh):
        assert not hidden_is_split()
        with nn.logical_axis_rules([("batch", "data")]):
            assert hidden_is_split()


@pytest.mark.parametrize("scan_layers", [False, True])
def test_outputs_of_the_last_layers(zoo, scan_layers):
    """A stack of the first k layers ends in what the deeper stack gives for layer k."""
    layer = functools.partial(Block, LayerConfig(4, 16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
    loop = zoo.params(Stack(layer, StackConfig(3)), x, train=False)
    params = stack_layers(loop) if scan_layers else loop
    stack = Stack(layer, StackConfig(3, scan_layers=scan_layers))
    carry, outputs = zoo.run(stack, params, x, layers=2, train=False)
    assert len(outputs) == 2
    np.testing.assert_array_equal(carry, outputs[-1])
    for depth, found in ((2, outputs[0]), (3, outputs[1])):
        first = {f"layers_{i}": loop[f"layers_{i}"] for i in range(depth)}
        expected = zoo.run(Stack(layer, StackConfig(depth)), first, x, train=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(MmflaxError, match="last 4 layers were requested, but there are 3"):
        zoo.run(stack, params, x, layers=4, train=False)


class Adding(nn.Module):
    """carry * 2 + this layer's own part."""

    @nn.compact
    def __call__(self, carry, *, each, drop_path, train):
        return carry * 2.0 + each


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_layer_gets_its_own_part(zoo, scan_layers):
    stack = Stack(Adding, StackConfig(3, scan_layers=scan_layers))
    each = jnp.asarray([[1.0], [10.0], [100.0]])
    found = zoo.run(stack, {}, jnp.asarray([5.0]), each=each, train=False)
    np.testing.assert_array_equal(found, [5.0 * 8 + 1.0 * 4 + 10.0 * 2 + 100.0])
