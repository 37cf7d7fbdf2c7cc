"""What a plan says of this machine: bytes, FLOPs and collectives of the step that trains."""

import functools
import json
import pathlib
import re

import jax
import pytest

from mmflax.config.overrides import override
from mmflax.config.reading import read_file
from mmflax.distributed import plan as plans
from mmflax.distributed.flops import count_flops
from mmflax.run import plan_report
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment, example_batch
from mmflax.run.plan import opened_or_planned, plan
from mmflax.run.train import train_step
from tests import tiny

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
SIZES = ("answers=5", "examples=320", "question_types=2")


def config(*words):
    """Without data: their folder is not there."""
    sizes = [f"--config.plan.shapes.{word}" for word in SIZES]
    return override(tiny.config("no data"), [*sizes, *words])


@functools.cache
def planned(*words):
    return plan(config(*words), price=1.5)


def test_bytes_are_the_compilers_and_the_states():
    memory = planned().step.memory
    assert not pathlib.Path("no data").exists()
    experiment = Experiment(config())
    mesh = experiment.mesh()
    opened = opened_or_planned(experiment, mesh)
    built = assemble(opened.experiment, opened.processor, mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(built.abstract.params))
    assert memory.parameters == memory.gradients == 4 * parameters
    assert memory.optimizer == pytest.approx(8 * parameters, rel=1e-3)
    assert memory.frozen == memory.average == 0
    assert memory.total == sum(memory.parts.values())
    assert memory.activations > 0 and memory.workspace >= 0


def test_fsdp_divides_the_state_and_sends_gathers():
    whole = planned().step
    split = planned("--config.mesh.data=2", "--config.mesh.fsdp=4").step
    assert split.memory.parameters < 0.6 * whole.memory.parameters
    assert split.model_flops == whole.model_flops
    assert {one.kind for one in whole.sent} == {"all-reduce"}
    assert {one.axes for one in whole.sent} <= {("data",), ("data", "fsdp", "tensor")}
    gathers = [one for one in split.sent if one.kind == "all-gather" and one.axes == ("fsdp",)]
    # Each layer's parameters at least once; a CPU may sum padded layers in place of the rest.
    assert sum(one.times for one in gathers) >= 10


def test_the_average_has_its_bytes():
    average = planned("--config.train.ema_decay=0.9").step.memory
    assert average.average == average.parameters


def test_what_is_kept_grows_with_the_rows_and_shrinks_with_rematerialization():
    def kept(*words):
        found = planned(*words).step
        return found.memory.activations, found.recomputed

    stacks = [
        f"--config.model.{part}.remat" for part in ("image_encoder", "text_encoder", "fusion")
    ]
    once, twice = kept()[0], kept("--config.data.batch_size=32")[0]
    assert twice == 2 * once
    full, again = kept(*(f"{key}=full" for key in stacks))
    assert full < 0.6 * once
    # The backward pass is twice the forward pass, which the layers run once more.
    assert 0.2 < again < 0.34
    assert kept()[1] == 0


def test_accumulation_keeps_one_micro_batch():
    words = ("--config.data.batch_size=32",)
    whole = planned(*words).step
    parts = planned(*words, "--config.train.accumulate=2").step
    assert 2 * parts.memory.activations == whole.memory.activations
    assert parts.model_flops == whole.model_flops


def test_the_report_says_what_the_plan_has():
    found = planned()
    text = plan_report.text(found)
    assert "memory of a chip, MiB" in text and "all-reduce" in text
    assert "no estimate, because there are no published figures of 'cpu'" in text
    values = json.loads(json.dumps(plan_report.values(found)))
    assert values["chips"] == 8 and values["memory"]["total"] == found.step.memory.total
    assert values["steps"] == 6 and values["hours"] is None and values["cost"] is None


def test_what_two_versions_of_libtpu_say_of_memory_is_read():
    old = "Used 122.46G of 15.75G hbm. Exceeded hbm capacity by 106.71G."
    new = "required for HLO temporaries (512.5M) exceeds available HBM (15.75G)."
    assert re.search(plans._USED, old).groups() == ("122.46", "G", "15.75", "G")
    assert re.search(plans._NEEDED, new).groups() == ("512.5", "M", "15.75", "G")


def test_epochs_are_counted_in_steps():
    words = ("--config.train.epochs=3", "--config.plan.shapes.examples=160")
    assert planned(*words).steps == 30


@pytest.mark.slow
def test_flops_of_a_base_model_are_those_counted_by_hand():
    """ViT-B/16 at 224 pixels, BERT-base of 40 tokens and six layers of METER's co-attention."""
    experiment = Experiment(read_file(f"{CONFIGS / 'public.py'}:vqa_v2"))
    mesh = experiment.mesh(jax.devices()[:1])
    opened = opened_or_planned(experiment, mesh)
    built = assemble(opened.experiment, opened.processor, mesh)
    batch = jax.eval_shape(lambda: example_batch(opened.processor, 512))
    found = count_flops(train_step(opened.experiment, built), built.abstract, batch)

    width, patches, words, answers = 768, 196, 40, 3129

    def attention(length, context):
        projections = 2 * length + 2 * context  # query and out; key and value
        return 2 * projections * width * width + 2 * 2 * length * context * width

    def mlp(length):
        return 2 * 2 * length * width * 4 * width

    image, text = patches + 1, words
    layers = 12 * (attention(image, image) + mlp(image))
    layers += 12 * (attention(text, text) + mlp(text))
    for length, other in ((image, text), (text, image)):
        layers += 6 * (attention(length, length) + attention(length, other) + mlp(length))
    projected = 2 * (image + text) * width * width + 2 * 2 * width * width  # in, and the poolers
    head = 2 * (2 * width * 2 * 2 * width + 2 * 2 * width * answers)
    embedding = 2 * patches * 16 * 16 * 3 * width  # whose input needs no gradient
    by_hand = 512 * (3 * (layers + projected + head) + 2 * embedding)
    assert found == pytest.approx(by_hand, rel=0.01)
