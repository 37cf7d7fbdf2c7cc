"""The recipes that start from public checkpoints: at full size, and with a checkpoint's numbers."""

import functools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths, registry
from mmflax.config.overrides import override
from mmflax.config.reading import load_config
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError
from mmflax.models.called import traced
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.families import fields_of
from mmflax.pretrained.inspect import FAMILIES, LazyArray, inspect
from mmflax.run import convert, init_from, init_sources
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment
from mmflax.run.evaluate import evaluate
from mmflax.run.init_sources import Model, Opened
from mmflax.run.load import load
from mmflax.run.train import start_of, train
from tests.config.test_config_tasks import arguments, dataset
from tests.pretrained import cases

PARTS = ("image_encoder", "text_encoder", "fusion")
SIZES = ("width", "depth", "num_heads", "mlp_dim", "patch_size", "max_length")
RECIPES = [
    (name, arg)
    for name in ("bridgetower", "vilt", "meter", "clip", "siglip")
    for arg in arguments(name, "RUNS")
]
PAIRS = ("clip", "siglip")
ROBERTA = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
    hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
)  # fmt: skip
# What the config.json of the published checkpoints says of their sizes, and the tensors that tell
# which parts they have.
PUBLISHED = {
    "clip": (
        {"projection_dim": 512},
        ("vision_model.embeddings.class_embedding", "visual_projection.weight")
        + ("text_model.embeddings.token_embedding.weight",),
    ),
    "siglip": (
        {},
        ("vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe")
        + ("text_model.embeddings.token_embedding.weight",),
    ),
    "vilt": (
        ROBERTA
        | dict(vocab_size=30522, max_position_embeddings=40, type_vocab_size=2, image_size=384)
        | dict(layer_norm_eps=1e-12, patch_size=32, modality_type_vocab_size=2, qkv_bias=True),
        (),
    ),
    "bridgetower": (
        ROBERTA
        | dict(num_hidden_layers=6, text_config=ROBERTA)
        | dict(
            vision_config=dict(
                hidden_size=768, num_hidden_layers=12, patch_size=16, image_size=288,
                layer_norm_eps=1e-5,
            )
        ),
        (),
    ),
    "meter": (
        dict(image_size=288, patch_size=16, tokenizer="roberta-base", vocab_size=50265),
        tuple(f"vit_model.visual.transformer.resblocks.{i}.ln_1.weight" for i in range(11))
        + tuple(f"text_transformer.encoder.layer.{i}.x" for i in range(12))
        + tuple(f"cross_modal_text_layers.{i}.x" for i in range(6)),
    ),
}  # fmt: skip
VOCABULARY = dict(clip=49408, siglip=32000, vilt=30522, bridgetower=50265, meter=50265)


def built(config, arg, monkeypatch, vocabulary):
    """The recipe's run on made data, as if its tokenizer had the checkpoint's words."""
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda _: vocabulary))
    monkeypatch.setattr(Tokenizer, "continuation", property(lambda _: ()))
    run = Experiment(config)
    processor = run.learn_processor(dataset(arg if config["task"]["name"] != "vqa" else "vqa"))
    run.augment()
    return run, assemble(run, processor, run.mesh(jax.devices()[:1]))


def scanned(parts, name):
    """The parts with all their layers in one, which is traced once."""
    bare = ("image_encoder",) if name == "vilt" else ()
    return {k: {**v, "scan_layers": True} for k, v in parts.items() if k in PARTS and k not in bare}


@functools.cache
def published(name):
    """The family's published checkpoint: its modules, and of its parameters the shapes alone."""
    config, names = PUBLISHED[name]
    fields = fields_of(name, {"model_type": name, **config}, names)
    model = registry.build(FAMILIES, "model", fields | scanned(fields, name))
    shapes, modules = traced(lambda key: model.init(key, model.zeros())["params"])
    unread = {
        path: LazyArray(tuple(leaf.shape), lambda: pytest.fail("nothing is read"))
        for path, leaf in shapes.items()
    }
    return Opened(unread, Model(modules, model.image_encoder, None, ()))


