"""Weight files of the original authors, which come without a config.json, are recognized."""

import json

import jax
import numpy as np
import pytest

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.pretrained import rules
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.families import fields_of, table_of
from mmflax.pretrained.families.lxmert import names as lxmert
from mmflax.pretrained.families.meter import names as meter
from mmflax.pretrained.families.uniter import names as uniter
from mmflax.pretrained.inspect import inspect, shapes_of
from mmflax.pretrained.tensors import open_tensors
from mmflax.run import init_sources
from tests.parity import uniter as uniter_cases
from tests.parity.lxmert import pretrained_name, tuned_name
from tests.pretrained import cases, torch_files

MODULES = {"lxmert": lxmert, "meter": meter, "uniter": uniter}
# The recorded models have heads of 4 or 8; here is the same with the published 64.
WIDE = {
    "lxmert": dict(hidden_size=128, num_attention_heads=2),
    "uniter": dict(hidden_size=128, num_attention_heads=2),
    "meter": dict(hidden_size=128, num_heads=2, input_text_embed_size=64),
}


def same(name):
    return name


# recorded checkpoint: how the original program names its tensors, and what it saves around them
FILES = {
    "lxmert-plain": (lambda name: f"module.bert.{name}", same, "model_LXRT.pth"),
    "lxmert-pretraining": (pretrained_name, same, "model_LXRT.pth"),
    "uniter-answers": (same, same, "uniter-vqa.pt"),
    "uniter-pretraining": (same, same, "uniter-base.pt"),
    "meter-vqa": (same, lambda found: {"state_dict": found, "epoch": 9}, "meter_vqa.ckpt"),
    "meter-nlvr2": (same, lambda found: {"state_dict": found, "epoch": 9}, "meter_nlvr2.ckpt"),
}


def wide(recorded, **more):
    """(config with heads of 64, tensors that fit it) of a recorded checkpoint."""
    config = json.loads((cases.GOLDEN / recorded / "config.json").read_text())
    kind = config["model_type"]
    config |= WIDE[kind] | more
    if kind == "meter":
        text = dict(hidden_size=64, num_attention_heads=1, intermediate_size=32)
        config["text_config"] = config["text_config"] | text
    names = list(open_tensors(cases.GOLDEN / recorded))
    return config, tensors_of(config, names)


def tensors_of(config, names):
    family = config["model_type"]
    model = registry.build("mmflax.pretrained.families", "model", fields_of(family, config, names))
    rng = np.random.default_rng(0)
    params = {p: rng.normal(size=x.shape).astype(np.float32) for p, x in shapes_of(model).items()}
    return rules.write(table_of(family, config, names), params)


def fields(config, names):
    """Keywords of the model, without what no shape tells."""
    found = fields_of(config["model_type"], config, names)
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("recorded", FILES)
def test_a_file_without_a_config_is_the_model_it_was(recorded, tmp_path):
    config, tensors = wide(recorded)
    rename, around, file = FILES[recorded]
    renamed = {rename(name): x for name, x in tensors.items()}
    torch_files.save(around(renamed), tmp_path / file)
    found = from_pretrained(tmp_path / file)
    assert json.loads(json.dumps(found.config["fields"])) == fields(config, list(tensors))
    back = found.tensors()
    assert back.keys() == renamed.keys()
    for name, value in renamed.items():
        assert np.array_equal(back[name], value), name


@pytest.mark.parametrize("images", [1, 2])
def test_a_fine_tuned_lxmert_is_known_by_its_head(images, tmp_path):
    config, tensors = wide("lxmert-plain", num_qa_labels=5, num_labels=2)
    width = config["hidden_size"]
    shapes = {"0": (2 * width, images * width), "3": (5 if images == 1 else 2, 2 * width)}
    for place, shape in shapes.items():
        tensors[f"answer_head.logit_fc.{place}.weight"] = np.ones(shape, np.float32)
        tensors[f"answer_head.logit_fc.{place}.bias"] = np.ones(shape[0], np.float32)
    for name in ("weight", "bias"):
        tensors[f"answer_head.logit_fc.2.{name}"] = np.ones(2 * width, np.float32)
    renamed = {
        tuned_name(name if name.startswith("answer") else f"lxmert.{name}"): x
        for name, x in tensors.items()
    }
    assert "logit_fc.3.weight" in renamed
    torch_files.save(renamed, tmp_path / "BEST.pth")
    found = inspect(tmp_path / "BEST.pth").fields
    assert (found["answers"], found["labels"]) == ((5, 0) if images == 1 else (0, 2))
    assert "head/fc2/kernel" in init_sources.parameters(str(tmp_path / "BEST.pth"))


