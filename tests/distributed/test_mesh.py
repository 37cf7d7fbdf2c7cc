"""Meshes, path rules, and the step on a mesh against the step on one device."""

import pathlib
import types
from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from mmflax.distributed.mesh import (
    RULES,
    activation_rules,
    batch_sharding,
    data_shard,
    layout,
    make_mesh,
    on_mesh,
    param_specs,
    put_batch,
    state_shardings,
    with_rules,
)
from mmflax.errors import MmflaxError
from mmflax.training import optim
from mmflax.training.state import create_sharded
from mmflax.training.step import make_train_step

GOLDEN = pathlib.Path(__file__).with_name("layout_vqa.txt")


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_mesh_sizes():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    for sizes, words in [
        ((4, 4, 1), "4x4x1 does not fit 8 devices"),
        ((2, 2, 1), "2x2x1 does not fit 8 devices"),
        ((-1, 3, 1), "-1x3x1 does not fit 8 devices"),
        ((-1, -1, 1), "at most one may be -1"),
        ((0, 1, 1), "sizes must be positive"),
    ]:
        with pytest.raises(MmflaxError, match=words):
            make_mesh(*sizes)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((("a/kernel", ()),), r"no rule matches parameter b/kernel \[4, 3\]"),
        (((".", ()), ("nothing", ())), "rule 'nothing' matches no parameter"),
        (((".", ()), ("a", ())), "rule 'a' matches no parameter"),  # never first
        (
            ((".", (None, "tensor")),),
            r"on b/kernel: dimension 3 of \[4, 3\] does not divide by tensor=2",
        ),
        (((".", ("fsdp", "fsdp")),), "the same mesh axis splits two dimensions"),
        (((".", ("fsdp", ("data", "fsdp"))),), "the same mesh axis splits two dimensions"),
        (((".", ("model", None)),), "mesh has no axis 'model', only data, fsdp, tensor"),
        (((".", ("fsdp",)),), r"1 axes for shape \[4, 8\]"),
    ],
)
def test_rules_that_do_not_fit_are_errors(rules, words):
    params = {"a": {"kernel": shape(4, 8)}, "b": {"kernel": shape(4, 3)}}
    with pytest.raises(MmflaxError, match=words):
        param_specs(params, rules, make_mesh(2, 2, 2))


def test_an_unmatched_parameter_matters_only_where_parameters_are_split():
    params = {"gamma": shape(8), "mlp": {"fc1": {"kernel": shape(8, 8)}}}
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(data=8)):
        assert param_specs(params, with_rules(()), mesh)["gamma"].spec == PartitionSpec()
    mesh = make_mesh(2, 4, 1)
    with pytest.raises(MmflaxError, match=r"parameter gamma \[8\]; add .* to mesh.rules"):
        param_specs(params, with_rules(()), mesh)
    specs = param_specs(params, with_rules(((r"gamma$", ("fsdp",)), (r"fc1", ()))), mesh)
    assert specs["gamma"].spec == PartitionSpec("fsdp")
    assert specs["mlp"]["fc1"]["kernel"].spec == PartitionSpec()  # before the built-in rule


def test_an_optional_rule_may_be_idle_and_the_first_match_decides():
    params = {"a": {"kernel": shape(4, 8)}}
    rules = (("nothing", (), True), ("a/", ("fsdp", None)), ("kernel", ("tensor", None), True))
    specs = param_specs(params, rules, make_mesh(2, 2, 2))
    assert specs["a"]["kernel"].spec == PartitionSpec("fsdp", None)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_layout_of_a_model(tiny, scan_layers):
    """Written anew by deleting the file; the difference belongs into the review."""
    params = jax.eval_shape(tiny(scan_layers).init, jax.random.key(0))
    found = layout(params, param_specs(params, RULES, make_mesh(2, 2, 2)))
    path = GOLDEN.with_stem(GOLDEN.stem + "_scanned") if scan_layers else GOLDEN
    if not path.exists():
        path.write_text(found)
        pytest.fail(f"recorded {path.name}: read it, then run again")
    assert found == path.read_text()


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "sgd", "muon"])
def test_moments_lie_where_their_parameters_lie(name):
    params = {"a": {"kernel": jnp.ones((256, 128)), "bias": jnp.ones(128)}}
    rules = (("kernel", ("fsdp", "tensor")), ("bias", ("tensor",)))
    tx, _ = optim.build(params, name=name, schedule=dict(peak=0.1), freeze=("bias",))
    mesh = make_mesh(2, 2, 2)
    state = create_sharded(lambda key: params, tx, jax.random.key(0), mesh, rules, ema=True)
    shapes = {params["a"]["kernel"].shape: PartitionSpec("fsdp", "tensor")}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert moments
    for leaf in moments:
        assert leaf.sharding.spec == shapes.get(leaf.shape, PartitionSpec())
    if name == "adafactor":  # one row and one column of factors, and a placeholder
        assert sorted(leaf.shape for leaf in moments) == [(1,), (128,), (256,)]
    assert state.ema["a"]["bias"].sharding.spec == PartitionSpec("tensor")
    assert state.key.sharding.is_fully_replicated