@pytest.mark.parametrize(("name", "arg"), RECIPES)
def test_every_parameter_of_a_recipe_is_in_the_published_checkpoint(name, arg, monkeypatch):
    config = load_config(f"configs/{name}.py:{arg}")
    config["model"] |= scanned(config["model"], name)
    run, parts = built(config, arg, monkeypatch, VOCABULARY[name])
    monkeypatch.setattr(init_sources, "opened", lambda _: published(name))
    model = init_sources.run_model(parts.init, parts.processor)
    found = init_from.start({"from": "there"}, paths.leaves(parts.abstract.params), model)
    assert not any("accept" in note for note in found.notes)
    new = {path for path, how in found.how.items() if how == "new"}
    assert all(path.startswith("head/") for path in new)
    assert bool(new) == (name not in PAIRS) and found.unused == ()
    size, first = config["processor"]["image_size"], PUBLISHED[name][0]
    first = first.get("vision_config", first).get("image_size", 224)
    changed = {path for path, how in found.how.items() if how not in ("loaded", "new")}
    positions = {"backbone/image_encoder/position_embedding"} if size != first else set()
    types = {"backbone/fusion/type_embedding/embedding"} if "rows added" in found.table() else set()
    assert changed == positions | types
    assert run.config["optim"]["schedule"]["warmup_steps"] < run.config["train"]["steps"]


GOLDEN = {
    "bridgetower": "bridgetower-plain", "vilt": "vilt-plain", "meter": "meter-vqa",
    "clip": "clip-pair", "siglip": "siglip-pair",
}  # fmt: skip


def small(config, name, source):
    """The recipe in a small checkpoint's sizes; whatever is not a size stays the recipe's."""
    found = inspect(source)
    for part in PARTS:
        ours = config["model"][part]
        ours.pop("variant", None)
        ours.pop("dtype", None)
        theirs = found.fields.get(part, {})
        ours |= {key: theirs[key] for key in SIZES if theirs.get(key) is not None}
    size, length = (found.fields[part] for part in PARTS[:2])
    config["processor"] |= {"image_size": size["image_size"]}
    config["processor"]["max_length"] = length["max_length"] - length.get("position_offset", 0)
    if name in PAIRS:
        config["task"]["embed_dim"] = found.fields["projection"]
    config["init"] = {"from": str(source)}
    return config


def begun(name, arg, source, monkeypatch):
    """(run, its parameters before the first step)."""
    config = small(load_config(f"configs/{name}.py:{arg}"), name, source)
    vocabulary = inspect(source).fields["text_encoder"]["vocab_size"]
    run, parts = built(config, arg, monkeypatch, vocabulary)
    start = start_of(run, parts)
    assert start is not None
    params = start.params(parts.init, jax.random.key(0))

    def placed(value, leaf):
        """As a run places it: in its own type, whatever the checkpoint's."""
        return np.asarray(value[...] if isinstance(value, LazyArray) else value, leaf.dtype)

    return parts, jax.tree.map(placed, params, parts.abstract.params)


def originals(source, batch, output):
    """What the checkpoint itself gives for the batch."""
    loaded = from_pretrained(source)
    found = jax.jit(lambda p, b: loaded.model.apply({"params": p}, b)[output])
    return np.asarray(found(loaded.params, batch))


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_encoders_starts_with_the_similarities_of_its_checkpoint(name, monkeypatch):
    source, batch, recorded = cases.load_golden(GOLDEN[name])
    parts, params = begun(name, "coco", source, monkeypatch)
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    # As its tokenizer gives it: SigLIP reads padding too.
    whole = {"text_mask": jnp.ones(batch["tokens"].shape, bool)} | batch

    def logits(params, batch):
        found = parts.task.model.apply({"params": params}, batch, train=False)
        cosines = found["image_embedding"] @ found["text_embedding"].T
        return cosines * found["logit_scale"] + found["logit_bias"]

    found = np.asarray(jax.jit(logits)(params, whole))
    theirs = originals(source, batch, "logits_per_image")
    assert np.abs(found - theirs).max() <= 1e-5 * np.abs(theirs).max()
    torchs = recorded["logits_per_image"]
    assert np.abs(found - torchs).max() <= cases.TOLERANCE * np.abs(torchs).max()