@pytest.mark.parametrize("head", ["vqa", "itm", "paired", "paired-attn", "triplet", "pretraining"])
def test_every_head_of_uniter_is_known_by_its_shape(head):
    config = {"model_type": "uniter", "hidden_act": "gelu", **uniter_cases.SMALL, **WIDE["uniter"]}
    if head == "triplet":
        config["nlvr2"] = head
    pair = head in ("paired", "paired-attn", "triplet")
    shapes = uniter_cases.backbone_shapes(config, 2 + pair) | uniter_cases.head_shapes(config, head)
    found = fields_of("uniter", uniter.recognize(shapes), shapes)
    assert found == fields_of("uniter", config, shapes)


def test_bert_is_told_from_roberta_in_meter():
    config, tensors = wide("meter-vqa", tokenizer="bert-base-uncased")
    config["text_config"] |= dict(type_vocab_size=2, layer_norm_eps=1e-12)
    shapes = {name: x.shape for name, x in tensors_of(config, tensors).items()}
    found = meter.recognize(shapes)
    assert found["tokenizer"] == "bert-base-uncased"
    assert fields(found, shapes) == fields(config, shapes)


@pytest.mark.parametrize("recorded", ["lxmert-plain", "uniter-answers", "meter-vqa"])
def test_heads_of_another_width_are_asked_for(recorded, tmp_path):
    torch_files.save(dict(open_tensors(cases.GOLDEN / recorded)), tmp_path / "model.pth")
    with pytest.raises(
        MmflaxError, match=r"\d\d wide, .* not a multiple of 64 .* config\.json besi"
    ):
        from_pretrained(tmp_path / "model.pth")


def test_a_meter_whose_patches_form_no_square_is_asked_for():
    _, tensors = wide("meter-vqa")
    shapes = {name: x.shape for name, x in tensors.items()}
    shapes["vit_model.visual.positional_embedding"] = (1 + 6, 64)
    with pytest.raises(MmflaxError, match="6 positions of patches, which form no square"):
        meter.recognize(shapes)


def test_what_is_none_of_these_is_left_to_others():
    shapes = {"embeddings.word_embeddings.weight": (30, 64)}
    assert [module.recognize(shapes) for module in MODULES.values()] == [None] * 3


def test_settings_of_a_training_program_are_passed_over_and_not_run(tmp_path):
    """As PyTorch Lightning saves METER: callbacks, and a config that sacred made."""
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    callback = torch_files.Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    settings = torch_files.Name("sacred.config.custom_containers", "ReadOnlyDict")
    tree = {
        "state_dict": weights,
        "callbacks": {callback: {"best_model_path": "last.ckpt"}},
        "hyper_parameters": torch_files.Instance(settings, {"image_size": 288}),
    }
    torch_files.save(tree, tmp_path / "last.ckpt")
    found = open_tensors(tmp_path / "last.ckpt")
    assert list(found) == ["w"] and np.array_equal(found["w"], weights["w"])
    tree["callbacks"] = {torch_files.Name("os", "system"): 1}
    torch_files.save(tree, tmp_path / "last.ckpt")
    with pytest.raises(MmflaxError, match=r"asks to run os\.system"):
        open_tensors(tmp_path / "last.ckpt")


def test_recognized_weights_give_the_recorded_outputs(tmp_path, monkeypatch):
    """The recorded model itself, where the heads' width is said for once."""
    directory, batch, expected = cases.load_golden("uniter/answers")
    torch_files.save(dict(open_tensors(directory)), tmp_path / "uniter.pt")
    monkeypatch.setattr("mmflax.pretrained.families.configs.heads_of", lambda width, _: width // 8)
    found = from_pretrained(tmp_path / "uniter.pt")
    outputs = jax.jit(found.model.apply)({"params": found.params}, batch)
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=2e-5, atol=2e-5)
