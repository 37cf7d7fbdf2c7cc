"""Every error of a config is told before data are read or anything is compiled."""

import json

import jax
import pytest

from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.examples import first_batch
from mmflax.run.train import train
from tests import tiny


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "dataset", None)  # calling it fails
    return tiny.config(tmp_path / "data")


def change(section, **fields):
    def apply(config):
        here = config
        for key in section.split("."):
            here = here[key]
        here.update(fields)

    return apply


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("optim.schedule", warmup_steps=999), "warm-up and cooldown take 999 of 6 steps"),
        (change("optim.schedule", warmup_steps=-1), "warmup_steps is -1; expected at least 0"),
        (change("optim.schedule", warmup_fraction=0.5), "no warmup_steps beside it"),
        (change("optim.schedule", peak="big"), r"optim.schedule.peak is 'big' \(str\)"),
        (change("optim.schedule", peak=float("nan")), "peak is nan; expected a finite number"),
        (change("optim.schedule", pek=1), "did you mean 'peak'"),
        (change("optim.schedule", name="warmup_cosin"), "did you mean 'warmup_cosine'"),
        (change("optim", freeze=("no_such/",)), "'no_such/' decides no parameter"),
        (change("optim", lr_multipliers=(("fuson/", 2.0),)), "'fuson/' decides no parameter"),
        (
            change("optim", lr_multipliers=("head/", 2.0)),
            r"has 'head/'; expected \(path regex, fac",
        ),
        (change("optim", lr_multipliers=(("head/", "2x"),)), "factors of at least 0, as in"),
        (change("optim", lr_multipliers=3), "lr_multipliers has 3; expected"),
        (change("checkpoint", best_metric="validation/loss"), "checkpoint.best_mode=min"),
        (change("optim", freeze=("(",)), "optim.freeze has '\\(', which is no regex"),
        (change("train", log_every=0), "train.log_every is 0"),
        (change("train", patience=0), "train.patience is 0"),
        (change("train", patience=2, eval_every=None), "--config.train.eval_every=STEPS"),
        (change("train", epochs=2), "both of train.steps and train.epochs"),
        (change("model", modality_dropout=1.5), "at least 0 and below 1"),
        (change("model.fusion", width="wide"), r"model.fusion.width is 'wide' \(str\)"),
        (change("model.fusion", num_heads=5), "num_heads|heads"),
        (change("model.image_encoder", image_size=9), "decided by the rest of the config"),
        (change("model.text_encoder", depht=2), "did you mean 'depth'"),
        (change("task", caption_word=1), "did you mean 'caption_words'"),
        (change("task.head", fom="meter"), "fom"),
        (change("data", num_scene=3), "did you mean 'num_scenes'"),
        (change("processor", image_sizes=3), "did you mean 'image_size'"),
        (change("processor", filter="cubic"), "filter is 'cubic'; choose one of"),
        (change("evaluation", batch_size=0), "evaluation.batch_size is 0"),
        (change("checkpoint", best_metric=None), "without checkpoint.best_metric"),
        (lambda c: c["processor"].pop("image_size"), "no processor.image_size"),
        (lambda c: c["optim"].pop("schedule"), "no optim.schedule"),
        (lambda c: c["data"].pop("batch_size"), "no data.batch_size"),
        (lambda c: c.update(augment={"flp": "safe"}), "did you mean 'flip'"),
        (lambda c: c.update(init={"form": "x"}), "did you mean 'from'"),
        (lambda c: c.update(seed=-1), "seed is -1"),
        (lambda c: c.update(model=3), "model is 3; expected keys with values"),
        (lambda c: c.update(evaluation=None), "evaluation is None; expected keys with values"),
        (change("optim", schedule="constant"), "optim.schedule is 'constant'; expected keys"),
        (change("optim", freeze="no_such/"), "'no_such/' decides no parameter"),
        (change("evaluation", views=3), r"evaluation.views is \(3,\); expected 'full'"),
        (change("checkpoint", best_metric="accuracy"), "expected a metric of evaluation.split"),
        (change("evaluation", split="vaildation"), r"--config\.evaluation\.split=validation\)"),
        (change("evaluation", split="test"), r"--config\.checkpoint\.best_metric=test/loss\)"),
        (change("mesh", rules=(("no_such", ()),)), "'no_such', which matches no parameter"),
        (lambda c: c.update(init={"from": "/no/such"}), "There is no /no/such"),
        (lambda c: c.update(init={"skip": 3}), "init.skip is 3; expected regular expressions"),
    ],
)
def test_a_mistake_is_told_before_data_are_read(changed, message, config):
    changed(config)
    with pytest.raises(MmflaxError, match=message) as error:
        first_batch(config, "train", 2)
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_divide_is_told_before_data_are_read(config, tmp_path):
    config["data"]["batch_size"] = 12
    with pytest.raises(MmflaxError, match="data.batch_size is 12, which does not divide"):
        train(config, str(tmp_path / "w"))


def test_a_metric_that_is_not_computed_cannot_rank_checkpoints(shapes_dir, tmp_path):
    config = tiny.config(shapes_dir)
    config["checkpoint"]["best_metric"] = "validation/acuracy"
    with pytest.raises(MmflaxError, match="not computed, did you mean 'validation/accuracy'"):
        train(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
    config["checkpoint"]["best_metric"] = config["evaluation"]["split"] = "dev"
    config["checkpoint"]["best_metric"] += "/accuracy"
    with pytest.raises(MmflaxError, match="'dev', which the data do not have"):
        train(config, str(tmp_path / "w"))


def test_a_right_config_passes_and_nothing_is_computed(config):
    with jax.log_compiles(False), jax.checking_leaks():
        check(Experiment(config))


def test_epochs_become_steps_and_a_fraction_a_warm_up(config):
    config["train"] = {"epochs": 2}
    config["optim"]["schedule"] = {"name": "warmup_linear", "peak": 1.0, "warmup_fraction": 0.25}
    experiment = Experiment(config)
    check(experiment)
    with pytest.raises(MmflaxError, match="once the data are open"):
        _ = experiment.steps
    known = experiment.of_length(100)
    assert known.steps == 13  # 200 / 16, rounded up
    _, schedule = known.optimizer({"w": jax.ShapeDtypeStruct((2,), "float32"),
                                   "bias": jax.ShapeDtypeStruct((2,), "float32")})  # fmt: skip
    assert float(schedule(3)) == 1.0 and float(schedule(1)) == pytest.approx(1 / 3)
    assert float(schedule(13)) == 0.0


def test_a_config_that_an_older_version_wrote_still_loads(config):
    assert Experiment(json.loads(json.dumps(config))).steps == 6
