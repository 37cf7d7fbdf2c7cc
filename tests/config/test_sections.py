"""Typed sections: every bad value is one sentence that names its key."""

import dataclasses
import math

import pytest

from mmflax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    TrainConfig,
    kept,
)
from mmflax.errors import MmflaxError


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (TrainConfig, {}, "neither of train.steps and train.epochs"),
        (TrainConfig, {"steps": 1, "epochs": 1}, "both of train.steps and train.epochs"),
        (TrainConfig, {"steps": 0}, "train.steps is 0; expected a number at least 1"),
        (TrainConfig, {"steps": 5.0}, r"train.steps is 5.0 \(float\); expected None or int"),
        (TrainConfig, {"steps": True}, r"train.steps is True \(bool\)"),
        (TrainConfig, {"epochs": 0}, "train.epochs is 0; expected a number above 0"),
        (TrainConfig, {"epochs": math.nan}, "train.epochs is nan; expected a finite number"),
        (TrainConfig, {"steps": 5, "log_every": 0}, "train.log_every is 0"),
        (TrainConfig, {"steps": 5, "log_every": "5"}, r"train.log_every is '5' \(str\)"),
        (TrainConfig, {"steps": 5, "ema_decay": 1.0}, "at least 0 and below 1"),
        (TrainConfig, {"steps": 5, "evl_every": 1}, "did you mean 'eval_every'"),
        (DataConfig, {}, "The config has no data.batch_size; give --config"),
        (DataConfig, {"batch_size": 0}, "data.batch_size is 0"),
        (DataConfig, {"batch_size": 4, "max_bad_fraction": -0.1}, "data.max_bad_fraction is -0.1"),
        (EvaluationConfig, {"batch_size": 4, "bootstrap": -1}, "evaluation.bootstrap is -1"),
        (CheckpointConfig, {"best_mode": "most"}, "'most'; expected one of 'max', 'min'"),
        (CheckpointConfig, {"keep_best": 1}, "without checkpoint.best_metric"),
        (MeshConfig, {"data": -1, "fsdp": -1}, "of which one may be -1"),
        (MeshConfig, {"tensor": 0}, "expected sizes above 0"),
        (MeshConfig, {"preset": "ddp"}, "mesh.preset is 'ddp'; expected one of 'dp', 'fsdp', 'fs"),
        (MeshConfig, {"preset": "fsdp", "fsdp": 4}, "'fsdp' and mesh .* is -1x4x1; give the sizes"),
        (MeshConfig, {"preset": "dp", "data": 8}, "--config.mesh.preset=None, or --config.mesh.da"),
        (MeshConfig, {"rules": (("(", ()),)}, "which is no regex"),
        (MeshConfig, {"rules": (("gamma",),)}, r"expected \(path regex, axes\)"),
        (MeshConfig, {"rules": (("gamma", ("fdsp",)),)}, "'fdsp'; expected None or one of data"),
        (MeshConfig, {"rules": (("gamma", "fsdp"),)}, "expected a tuple"),
    ],
)
def test_a_bad_value_is_one_sentence(section, fields, message):
    with pytest.raises(MmflaxError, match=message) as error:
        section.read(fields)
    assert "\n" not in str(error.value)


def test_defaults_are_filled_in_and_what_json_reads_is_the_same():
    assert TrainConfig.read({"steps": 5}).log_every == 50
    rules = ((r"/gamma$", ()), (r"/w$", ("fsdp", None, ("data", "tensor"))))
    listed = [[r"/gamma$", []], [r"/w$", ["fsdp", None, ["data", "tensor"]]]]
    assert MeshConfig.read({"rules": rules}) == MeshConfig.read({"rules": listed})
    assert dataclasses.asdict(CheckpointConfig.read({}))["keep_last"] == 3


@pytest.mark.parametrize(
    ("epochs", "examples", "steps"), [(1, 10, 3), (2, 10, 5), (0.1, 10, 1), (0.4, 10, 1), (3, 8, 6)]
)
def test_epochs_are_rounded_up_to_whole_steps(epochs, examples, steps):
    assert TrainConfig.read({"epochs": epochs}).total_steps(examples, batch_size=4) == steps
    assert TrainConfig.read({"steps": 7}).total_steps(examples, batch_size=4) == 7


@pytest.mark.parametrize(
    ("patience", "keep_best", "expected"), [(None, 0, 0), (3, 0, 1), (3, 2, 2)]
)
def test_a_run_that_stops_early_keeps_its_best_step(patience, keep_best, expected):
    checkpoint = CheckpointConfig(keep_best=keep_best, best_metric="validation/loss")
    fields = kept(checkpoint, TrainConfig(steps=9, patience=patience))
    assert fields == {**dataclasses.asdict(checkpoint), "keep_best": expected}
