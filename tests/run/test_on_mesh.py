"""The mesh of a config against the devices and the model, before data are read."""

import jax
import pytest

from mmflax.config.sections import PRESETS
from mmflax.distributed.mesh import RULES, make_mesh
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.on_mesh import check_heads
from mmflax.run.restore import restore
from mmflax.run.train import train
from mmflax.run.workdir import read_config
from tests import tiny


def with_mesh(data_dir, **mesh):
    return tiny.config(data_dir) | {"mesh": mesh}


@pytest.mark.parametrize(
    ("preset", "sizes"), [("dp", (8, 1, 1)), ("fsdp", (2, 4, 1)), ("fsdp+tensor", (1, 4, 2))]
)
def test_a_preset_decides_the_sizes(shapes_dir, preset, sizes):
    """The model is 32 wide and has 2 heads: four parts of 8 rows, and two of one head."""
    experiment = Experiment(with_mesh(shapes_dir, preset=preset, data=-1, fsdp=1, tensor=1))
    assert tuple(experiment.mesh().shape.values()) == sizes
    assert experiment.mesh_sizes(jax.devices()[:1]) == dict(data=1, fsdp=1, tensor=1)
    assert preset in PRESETS


def test_the_batch_must_divide_over_the_devices_of_a_preset(shapes_dir):
    config = with_mesh(shapes_dir, preset="dp")
    config["data"]["batch_size"] = 12
    with pytest.raises(MmflaxError, match="12, which does not divide over data x fsdp = 8"):
        Experiment(config).mesh()
    config["data"]["batch_size"], config["train"]["accumulate"] = 24, 2
    with pytest.raises(MmflaxError, match="micro-batches over 8 .*--config.data.batch_size=32"):
        Experiment(config).mesh()


def test_heads_that_tensor_does_not_divide_are_told_before_data_are_read(tmp_path):
    config = with_mesh(tmp_path / "no data", tensor=4, data=-1)
    with pytest.raises(
        MmflaxError, match=r"does not divide the 2 attention heads of \S*/attention"
    ):
        train(config, str(tmp_path / "w"), quiet=True)
    assert not (tmp_path / "no data").exists() and not (tmp_path / "w").exists()
    experiment = Experiment(config)
    check(experiment)  # without a mesh there is nothing to divide
    with pytest.raises(MmflaxError, match="give --config.mesh.tensor=2"):
        check(experiment, mesh=experiment.mesh())
    whole = with_mesh(tmp_path, tensor=4, rules=((r"/(query|key|value|out)/", ()),))
    check(Experiment(whole), mesh=Experiment(whole).mesh())  # heads that stay whole may be any


def test_a_run_with_a_preset_is_restored_on_it(shapes_dir, tmp_path):
    config = with_mesh(shapes_dir, preset="fsdp+tensor")
    config["train"] = dict(steps=3)
    train(config, str(tmp_path / "w"), quiet=True)
    assert read_config(tmp_path / "w")["mesh"] == {"preset": "fsdp+tensor"}
    _, built, _, _ = restore(tmp_path / "w")
    assert dict(built.mesh.shape) == dict(data=1, fsdp=4, tensor=2)


def test_the_tensor_size_that_is_named_divides_the_devices_too():
    heads = {"attention": {"query": {"kernel": jax.ShapeDtypeStruct((16, 12, 4), "float32")}}}
    mesh = make_mesh(data=1, fsdp=1, tensor=8)
    with pytest.raises(MmflaxError, match=r"the 12 attention heads.*give --config.mesh.tensor=4"):
        check_heads(heads, RULES, mesh)
