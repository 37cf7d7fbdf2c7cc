"""configs/lxmert.py: its model is LXMERT's, starts from a checkpoint, and trains on regions."""

import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths, registry
from mmflax.config.reading import load_config
from mmflax.errors import MmflaxError
from mmflax.inference import batch_figure
from mmflax.models.encoders.regions import join_regions
from mmflax.pretrained.checkpoint import from_pretrained, replaced
from mmflax.pretrained.families import fields_of
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment
from mmflax.run.evaluate import evaluate
from mmflax.run.examples import first_batch
from mmflax.run.load import load
from mmflax.run.train import start_of, train
from mmflax.tasks.inputs import pair_rows
from tests.data import layouts
from tests.pretrained import cases

PUBLISHED = dict(
    hidden_size=768, num_attention_heads=12, intermediate_size=3072, l_layers=9, x_layers=5,
    r_layers=5, vocab_size=30522, max_position_embeddings=512, type_vocab_size=2,
)  # fmt: skip
LETTERS = [f"{mark}{letter}" for letter in "acehimnorstu" for mark in ("", "##")]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "?"]  # 30, as the recorded model


@pytest.fixture
def checkpoint(tmp_path):
    """The recorded LXMERT with a vocabulary beside it."""
    shutil.copytree(cases.GOLDEN / "lxmert-plain", tmp_path / "lxmert")
    (tmp_path / "lxmert" / "vocab.txt").write_text("\n".join(WORDS))
    return str(tmp_path / "lxmert")


def shrunk(tmp_path, checkpoint, task="vqa", **train):
    """The recipe at the recorded model's size, on tiny data of the published layout."""
    config = load_config(
        f"configs/lxmert.py:{task}",
        [f"--config.init.from={checkpoint}", f"--config.processor.from={checkpoint}"],
    )
    small = dict(width=16, num_heads=2, mlp_dim=32, depth=2, dtype=None)
    for part in ("image_encoder", "text_encoder", "fusion"):
        config["model"][part] |= small
    config["model"]["text_encoder"]["max_length"] = 12
    folder = {"vqa": "coco", "nlvr2": "nlvr2"}[task]
    config["data"] |= dict(
        source_dir=str(tmp_path / folder), data_dir=str(tmp_path / "data"), partial=True,
        batch_size=8, num_threads=1,
    )  # fmt: skip
    config["processor"]["max_length"] = 12
    if task == "vqa":
        config["processor"]["min_answer_count"] = 1
    config["train"] |= dict(steps=6, log_every=2, eval_every=3, checkpoint_every=2) | train
    config["optim"]["schedule"]["warmup_steps"] = 2
    config["evaluation"] |= dict(batch_size=8, max_examples=None, bootstrap=0)
    return config


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_its_model_has_the_parameters_of_the_published_one(task):
    made = Experiment(load_config(f"configs/lxmert.py:{task}")).model(
        types.SimpleNamespace(
            image_size=0,
            num_regions=36,
            region_dim=2048,
            max_length=20,
            target_length=0,
            tokenizer=types.SimpleNamespace(vocab_size=30522),
        )  # fmt: skip
    )
    fields = fields_of("lxmert", PUBLISHED, ["bert.embeddings.word_embeddings.weight"])
    for part, name in (
        ("image_encoder", "regions"), ("text_encoder", "bert"), ("fusion", "co_attention"),
    ):  # fmt: skip
        room = "fusion" if part == "fusion" else "encoders"
        published = registry.build(f"mmflax.models.{room}", part, {"name": name, **fields[part]})
        made_part = getattr(made, part).clone(parent=None)
        here = replaced(made_part, {"dtype": published.layer.dtype})
        assert repr(here) == repr(published)


