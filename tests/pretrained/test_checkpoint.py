"""The door to public checkpoints: what it gives, what it refuses, and what it costs."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mmflax
from mmflax import cli, paths
from mmflax.distributed.mesh import make_mesh
from mmflax.errors import MmflaxError
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.run import convert, original
from tests.pretrained import cases

PLAIN, WORDS = (cases.GOLDEN / name for name in ("bert-plain", "bert-words"))


@pytest.fixture
def copy(tmp_path):
    target = tmp_path / "checkpoint"
    shutil.copytree(PLAIN, target)
    return target


def change(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_the_public_name_is_the_door():
    found = mmflax.from_pretrained(PLAIN)
    assert found.config["fields"]["name"] == "bert"
    batch = found.model.zeros(2)
    outputs = found.model.apply({"params": found.params}, batch)
    assert outputs["last_hidden_state"].shape == (2, 4, 16)


def test_every_misfit_is_one_sentence(copy):
    def edit(tensors):
        tensors["strange"] = np.zeros(3, np.float32)
        tensors["encoder.layer.1.output.dense.bias"] = np.zeros(3, np.float32)
        del tensors["encoder.layer.0.output.dense.weight"]

    change(copy, edit)
    with pytest.raises(MmflaxError) as raised:
        from_pretrained(copy)
    text = str(raised.value)
    for part in (
        "encoder.layer.0.output.dense.weight (for text_encoder/encoder/layers_0/mlp/fc2/kernel)",
        "encoder.layer.1.output.dense.bias is [3], text_encoder/encoder/layers_1/mlp/fc2/bias",
        "unknown (no rule names them): strange",
    ):
        assert part in text
    assert "\n" not in text


def test_another_size_names_tensor_and_both_shapes(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 31}))
    with pytest.raises(MmflaxError, match=r"word_embeddings\.weight is \[30, 16\], .* \[31, 16\]"):
        from_pretrained(copy)


def test_an_unknown_family_lists_the_known(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "bertt"}))
    with pytest.raises(MmflaxError, match="model_type 'bertt', did you mean 'bert'.*known: .*clip"):
        from_pretrained(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(MmflaxError, match=r"config\.json is not JSON"):
        from_pretrained(copy)
    (copy / "config.json").unlink()
    with pytest.raises(MmflaxError, match=r"There is no config\.json beside"):
        from_pretrained(copy)


def test_a_new_head_may_be_lacking_and_an_old_one_ignored(copy):
    change(copy, lambda tensors: tensors.update(strange=np.zeros(3, np.float32)))
    found = from_pretrained(copy, may_ignore=("^strange$",))
    change(copy, lambda tensors: tensors.pop("pooler.dense.bias"))
    again = from_pretrained(copy, may_ignore=("^strange$",), may_lack=("pooler/dense/bias",))
    assert paths.leaves(again.params).keys() == paths.leaves(found.params).keys()


def test_half_precision_goes_back_as_half_precision(copy, tmp_path):
    def edit(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(np.float16)

    change(copy, edit)
    found = from_pretrained(copy)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"float32"}
    kept = from_pretrained(copy, param_dtype=None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept.params)} == {"float16"}
    found.save(tmp_path / "back")
    before, after = load_file(copy / "model.safetensors"), found.tensors()
    assert before.keys() == after.keys()
    for name, value in load_file(tmp_path / "back" / "model.safetensors").items():
        assert value.dtype == np.float16 and np.array_equal(value, before[name])


def test_parameters_land_on_the_mesh_part_by_part():
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    whole, spread = from_pretrained(PLAIN), from_pretrained(PLAIN, mesh=mesh)
    for path, leaf in paths.leaves(spread.params).items():
        assert np.array_equal(leaf, paths.leaves(whole.params)[path]), path
    kernel = spread.params["text_encoder"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16 // 4, 32 // 2)


def test_our_own_format_and_back(tmp_path, capsys):
    assert cli.main(["convert", str(WORDS), str(tmp_path / "ours"), "--to", "mmflax"]) == 0
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [
        "mmflax.json",
        "params.safetensors",
    ]
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["notes"] == []
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        WORDS / "model.safetensors"
    ).read_bytes()
    assert cli.main(["convert", str(WORDS), str(tmp_path / "back")]) == 1
    assert "exists already; name a new folder" in capsys.readouterr().err
    assert cli.main(["convert", str(WORDS)]) == 1
    assert "nothing to do" in capsys.readouterr().err


def test_the_first_version_of_our_format_is_read(tmp_path):
    """It had another name for the head of words, and did not name the family."""
    now = from_pretrained(WORDS)
    now.save(tmp_path / "own", to="mmflax")
    weights, about = (tmp_path / "own" / name for name in ("params.safetensors", "mmflax.json"))
    renamed = {name.replace("word_head/", "word_"): x for name, x in load_file(weights).items()}
    assert {"word_dense/kernel", "word_norm/scale", "word_bias"} < renamed.keys()
    save_file(renamed, weights)
    known = json.loads(about.read_text())
    del known["family"]
    about.write_text(json.dumps({**known, "format": 1}))
    again = from_pretrained(tmp_path / "own")
    assert paths.leaves(again.params).keys() == paths.leaves(now.params).keys()
    assert again.tensors().keys() == now.tensors().keys()
    about.write_text(json.dumps({**known, "format": 3}))
    with pytest.raises(MmflaxError, match=r"mmflax\.json cannot be used: format 3 is not 2"):
        from_pretrained(tmp_path / "own")


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("mmflax.pretrained.checkpoint.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.convert(str(WORDS), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
def test_check_compares_with_the_original(capsys):
    pytest.importorskip("transformers")
    assert cli.main(["convert", str(WORDS), "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["largest_difference"]
    assert 0 < found["logits"] < 2e-5


def test_a_conversion_that_differs_is_an_error(monkeypatch, capsys):
    found = original.Checked("Their", {"logits": 1e-6, "pooled": float("nan")}, ("a note",))
    monkeypatch.setattr(original, "check", lambda _, family: found)
    assert cli.main(["convert", str(WORDS), "--check"]) == 1
    said = capsys.readouterr()
    assert "logits: differs by 1.0e-06" in said.out and "pooled differs" in said.err


MEASURE = """
import resource, sys, json
import jax, jax.numpy as jnp
jnp.zeros(8).block_until_ready()
from mmflax.pretrained import checkpoint as pretrained
found = pretrained.inspect(sys.argv[1])
pretrained.shapes_of(found.model)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loaded = pretrained.from_pretrained(sys.argv[1])
jax.block_until_ready(loaded.params)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([1024 * (after - before), found.tensors.bytes]))
"""


@pytest.mark.slow
@pytest.mark.parity
def test_loading_takes_little_more_than_the_file(tmp_path):
    """A base-size checkpoint: at most 1.3 times its bytes more than before."""
    transformers = pytest.importorskip("transformers")
    transformers.BertModel(transformers.BertConfig()).save_pretrained(tmp_path / "base")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "base")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    extra, size = json.loads(done.stdout.splitlines()[-1])
    assert size > 4e8 and extra < 1.3 * size, extra / size
