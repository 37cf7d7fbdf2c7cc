"""Overrides of the command line: keys that a file does not list, types, misspelt keys."""

import pytest

from mmflax.config.reading import load_config
from mmflax.errors import MmflaxError
from tests import tiny


def override(*words):
    from mmflax.config import overrides

    return overrides.override(tiny.config("d"), [f"--config.{word}" for word in words])


def at(config, path):
    for key in path.split("."):
        config = config[key]
    return config


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("evaluation.max_examples", "100", 100),
        ("evaluation.max_examples", "None", None),
        ("evaluation.views", "full", ("full",)),
        ("data.max_bad_fraction", "0.5", 0.5),
        ("task.head", "None", None),
        ("model.fusion.norm_style", "pre", "pre"),
        ("model.fusion.dropout_rate", "0", 0),
        ("model.modality_dropout", "0.3", 0.3),
        ("train.ema_decay", "0.99", 0.99),
        ("train.log_every", "1", 1),
        ("task.head.hidden_dim", "64", 64),
        ("optim.freeze", "(^|/)image_encoder/", ("(^|/)image_encoder/",)),
        ("optim.freeze", "('a', 'b')", ("a", "b")),
        ("optim.schedule.warmup_fraction", "0.1", 0.1),
        ("mesh.rules", "((r'/gamma$', ()),)", ((r"/gamma$", ()),)),
        ("data.data_dir", "2014", "2014"),
        ("processor.from", "bert", "bert"),
        ("processor.mean", "[0, 0, 0]", (0, 0, 0)),
        ("augment.flip", "safe", "safe"),
        ("init.skip", "head", ("head",)),
        ("init.image_encoder.from", "some/folder", "some/folder"),
        ("checkpoint.best_mode", "min", "min"),
        ("seed", "4", 4),
    ],
)
def test_any_documented_key_may_be_set(path, text, value):
    found = at(override(f"{path}={text}"), path)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("modle.x=1", "did you mean 'model'"),
        ("train.stesp=1", "train has no key 'stesp', did you mean 'steps'"),
        ("model.fusion.norm_styl=pre", "did you mean 'norm_style'"),
        ("model.fuson.depth=1", "did you mean 'fusion'"),
        ("task.caption_word=1", "did you mean 'caption_words'"),
        ("optim.schedule.warmup_step=1", "did you mean 'warmup_steps'"),
        ("model.image_encoder.image_size=8", "has no key 'image_size'"),
        ("train.log_every=often", r"log_every is 'often' \(str\); expected int"),
        ("train.log_every=1.5", r"log_every is 1.5 \(float\); expected int"),
        ("optim.weight_decay=True", r"weight_decay is True \(bool\); expected float"),
        ("seed.x=1", "seed has no keys"),
        ("train.steps", "has no value"),
    ],
)
def test_a_bad_override_is_one_sentence(word, message):
    with pytest.raises(MmflaxError, match=message) as error:
        override(word)
    assert "\n" not in str(error.value)


def test_a_name_decides_the_other_keys_whatever_the_order():
    found = override("model.fusion.rank=4", "model.fusion.name=low_rank_tensor")
    assert found["model"]["fusion"]["rank"] == 4
    with pytest.raises(MmflaxError, match="'rank'"):
        override("model.fusion.rank=4")


def test_steps_and_epochs_replace_each_other():
    assert override("train.epochs=2")["train"].get("steps") is None
    assert override("train.epochs=2")["train"]["epochs"] == 2
    assert override("train.epochs=2", "train.steps=3")["train"]["steps"] == 3
    schedule = override("optim.schedule.warmup_fraction=0.1")["optim"]["schedule"]
    assert schedule["warmup_fraction"] == 0.1 and "warmup_steps" not in schedule


def test_views_are_a_list_of_words():
    found = override("evaluation.views=full,text_only")
    assert found["evaluation"]["views"] == ("full", "text_only")


def test_the_file_is_left_as_it_was():
    config = tiny.config("d")
    from mmflax.config.overrides import override

    override(config, ["--config.model.fusion.depth=7"])
    assert config == tiny.config("d")


def test_shipped_configs_take_keys_that_they_do_not_list():
    words = ["--config.evaluation.max_examples=9", "--config.train.ema_decay=0.9"]
    config = load_config("configs/folder.py:vqa", words)
    assert config["evaluation"]["max_examples"] == 9 and config["train"]["ema_decay"] == 0.9


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.unseen_answers=wrong", "wrong"),
        ("data.allow_leak=True", True),
        ("data.allow_leak=None", None),
        ("data.allow_repeats=True", True),
        ("data.max_bad_fraction=5e-2", 0.05),
        ("data.task=None", None),
        ("data.path=7", "7"),
        ("data.path=/x:y/z w", "/x:y/z w"),
        ("processor.soft_answers=True", True),
        ("processor.image_size=64.0", 64),
        ("train.ema_decay=0.99", 0.99),
        ("train.accumulate=2", 2),
        ("train.steps=1e3", 1000),
        ("train.steps=007", 7),
        ("train.eval_every=None", None),
        ("optim.clip_norm=None", None),
        ("optim.schedule.peak= 1e-4", 1e-4),
        ("evaluation.max_examples=100", 100),
        ("evaluation.views=(full,text_only)", ("full", "text_only")),
        ("augment.flip=safe", "safe"),
        ("checkpoint.best_metric=None", None),
        ("mesh.data=-1", -1),
        ("seed=1e0", 1),
        ("model.image_encoder.remat=none", "none"),  # a policy of that name
    ],
)
def test_what_messages_and_people_type_is_the_value_that_is_meant(word, value):
    found = at(load_config("configs/folder.py:vqa:d", [f"--config.{word}"]), word.split("=")[0])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.steps=2.5", "expected None or int"),
        ("data.allow_leak=yes", "expected None or True or False"),
        ("data.max_bad_fraction=nan", "expected a finite number"),
        ("optim.schedule.peak=inf", "expected a finite number"),
        ("augment.flip=None", "this key has no None"),
        ("data.path=None", "this key has no None"),
        ("train.epochs=1/2", "expected None or float"),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_sentence(word, message):
    with pytest.raises(MmflaxError, match=message):
        load_config("configs/folder.py:vqa:d", [f"--config.{word}"])
