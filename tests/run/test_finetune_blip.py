"""Fine-tuning from BLIP goes on with BLIP: its fusion, its decoder, and what both compute."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths
from mmflax.config.reading import load_config
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.inspect import LazyArray
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.finetune import resolve
from mmflax.run.init_fit import fitted
from mmflax.run.init_sources import parameters
from mmflax.run.train import start_of
from mmflax.tasks.generation_model import generate
from tests.config.test_config_tasks import dataset as made
from tests.pretrained import cases
from tests.run.small_sources import small

BEGIN = 28  # [DEC], which the tokenizer lacks as the published one does


def started(name, task, root):
    """(config, parts, start, checkpoint, what was said) up to the first step."""
    source = small("blip", root, name)
    words = pathlib.Path(source, "vocab.txt")
    words.write_text("\n".join(words.read_text().split("\n")[:BEGIN]))
    said = []
    asked = load_config(f"configs/finetune.py:{task}:DIR", [f"--config.init.from={source}"])
    config = resolve.resolved(asked, say=said.append)
    experiment = Experiment(config)
    check(experiment)
    processor = experiment.learn_processor(made(task))
    parts = assemble(experiment.of_length(20), processor, experiment.mesh(jax.devices()[:1]))
    return config, parts, start_of(experiment, parts), source, "\n".join(said)


def loaded_is_the_checkpoints(start, source):
    """Every loaded value is the checkpoint's, under its own name or that of the fusion."""
    theirs, used = parameters(source), set()
    for path, value in start.values.items():
        name = path.removeprefix("backbone/").replace("fusion/text_encoder", "text_encoder/encoder")
        used.add(name)
        expected = theirs[name].read()
        assert np.array_equal(value.read(), expected[: value.shape[0]] if value.shape else expected)
    return theirs.keys() - used


def drawn(parts, start):
    """The parameters of the first step."""
    new = paths.leaves(jax.jit(parts.init)(jax.random.key(0)))
    return paths.nested(new | {path: jnp.asarray(x.read()) for path, x in start.values.items()})


def new_parts(start):
    names = (path.removeprefix("backbone/") for path, how in start.how.items() if how == "new")
    return {name.split("/")[0] for name in names}


def asked(name):
    """The recorded batch, whose target begins as the published decoder's."""
    _, batch, _ = cases.load_golden(f"blip/{name}")
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    return batch | {"target": batch["target"].at[:, 0].set(BEGIN)}


@pytest.mark.parametrize(
    ("name", "task", "new"),
    [
        ("answer", "translation", set()),
        pytest.param("answer", "captioning", set(), marks=pytest.mark.slow),
        ("caption", "captioning", {"text_encoder", "fusion"}),
    ],
)
def test_its_decoder_goes_on_writing(name, task, new, tmp_path):
    config, parts, start, source, said = started(f"blip-{name}", task, tmp_path)
    assert new_parts(start) == new and not start.unused
    assert loaded_is_the_checkpoints(start, source) == set()
    assert set(start.how.values()) - {"loaded", "new"} <= {"cut from 30 to 28 words"}
    assert config["task"]["begin"] == BEGIN and config["task"]["memory_projected"] is False
    for part in ("text_encoder", "fusion") if new else ():  # which no text reaches
        assert config["model"][part]["depth"] == 0
    batch, original = asked(name), from_pretrained(source)
    params = drawn(parts, start)
    ours = parts.task.model.apply(
        {"params": params}, batch | {"target": batch["target"].at[:, 0].set(2)}, train=False
    )["logits"]
    if (name, task) == ("answer", "captioning"):
        assert "read the text that has read the image; here the image" in said
    else:
        theirs = original.model.apply({"params": original.params}, batch)["logits"][:, :-1]
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    length = 5
    options = dict(max_length=length)
    written = generate(parts.task.model, params, batch, **options)["tokens"]
    assert written.shape == (2, length) and (written[:, 0] == BEGIN).all()
    assert not np.isin(written[:, 1:], [BEGIN, BEGIN + 1]).any()


@pytest.mark.parametrize(
    ("name", "task"), [("pair", "vqa"), pytest.param("answer", "reasoning", marks=pytest.mark.slow)]
)
def test_its_text_encoder_is_the_fusion(name, task, tmp_path):
    config, parts, start, source, said = started(f"blip-{name}", task, tmp_path)
    assert new_parts(start) == {"head"}
    left = {path.split("/")[0] for path in loaded_is_the_checkpoints(start, source)}
    assert not left & {"image_encoder"} and "fusion: cross_attention 2x16 (blip" in said
    assert config["model"]["fusion"]["form"] == "blip" and config["model"]["fusion"]["depth"] == 2
    assert config["model"]["text_encoder"]["depth"] == 0
    if name == "answer":
        return
    batch, original = asked("pair"), from_pretrained(source)
    params = drawn(parts, start)["backbone"]
    backbone = parts.task.model.backbone
    inputs = batch["image"], batch["tokens"], batch["text_mask"]
    found = backbone.apply({"params": params}, *inputs, train=False)
    text = original.model.text_encoder
    read = text.apply(
        {"params": original.params["text_encoder"]}, *inputs[1:],
        context=found.image_tokens, train=False,
    )  # fmt: skip
    np.testing.assert_allclose(found.pooled, read[:, 0], atol=2e-5)
    expected = original.model.apply({"params": original.params}, batch)["last_hidden_state"]
    np.testing.assert_allclose(found.image_tokens, expected, atol=2e-5)


def test_another_fusion_leaves_the_text_encoder_whole(tmp_path):
    source = small("blip", tmp_path)
    for words, new in ((["--config.model.fusion.name=concat"], False), ([], True)):
        words = [f"--config.init.from={source}", *words]
        asked = load_config("configs/finetune.py:vqa:DIR", words)
        found = resolve.resolved(asked, new_fusion=new)["model"]
        assert found["text_encoder"]["depth"] == 2, words
        assert found["fusion"].get("form") != "blip"


def test_rows_that_no_word_has_are_cut():
    name, table = "text_encoder/word_embedding/embedding", np.ones((30, 4), np.float32)
    given = LazyArray(table.shape, lambda: table)
    value, how = fitted(name, given, (28, 4), None, None)
    assert value.read().shape == (28, 4) and how == "cut from 30 to 28 words"
    whole = LazyArray((300, 4), lambda: np.ones((300, 4), np.float32))
    assert fitted(name, whole, (28, 4), None, None) is None  # another vocabulary's
    assert fitted(name, given, (32, 4), None, None) is None
