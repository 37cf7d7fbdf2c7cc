"""The rules of a recipe: monotone, within the schema, and divided over every mesh."""

import dataclasses
import itertools
import json

import pytest

from mmflax.config import auto
from mmflax.config.reading import load_config
from mmflax.data.facts import Facts
from mmflax.errors import MmflaxError
from mmflax.run import recipe
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.machine import Machine

TASKS = ("vqa", "captioning", "translation", "matching", "reasoning", "retrieval")
MANY = (1, 8, 36, 500, 2_560, 3_150, 48_000, 200_000, 1_000_000)


def read(task="vqa", *words):
    return load_config(f"configs/folder.py:{task}:d", [f"--config.{word}" for word in words], str)


def decide(config=None, machine=None, work=None, **given):
    facts = dataclasses.replace(Facts(), **given)
    found = recipe.decide(facts, config or read(), machine or Machine(), work)
    return recipe.values_of(found)


def per_example(flops):
    """The work of a model, whatever its config, which must have no `auto` left."""

    def work(config):
        assert not auto.undecided(config)
        return flops

    return work


def test_everything_that_is_auto_is_decided_with_a_reason():
    for task in TASKS:
        config = read(task)
        found = recipe.decide(Facts(), config, Machine())
        assert tuple(found) == auto.undecided(config) and all(why for _, why in found.values())
        assert not auto.undecided(recipe.resolved(config, found))
        assert len(recipe.lines(found)) < len(found)
        json.dumps(found)


def test_more_examples_never_give_less():
    found = [decide(examples=n, work=per_example(1e9)) for n in MANY]
    for key in ("model.fusion.width", "data.batch_size"):
        values = [one[key] for one in found]
        assert values == sorted(values) and values[0] < values[-1]
    seen = [one["train.steps"] * one["data.batch_size"] for one in found]
    for less, more in itertools.pairwise(seen):
        assert more > less - 128  # whole steps


def test_more_time_and_faster_machines_never_give_fewer_steps():
    def steps(minutes, machine):
        config = read("vqa", f"recipe.minutes={minutes}")
        return decide(config, machine, per_example(2e8), examples=48_000)["train.steps"]

    machines = (
        Machine(cores=1), Machine(cores=2), Machine(cores=16), Machine(kind="TPU v4", devices=4),
        Machine(kind="TPU v4", devices=64),
    )  # fmt: skip
    for minutes in (0.1, 1, 8, 60, 600):
        values = [steps(minutes, machine) for machine in machines]
        assert values == sorted(values)
    values = [steps(minutes, machines[1]) for minutes in (0.1, 1, 8, 60, 600)]
    assert values == sorted(values) and values[1] < values[-1]
    assert steps(600, machines[1]) <= 100 * 48_000 / 128


def test_large_pictures_cost_time():
    def steps(size):
        return decide(work=per_example(1e8), examples=48_000, sizes=(size,))["train.steps"]

    assert steps((64, 64)) > steps((4000, 3000))


@pytest.mark.parametrize(
    ("sizes", "words", "size", "patch"),
    [
        (((64, 64),), (), 64, 8),
        (((72, 72),), (), 72, 8),
        (((100, 60),), (), 96, 8),
        (((128, 128),), (), 128, 16),
        (((640, 480),), (), 224, 16),
        (((9, 9),), (), 32, 8),
        (((64, 64), (64, 64), (2000, 100)), (), 64, 8),
        (((64, 64),), ("model.image_encoder.patch_size=32",), 64, 32),
        (((90, 90),), ("model.image_encoder.patch_size=14",), 84, 14),
        (((90, 90),), ("model.image_encoder.patch_size=300",), 300, 300),
        (((64, 64),), ("processor.image_size=100",), 100, 20),
        ((), (), 32, 8),
    ],
)
def test_the_size_of_images_is_that_of_the_pictures(sizes, words, size, patch):
    config = read("vqa", *words)
    found = decide(config, sizes=sizes)
    image = found.get("processor.image_size", config["processor"]["image_size"])
    given = config["model"]["image_encoder"]["patch_size"]
    assert (image, found.get("model.image_encoder.patch_size", given)) == (size, patch)