@pytest.mark.parametrize(
    ("name", "arg"), [("bridgetower", "snli_ve"), ("vilt", "vqa"), ("meter", "vqa")]
)
def test_a_fused_recipe_starts_with_the_features_of_its_checkpoint(name, arg, monkeypatch):
    source, batch, recorded = cases.load_golden(GOLDEN[name])
    parts, params = begun(name, arg, source, monkeypatch)
    batch = {key: jnp.asarray(batch[key]) for key in ("image", "tokens", "text_mask")}
    backbone = parts.task.model.backbone

    def pooled(params, batch):
        return backbone.apply({"params": params}, **batch, train=False).pooled

    found = np.asarray(jax.jit(pooled)(params["backbone"], batch))
    # What is recorded of ViLT has token types, which a run has not.
    theirs = (
        originals(source, batch, "pooler_output") if name == "vilt" else recorded["pooler_output"]
    )
    assert np.abs(found - theirs).max() <= cases.TOLERANCE * np.abs(theirs).max()


def with_words(name, target):
    """A copy of the small checkpoint that can read: letters and the family's special tokens."""
    shutil.copytree(cases.GOLDEN / GOLDEN[name], target)
    if name == "clip":
        letters = "aeiocdlnrstgu"
        words = ["!", *letters, *(f"{x}</w>" for x in letters)]
        words += ["<|startoftext|>", "<|endoftext|>"]
        (target / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (target / "merges.txt").write_text("#version: 0.2\n")
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?"]
        words += [f"{mark}{letter}" for letter in "abcdeilnorst" for mark in ("", "##")]
        (target / "vocab.txt").write_text("\n".join(words))
    assert len(words) == inspect(target).fields["text_encoder"]["vocab_size"]
    return target


def on_shapes(config, data, shapes_dir):
    """The recipe on a few scenes of `shapes`, for a few steps on one CPU."""
    config["data"] = {
        "name": "shapes", "num_scenes": 40, "batch_size": 16, "num_threads": 1,
        "data_dir": str(shapes_dir), **data,
    }  # fmt: skip
    config["train"] = dict(steps=4, log_every=1, eval_every=2, checkpoint_every=2)
    config["evaluation"] = dict(split="validation", batch_size=16, max_examples=32)
    config["optim"]["schedule"] = dict(name="warmup_linear", peak=1e-3, warmup_steps=1)
    return config


def trained_twice(config, workdir):
    """Two steps, then two more as after an interruption."""
    first = {**config, "train": {**config["train"], "steps": 2}}
    schedule = {**config["optim"]["schedule"], "total_steps": 4}
    for one in (first, config):
        one["optim"] = {**config["optim"], "schedule": schedule}
    train(first, workdir, quiet=True)
    result = train(config, workdir, quiet=True)
    assert int(result.state.step) == 4
    return result


@pytest.mark.slow
def test_clip_trains_on_from_its_checkpoint_and_goes_back(shapes_dir, tmp_path):
    source = with_words("clip", tmp_path / "clip")
    config = small(load_config("configs/clip.py:coco"), "clip", source)
    config["processor"]["from"] = str(source)
    config = on_shapes(config, {"task": "retrieval"}, shapes_dir)
    workdir = str(tmp_path / "run")
    trained_twice(config, workdir)
    found = evaluate(workdir)["metrics"]["full"]
    assert any("recall" in name or "R@" in name for name in found), found

    notes = convert.convert(workdir, str(tmp_path / "back"))
    assert notes == []
    again, before = from_pretrained(tmp_path / "back"), from_pretrained(source)
    assert again.config["original"] == before.config["original"]
    moved = paths.leaves(again.params)
    for path, leaf in paths.leaves(before.params).items():
        assert moved[path].shape == leaf.shape
        assert "logit" in path or not np.array_equal(moved[path], leaf), path
    run = load(workdir)
    batch = run.processor.batch(
        [
            {"image": np.full((16, 16, 3), 90 * i, np.uint8), "question": text, "id": str(i)}
            for i, text in enumerate(["a red circle", "two green stars"])
        ]
    )
    batch = {key: jnp.asarray(batch[key]) for key in ("image", "tokens", "text_mask")}
    ours = run.task.model.apply({"params": run.params}, batch, train=False)
    logits = ours["logit_scale"] * ours["image_embedding"] @ ours["text_embedding"].T
    theirs = again.model.apply({"params": again.params}, batch)["logits_per_image"]
    assert np.abs(logits - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.slow
def test_vilt_trains_on_from_its_checkpoint_and_goes_back(shapes_dir, tmp_path):
    """With larger images and shorter texts than the checkpoint's, and with a new head."""
    source = with_words("vilt", tmp_path / "vilt")
    config = small(load_config("configs/vilt.py:vqa"), "vilt", source)
    config["model"]["text_encoder"]["max_length"] = 10
    config["processor"] |= {"from": str(source), "image_size": 16, "max_length": 10}
    config["task"]["head"]["hidden_dim"] = 32
    config = on_shapes(config, {}, shapes_dir)
    workdir = str(tmp_path / "run")
    trained_twice(config, workdir)
    assert 0 <= evaluate(workdir)["metrics"]["full"]["accuracy"] <= 1

    notes = convert.convert(workdir, str(tmp_path / "back"))
    assert "16 pixels a side" in notes[0] and "the first 10 rows" in notes[1]
    assert all("head/" in note for note in notes[2:])
    again = from_pretrained(tmp_path / "back")
    assert again.config["original"]["image_size"] == 16
    params = paths.leaves(load(workdir).params["backbone"])
    for path, leaf in paths.leaves(again.params).items():
        rows = 10 if path == "text_encoder/position_embedding/embedding" else None
        assert np.array_equal(leaf[:rows], params[path]), path


def test_a_checkpoint_whose_images_are_not_square_gives_its_words_alone(tmp_path):
    """ViLT's images keep their shape; the recipe says how a square is made of them."""
    source = tmp_path / "vilt"
    shutil.copytree(cases.GOLDEN / GOLDEN["vilt"], source)
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    pixels = {"image_processor_type": "ViltImageProcessor", "size": {"shortest_edge": 384}}
    (source / "preprocessor_config.json").write_text(json.dumps(pixels))
    config = load_config("configs/vilt.py:vqa", [f"--config.processor.from={source}"])
    processor = Experiment(config).learn_processor(dataset("vqa"))
    assert (processor.image_size, processor.resize, processor.tokenizer.vocab_size) == (
        384, "squash", 5,
    )  # fmt: skip
    config["processor"].pop("mean")
    with pytest.raises(MmflaxError, match="keep their aspect ratio"):
        Experiment(config).learn_processor(dataset("vqa"))


def test_a_checkpoint_of_another_activation_is_refused_and_the_advice_helps(tmp_path, monkeypatch):
    """LAION's CLIPs have gelu where OpenAI's and the recipe have quick_gelu; all shapes fit."""
    source = tmp_path / "laion"
    shutil.copytree(cases.GOLDEN / GOLDEN["clip"], source)
    original = json.loads((source / "config.json").read_text())
    for side in ("text_config", "vision_config"):
        original[side]["hidden_act"] = "gelu"
    (source / "config.json").write_text(json.dumps(original))

    def begin(words=()):
        config = small(load_config("configs/clip.py:coco"), "clip", source)
        run, parts = built(override(config, words), "coco", monkeypatch, 29)
        return start_of(run, parts)

    with pytest.raises(MmflaxError, match=r"image_encoder\.activation is 'gelu' in") as caught:
        begin()
    words = re.findall(r"--config\.[\w.]+=\w+", str(caught.value))
    assert [word.split("=")[0].split(".", 1)[1] for word in words] == [
        "model.image_encoder.activation", "model.text_encoder.activation", "init.accept_changes",
    ]  # fmt: skip
    assert not any("activation" in note for note in begin(words[:2]).notes)
    notes = begin(words[2:]).notes
    assert sum("as init.accept_changes allows" in note for note in notes) == 2
    docs = pathlib.Path(__file__).parents[2] / "docs" / "checkpoints.md"
    printed = [line.split() for line in docs.read_text().splitlines() if "laion-clip" in line]
    for line in printed:
        begin([word for word in line if re.match(r"--config\.(model|init\.accept)", word)])
    assert len(printed) == 2
