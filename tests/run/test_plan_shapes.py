"""Planning without data: the made-up batch is that of the published files, and nothing is read."""

import dataclasses
import pathlib

import pytest

from mmflax.config.overrides import override
from mmflax.config.reading import read_file
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment
from mmflax.run.decide import decided
from mmflax.run.plan_shapes import PUBLISHED, examples_of, facts_of, processor_of, shapes_of
from tests import tiny
from tests.data import layouts

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
# configs/public.py:NAME -> (folder of its files, what writes them)
FILES = {
    "vqa_v2": ("coco", layouts.write_vqa),
    "coco_captions": ("coco", layouts.write_coco),
    "coco_retrieval": ("coco", layouts.write_coco),
    "flickr30k_captions": ("flickr30k", layouts.write_flickr),
    "flickr30k_retrieval": ("flickr30k", layouts.write_flickr),
    "nlvr2": ("nlvr2", layouts.write_nlvr2),
    "nlvr": ("nlvr", layouts.write_nlvr),
    "snli_ve": ("", layouts.write_snli_ve),
}


def public(name, *words):
    return override(read_file(f"{CONFIGS / 'public.py'}:{name}"), words)


def planned(config):
    experiment = Experiment(config)
    return processor_of(experiment, shapes_of(config))


@pytest.mark.parametrize("name", FILES)
def test_a_planned_batch_is_that_of_the_published_files(name, tmp_path):
    folder, write = FILES[name]
    write(tmp_path / "files" / folder)
    config = public(
        name,
        f"--config.data.source_dir={tmp_path / 'files' / folder}",
        f"--config.data.data_dir={tmp_path / 'prepared'}",
        "--config.data.partial=True",
        "--config.processor.image_size=32",
        "--config.processor.min_answer_count=1",
    )
    experiment = Experiment(config)
    learned = experiment.learn_processor(experiment.dataset())
    made = planned(config)
    real = dataclasses.replace(
        learned, answers=made.answers if learned.answers else (), tokenizer=made.tokenizer
    )
    assert len(made.question_types) >= len(learned.question_types)
    assert made.tokenizer.vocab_size == 30522
    assert len(learned.answers) <= len(made.answers) and bool(learned.answers) == bool(made.answers)
    expected, found = real.zeros(2), made.zeros(2)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in expected.items()
    }


def test_the_counts_are_those_that_the_readers_check():
    from mmflax.data.datasets.public import coco_captions, flickr30k, nlvr, nlvr2, vqa_v2

    def counted(splits):
        return {split.name: split.published for split in splits}

    vqa = counted(vqa_v2._splits())
    assert PUBLISHED["vqa_v2", ""]["examples"] == vqa["train"]
    assert PUBLISHED["vqa_v2", ""]["evaluated"] == vqa["validation"]
    for name, module in (("nlvr2", nlvr2), ("nlvr", nlvr)):
        counts = counted(module._splits())
        assert PUBLISHED[name, ""]["examples"] == counts["train"]
        assert PUBLISHED[name, ""]["evaluated"] == counts["validation"]
    for name, module in (("coco_captions", coco_captions), ("flickr30k", flickr30k)):
        counts = {split: count for split, *_, count in module._TABLE}
        train = counts["train"] + counts.get("restval", 0)
        for task in ("", "retrieval"):
            assert PUBLISHED[name, task]["examples"] == train
            assert PUBLISHED[name, task]["evaluated"] == counts["validation"]


def test_what_the_user_says_goes_before_what_is_published():
    words = ("answers=10", "vocab_size=100", "max_length=20", "examples=7")
    config = public("vqa_v2", *(f"--config.plan.shapes.{word}" for word in words))
    made = planned(config)
    assert len(made.answers) == 10 and made.tokenizer.vocab_size == 100 and made.max_length == 20
    assert made.zeros(1)["answer_scores"].shape == (1, 10)
    assert examples_of(shapes_of(config), "steps") == 7


def test_other_data_are_read_unless_their_sizes_are_given(tmp_path):
    config = tiny.config(tmp_path)
    assert shapes_of(config) is None
    given = override(config, ["--config.plan.shapes.answers=4"])
    assert len(planned(given).answers) == 4
    assert not list(tmp_path.iterdir())
    with pytest.raises(MmflaxError, match="--config.plan.shapes.examples=100000"):
        examples_of(shapes_of(given), "the steps of train.epochs")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("answer=3", "plan.shapes has no key 'answer'.*did you mean 'answers'"),
        ("answers=-1", "plan.shapes.answers is -1; expected a number at least 0"),
        ("vocab_size=3", "plan.shapes.vocab_size is 3; expected a number at least 6"),
    ],
)
def test_mistakes_are_one_sentence(word, message):
    with pytest.raises(MmflaxError, match=message):
        shapes_of(public("vqa_v2", f"--config.plan.shapes.{word}"))


def test_regions_and_a_positive_answer_have_their_sizes():
    config = read_file(f"{CONFIGS / 'lxmert.py'}:vqa")
    made = planned(override(config, ["--config.plan.shapes.region_classes=400"]))
    batch = made.zeros(2)
    assert batch["regions"].shape == (2, 36, 2048) and batch["boxes"].shape == (2, 36, 4)
    assert batch["region_labels"].shape == (2, 36, 400) and "image" not in batch
    matching = public("nlvr2", "--config.task.name=matching", "--config.task.positive=True")
    assert planned(matching).answers[0] == "True"


def test_what_is_auto_is_decided_by_the_sizes():
    config = public("vqa_v2", "--config.data.batch_size=auto", "--config.plan.shapes.examples=2000")
    experiment, shapes = Experiment(config), shapes_of(config)
    found = decided(
        experiment,
        lambda: facts_of(experiment, shapes),
        lambda one: processor_of(one, shapes),
    )
    assert found.experiment.data.batch_size >= 1 and not found.experiment.undecided
    assert any("data.batch_size" in line for line in found.decided)


def test_words_of_a_checkpoint_are_not_replaced(tmp_path):
    learned = Experiment(tiny.config(tmp_path)).learn_processor(
        Experiment(tiny.config(tmp_path)).dataset()
    )
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    learned.save(tmp_path / "run")
    config = tiny.config(tmp_path)
    config["processor"] = {"from": str(tmp_path / "run"), "image_size": 32}
    config["plan"] = {"shapes": {"answers": 2}}
    assert planned(config).tokenizer == learned.tokenizer
    assert planned(config).max_length == 40