class State(flax.struct.PyTreeNode):
    params: dict
    mu: dict
    frozen: None = None


def test_the_longest_path_decides_for_moments():
    params = {"kernel": shape(4, 8), "head": {"kernel": shape(4, 8)}}
    rules = (("^kernel", (None, None)), ("head/kernel", ("fsdp", None)))
    state = state_shardings(State(params, params), rules, make_mesh(2, 2, 2))
    assert state.mu["head"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert state.mu["kernel"].spec == PartitionSpec(None, None)


def test_a_batch_must_divide():
    mesh = make_mesh(2, 4, 1)
    placed = put_batch({"x": np.arange(32).reshape(16, 2)}, mesh)
    assert placed["x"].sharding == batch_sharding(mesh)
    assert {shard.data.shape for shard in placed["x"].addressable_shards} == {(2, 2)}
    with pytest.raises(MmflaxError, match="batch of 12 does not divide over data x fsdp = 8"):
        put_batch({"x": np.zeros((12, 2))}, mesh)


class Placement:
    """The rows of each device as NamedSharding has them, on two processes of two devices."""

    def __init__(self, mesh):
        self.tensor = mesh.shape["tensor"]

    def devices_indices_map(self, size):
        rows = [index // self.tensor for index in range(4)]
        return {Device(i, i // 2): (slice(row, row + 1),) for i, row in enumerate(rows)}


class Device(NamedTuple):
    id: int
    process_index: int


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((4, 1, 1), (0, 2)), ((2, 2, 1), (0, 2)), ((1, 1, 4), (0, 1)), ((2, 1, 2), (0, 2))],
)
def test_processes_load_the_rows_that_their_devices_hold(monkeypatch, sizes, expected):
    monkeypatch.setattr("mmflax.distributed.mesh.batch_sharding", Placement)
    mesh = types.SimpleNamespace(shape=dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    assert data_shard(mesh) == expected


def test_models_constrain_the_batch_axis_only_on_a_mesh(tiny):
    made = tiny(scan_layers=True)
    params = jax.eval_shape(made.init, jax.random.key(0))
    forward = jax.jit(lambda params, batch: made.apply(params, batch, None, False)["logits"])
    plain = forward.lower(params, made.batch).as_text()
    assert "sharding_constraint" not in plain
    with activation_rules(make_mesh(2, 2, 2)):
        placed = jax.jit(lambda p, b: made.apply(p, b, None, False)["logits"])
        text = placed.lower(params, made.batch).as_text()
    assert "sharding_constraint" in text and '[{"data", "fsdp"}, {}, {}]' in text
    # In the scanned layers' bodies too, where its absence lets XLA replicate the activations.
    loop = text[text.index("stablehlo.while") :]
    assert "sharding_constraint" in loop.split("\n    } do {")[-1]


def one_step(made, mesh, **fields):
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    # Plain SGD with rate 1: the difference of the parameters is the gradient.
    tx, _ = optim.build(shapes, name="sgd", momentum=0.0, schedule=dict(peak=1.0))
    step = make_train_step(made.apply, made.task.loss, made.task.metrics, tx, **fields)
    state = create_sharded(made.init, tx, jax.random.key(0), mesh)
    before = jax.device_get(state.params)
    state, sums = on_mesh(jax.jit(step), mesh)(state, put_batch(made.batch, mesh))
    after = jax.device_get(state.params)
    return jax.tree.map(np.subtract, before, after), jax.device_get(sums)


MESHES = [((8, 1, 1), 1), ((2, 4, 1), 1), ((2, 2, 2), 2)]


@pytest.fixture(scope="module")
def reader_alone(reader, one_device):
    return one_step(reader, one_device)


@pytest.fixture(scope="module")
def tiny_alone(tiny, one_device):
    return one_step(tiny(), one_device)


def same_step(found, expected):
    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-5)
    np.testing.assert_array_equal(found[1]["accuracy"], expected[1]["accuracy"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found[0], expected[0]
    )
    assert float(optax.tree.norm(found[0])) > 0.1


@pytest.mark.parametrize(("sizes", "accumulate"), MESHES)
def test_meshes_give_the_loss_and_gradients_of_one_device(reader, reader_alone, sizes, accumulate):
    same_step(one_step(reader, make_mesh(*sizes), accumulate=accumulate), reader_alone)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "accumulate"), MESHES)
def test_meshes_give_the_step_of_the_whole_model(tiny, tiny_alone, sizes, accumulate):
    same_step(one_step(tiny(), make_mesh(*sizes), accumulate=accumulate), tiny_alone)


def test_on_mesh_sets_the_context_of_a_jitted_function():
    seen = []

    @jax.jit
    def function(x):
        seen.append(jax.sharding.get_abstract_mesh().axis_names)
        return nn.with_logical_constraint(x, ("batch",)) + 1

    mesh = make_mesh(4, 2, 1)
    result = on_mesh(function, mesh)(jnp.zeros(16))
    assert seen == [("data", "fsdp", "tensor")]
    assert result.sharding.spec == PartitionSpec(("data", "fsdp"))