def test_it_starts_from_the_checkpoint_but_for_the_head(tmp_path, checkpoint):
    layouts.write_vqa_regions(tmp_path / "coco")
    one = Experiment(shrunk(tmp_path, checkpoint))
    processor = one.learn_processor(one.dataset())
    built = assemble(one, processor, one.mesh())
    start = start_of(one, built)
    for path, how in start.how.items():
        assert how == ("new" if path.startswith("head/") else "loaded"), path
    assert start.unused == ()
    # On the recorded inputs (without token types, which no task gives) both say the same.
    _, batch, _ = cases.load_golden("lxmert/plain")
    batch = {key: jnp.asarray(value) for key, value in batch.items() if key != "token_types"}
    params = {path: jnp.asarray(value.read()) for path, value in start.values.items()}
    image = join_regions(batch["regions"], batch["boxes"])
    inputs = image, batch["tokens"], batch["text_mask"], batch["region_mask"]
    original = from_pretrained(checkpoint)

    def both(ours, theirs):
        pooled = built.task.model.backbone.apply({"params": ours}, *inputs, train=False).pooled
        return pooled, original.model.apply({"params": theirs}, batch)["pooled_output"]

    found, expected = jax.jit(both)(paths.nested(params)["backbone"], original.params)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_data_are_shown_as_they_are_read(tmp_path, checkpoint):
    layouts.write_vqa_regions(tmp_path / "coco")
    shown = first_batch(shrunk(tmp_path, checkpoint), "train", 2)
    assert "train: 8 examples, e.g. 'What is number 0 here?'" in shown.dataset.describe()
    batch_figure.draw(shown.batch, shown.processor, tmp_path / "batch.png")
    assert (tmp_path / "batch.png").stat().st_size > 1000


def test_regions_and_encoders_that_do_not_fit_are_told_apart(tmp_path, checkpoint):
    layouts.write_vqa_regions(tmp_path / "coco")
    config = shrunk(tmp_path, checkpoint)
    config["model"]["image_encoder"] = dict(name="vit", width=16, depth=1, num_heads=2)
    one = Experiment(config)
    processor = one.learn_processor(one.dataset())
    with pytest.raises(MmflaxError, match=r"encoder 'vit' reads image, which the data lack; .*reg"):
        one.task(processor)


def test_a_figure_of_a_batch_shows_where_the_regions_lie():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]], np.float32)
    found = batch_figure.picture({"boxes": boxes[None], "second_boxes": boxes[None]}, 0, None)
    assert found.shape == (128, 256, 3)
    assert found[0, 0, 0] == np.float32(0.9) and found[40, 40, 0] < 0.82 and found[0, 100, 0] == 1


def test_both_images_of_nlvr2_are_read(tmp_path, checkpoint):
    layouts.write_nlvr2_regions(tmp_path / "nlvr2")
    one = Experiment(shrunk(tmp_path, checkpoint, "nlvr2"))
    data = one.dataset()
    processor = one.learn_processor(data)
    built = assemble(one, processor, one.mesh())
    train = data.source("train")
    batch = processor.batch([train[0], train[1]])
    batch = {key: jnp.asarray(x) for key, x in batch.items() if key != "id"}
    both = pair_rows(batch)
    for key in ("regions", "boxes", "region_mask"):
        assert np.array_equal(both[key][::2], batch[key])
        assert np.array_equal(both[key][1::2], batch[f"second_{key}"])
    assert both.keys() == {"regions", "boxes", "region_mask", "tokens", "text_mask"}

    def run(key):
        params = built.init(key)
        return built.task.model.apply({"params": params}, batch, train=False)["logits"]

    assert jax.eval_shape(run, jax.random.key(0)).shape == (2, 2)


@pytest.mark.slow
def test_it_trains_resumes_evaluates_and_is_asked(tmp_path, checkpoint):
    layouts.write_vqa_regions(tmp_path / "coco", sizes=(6, 4, 2))

    def config(**train):
        made = shrunk(tmp_path, checkpoint, **train)
        for part in ("image_encoder", "text_encoder", "fusion"):
            made["model"][part] |= dict(scan_layers=True)  # less to compile
        return made

    whole = train(config(), str(tmp_path / "whole"), quiet=True)
    run = str(tmp_path / "run")
    train(config(steps=3), run, quiet=True)
    shutil.rmtree(checkpoint)  # a run that goes on needs neither weights nor the published files
    shutil.rmtree(tmp_path / "coco")
    resumed = train(config(), run, quiet=True)
    assert int(resumed.state.step) == 6
    for path, leaf in paths.leaves(whole.state.params).items():
        assert np.array_equal(leaf, paths.leaves(resumed.state.params)[path]), path
    found = evaluate(run, "validation")
    assert 0 <= found["metrics"]["full"]["accuracy"] <= 1
    assert found["metrics"].keys() >= {"full", "text_only", "image_only"}
    image = layouts.detected("COCO_val2014_000000000101")
    image = {"regions": image["features"], "boxes": image["boxes"] / [64, 48, 64, 48]}
    model = load(run)
    assert model.predict(image, "what number is here?").answer
    with pytest.raises(MmflaxError, match="there are no regions; give a detector's features"):
        model.predict(np.zeros((4, 4, 3), np.uint8), "what is it?")