@pytest.mark.parametrize(
    ("words", "widths"),
    [((), (128, 128, 128)), (("model.fusion.width=64",), (64, 64)),
     (("model.text_encoder.width=96",), (96, 96))],
)  # fmt: skip
def test_widths_go_together(words, widths):
    found = decide(read("captioning", *words))
    named = [v for k, v in found.items() if k.startswith("model.") and k.endswith(".width")]
    assert tuple(named) == widths and found["task.decoder.width"] == widths[0]
    assert found["task.decoder.mlp_dim"] == 2 * widths[0]


def test_few_pairs_are_retrieved_by_convolutions_and_word_vectors_of_moved_pictures():
    few, many = (decide(read("retrieval"), examples=count) for count in (3_000, 60_000))
    for part in ("image_encoder", "text_encoder"):
        depths = [found[f"model.{part}.depth"] for found in (few, many)]
        assert depths == [0, recipe.DEPTH[f"model.{part}"]]
    image, text = "model.image_encoder", "model.text_encoder"
    sizes = {
        count: [found[key] for key in (f"{image}.patch_size", f"{image}.width", f"{text}.width")]
        for count, found in {"few": few, "many": many}.items()
    }
    assert sizes == {"few": [32, 512, 256], "many": [8, 128, 128]}
    assert (few["task.embed_dim"], many["task.embed_dim"]) == (256, 128)
    for side, size in ((20, 32), (48, 64), (64, 64), (72, 64), (640, 224)):
        found = decide(read("retrieval"), examples=3_000, sizes=((side, side),))
        assert found["processor.image_size"] == size and found[f"{image}.patch_size"] == 32
    given = decide(read("retrieval", "model.image_encoder.width=64"), examples=3_000)
    assert given["model.text_encoder.width"] == 256
    assert read("retrieval")["task"]["text_pool"] == "gap"  # without layers CLS sees no word
    assert few["augment.crop_scale"] and decide(examples=3_000)["augment.crop_scale"] is None
    assert decide(examples=3_000)["model.text_encoder.depth"] > 0


@pytest.mark.parametrize(("shards", "accumulate"), itertools.product((1, 3, 8, 256), (1, 2, 5)))
def test_batches_divide_over_the_mesh(shards, accumulate):
    config = read("vqa", f"train.accumulate={accumulate}")
    for examples in MANY:
        found = decide(config, Machine(shards=shards), examples=examples)
        assert found["data.batch_size"] % (shards * accumulate) == 0
        assert found["evaluation.batch_size"] % shards == 0


def test_the_mesh_of_this_machine_takes_what_is_decided():
    experiment = Experiment(read())
    mesh = experiment.mesh()
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    machine = Machine.of(list(mesh.devices.flat), shards)
    found = recipe.decide(Facts(examples=36), experiment.asked, machine)
    Experiment(recipe.resolved(experiment.asked, found)).mesh()


@pytest.mark.parametrize("examples", [1, 48_000, 1_000_000])
def test_what_is_decided_passes_the_check(examples):
    config = read("captioning")
    facts = dataclasses.replace(Facts(), examples=examples, evaluated=examples)
    found = recipe.decide(facts, config, Machine(), per_example(1e9))
    check(Experiment(recipe.resolved(config, found)))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.fusion.width=-3", "does not fit together"),
        ("model.image_encoder.patch_size=0", "does not fit together"),
        ("data.batch_size=0", "data.batch_size is 0"),
        ("recipe.minutes=0", "recipe.minutes is 0.*above 0"),
        ("model.image_encoder.width=6", "does not divide|must divide|sincos2d"),
        ("optim.no_decay=(nothing_like_it,)", "nothing_like_it"),
        ("train.epochs=0", "train.epochs is 0"),
    ],
)
def test_a_mistake_beside_auto_is_named_before_data_are_read(word, message):
    with pytest.raises(MmflaxError, match=message):
        check(Experiment(read("vqa", word)))


@pytest.mark.parametrize(
    ("words", "patience"),
    [((), recipe.PATIENCE), (("train.eval_every=None",), None),
     (("checkpoint.keep_best=0", "checkpoint.best_metric=None"), None)],
)  # fmt: skip
def test_a_run_is_ended_early_only_where_something_is_waited_for(words, patience):
    config = read("vqa", *words)
    assert decide(config)["train.patience"] == patience
    Experiment(recipe.provisional(config))


def test_steps_follow_epochs_that_are_given():
    found = decide(read("vqa", "train.epochs=2"), examples=6400)
    assert found["train.eval_every"] == 13 and found["optim.schedule.warmup_steps"] == 5
