"""What a search leaves out and prefers, before anything is compiled."""

import types

import pytest

from mmflax.config.overrides import override
from mmflax.distributed.chips import chip_of
from mmflax.run.build import Experiment
from mmflax.run.plan import opened_or_planned
from mmflax.run.plan_arithmetic import REMAT, ModelSize, candidates, changed, most_promising
from tests import tiny

V5E = chip_of("TPU v5 lite")
# METER-base at 224 pixels: bytes that a row keeps and FLOPs of a row by hand, rounded.
METER = ModelSize(
    parameters=318_000_000,
    width=768,
    heads=12,
    state=12 * 318_000_000,
    gradients=4 * 318_000_000,
    itemsize=2,
    kept={"none": 400_000_000, "block": 20_000_000, "dots": 150_000_000, "full": 10_000_000},
    flops={"none": 210e9, "block": 270e9, "dots": 220e9, "full": 280e9},
    batch=700_000,
)


def experiment(rows):
    config = override(
        tiny.config("none"),
        [f"--config.data.batch_size={rows}", f"--config.evaluation.batch_size={rows}"],
    )
    return Experiment(config)


def chips(count, slices=1):
    return [
        types.SimpleNamespace(platform="tpu", slice_index=index * slices // count)
        for index in range(count)
    ]


def every(rows, count, slices=1, model=METER):
    return list(candidates(experiment(rows), chips(count, slices), model, V5E))


def test_every_way_divides_the_devices_the_batch_and_the_model():
    found = every(8192, 256)
    assert found.count(None) > 0  # 256 and 128 parts of 768 rows
    for one in filter(None, found):
        data, fsdp, tensor = (one.mesh[axis] for axis in ("data", "fsdp", "tensor"))
        assert data * fsdp * tensor == 256 and 768 % fsdp == 0 and 12 % tensor == 0
        assert 768 // fsdp >= 8 or fsdp == 1
        assert 8192 // (data * fsdp) % one.accumulate == 0
    assert {one.remat for one in filter(None, found)} == set(REMAT)


def test_slices_are_crossed_by_data_alone():
    assert {one.mesh["data"] % 2 for one in every(8192, 256, slices=2) if one} == {0}
    assert {one.mesh["data"] for one in every(8192, 256) if one} >= {1}


def test_bytes_shrink_with_parts_micro_batches_and_recomputation():
    def bytes_of(**wanted):
        (one,) = [
            one
            for one in every(8192, 256)
            if one and one.mesh == wanted["mesh"] and one.remat == wanted["remat"]
            and one.accumulate == wanted["accumulate"]
        ]  # fmt: skip
        return one.bytes

    whole = dict(mesh=dict(data=256, fsdp=1, tensor=1), remat="none", accumulate=1)
    assert bytes_of(**whole) == 16 * 318_000_000 + 32 * (400_000_000 + 700_000)
    split = whole | dict(mesh=dict(data=16, fsdp=16, tensor=1))
    assert bytes_of(**whole) - bytes_of(**split) == 15 * 318_000_000
    assert bytes_of(**whole) - bytes_of(**whole | dict(remat="full")) == 32 * 390_000_000
    # Half the rows at a time; the gradients are there twice.
    half = bytes_of(**whole | dict(accumulate=2))
    assert bytes_of(**whole) - half == 16 * 400_000_000 - 4 * 318_000_000


def test_the_best_that_fits_recomputes_little_and_splits_no_more_than_it_must():
    fitting = [one for one in every(8192, 256) if one and one.bytes <= V5E.memory]
    best = most_promising(fitting)[0]
    assert best.mesh["tensor"] == 1 and best.mesh["fsdp"] < 256
    assert best.remat != "full"
    assert best.seconds <= min(one.seconds for one in fitting) + 1e-5


def test_sizes_are_those_of_the_model(tmp_path):
    words = [f"--config.plan.shapes.{word}" for word in ("answers=5", "examples=320")]
    one = Experiment(override(tiny.config(tmp_path), words))
    mesh = one.mesh()
    found = opened_or_planned(one, mesh)
    size = ModelSize.of(found, mesh)
    assert size.width == 32 and size.heads == 2 and size.itemsize == 4
    assert size.gradients == 4 * size.parameters
    assert size.state == pytest.approx(12 * size.parameters, rel=1e-3)
    assert size.kept["none"] > size.kept["dots"] > size.kept["full"]
    assert size.kept["none"] > size.kept["block"] >= size.kept["full"]
    assert size.flops["none"] < size.flops["dots"] <= size.flops["block"] <= size.flops["full"]


def test_adapters_are_small_beside_what_is_frozen(tmp_path):
    words = [f"--config.plan.shapes.{word}" for word in ("answers=5", "examples=320")]
    config = override(tiny.config(tmp_path), words)
    config |= {"init": {"from": "somewhere"}, "lora": {"rank": 2}}
    one = Experiment(config)
    mesh = one.mesh()
    size = ModelSize.of(opened_or_planned(one, mesh), mesh)
    assert size.width == 32 and size.heads == 2
    assert size.gradients < 2 * size.parameters  # of 4 bytes each: most have none
    assert size.state < 8 * size.parameters


def test_the_command_says_no_preset_where_it_gives_sizes():
    one = next(one for one in every(8192, 256) if one)
    config = tiny.config("none")
    assert not any("preset" in word for word in one.overrides(config))
    config["mesh"] = {"preset": "fsdp"}
    words = one.overrides(config)
    assert "--config.mesh.preset=None" in words
    Experiment(override(config, words))


def test_no_way_is_left_where_no_mesh_divides_the_batch():
    assert every(50, 256) == []


def test_changed_leaves_the_config_alone():
    config = {"a": {"b": 1}, "c": 2}
    assert changed(config, {"a.b": 3, "a.d.e": 4}) == {"a": {"b": 3, "d": {"e": 4}}, "c": 2}
    assert config == {"a": {"b": 1}, "c": 2}
