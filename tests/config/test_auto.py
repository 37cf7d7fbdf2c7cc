"""`auto` in a config: where it may stand, what replaces it, and what compares equal to it."""

import pytest

from mmflax.config import auto
from mmflax.config.compare import check_same_run, differences
from mmflax.config.reading import load_config
from mmflax.config.sections import PARTS
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment
from tests import tiny


def read(*words, source="folder.py:vqa:d"):
    return load_config(f"configs/{source}", [f"--config.{word}" for word in words], str)


@pytest.mark.parametrize("key", ["train.steps", "processor.image_size", "model.fusion.depth"])
def test_a_key_may_be_auto_and_a_value_replaces_it(key):
    assert key in auto.undecided(read(f"{key}=auto", source="shapes_vqa.py"))
    assert key in auto.undecided(read()) and key not in auto.undecided(read(f"{key}=64"))
    assert key in auto.undecided(read(f"{key}= auto "))


def test_a_value_of_a_section_without_types_keeps_its_own():
    config = read("task.decoder.width=64", source="folder.py:captioning:d")
    assert config["task"]["decoder"]["width"] == 64


@pytest.mark.parametrize("key", ["train.accumulate", "optim.clip_norm", "model.fusion.epsilon"])
def test_an_auto_that_nothing_decides_is_one_sentence(key):
    with pytest.raises(MmflaxError, match=f"{key} is 'auto', but .*they decide of "):
        read(f"{key}=auto")
    config = tiny.config("d")
    *sections, name = key.split(".")
    here = config
    for section in sections:
        here = here[section]
    here[name] = "auto"
    with pytest.raises(MmflaxError, match=f"{key} is 'auto', but the data do not decide it"):
        Experiment(config)


def test_a_text_may_be_auto_where_texts_may():
    config = read("model.fusion.attention_impl=auto")
    assert "model.fusion.attention_impl" not in auto.undecided(config)
    Experiment(config)


def test_another_kind_keeps_what_it_knows():
    config = read("model.image_encoder.name=resnet")
    assert not any("image_encoder" in key for key in auto.undecided(config))
    config = read("model.image_encoder.name=clip_vision", "model.fusion.name=merged_attention")
    assert {f"model.{part}.depth" for part in PARTS} <= {*auto.undecided(config)}
    config = read("model.image_encoder.variant=Ti/16")
    assert not any("image_encoder" in k and "dropout" not in k for k in auto.undecided(config))


def test_epochs_replace_steps():
    config = read("train.epochs=3")
    assert "steps" not in config["train"] and "train.eval_every" in auto.undecided(config)


def test_auto_equals_what_was_decided():
    asked = read()
    former = auto.filled(asked, {"processor.image_size": 48, "train.steps": 7})
    former["recipe"] = {"minutes": 1.0, "decided": {"processor.image_size": 48}}
    assert not any("image_size" in line for line in differences(former, asked))
    check_same_run(former, asked, "w")
    again = auto.as_before(asked, former)
    assert again["processor"]["image_size"] == 48 and again["train"]["steps"] == 7
    assert again["recipe"] == {"minutes": 8.0, "decided": {"processor.image_size": 48}}
    with pytest.raises(MmflaxError, match="processor.image_size: 48 -> 64"):
        check_same_run(former, read("processor.image_size=64"), "w")
