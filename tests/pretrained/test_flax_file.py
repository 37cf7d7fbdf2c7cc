"""Weights of transformers' Flax classes: their own files and outputs, and the way back.

`tests/golden/record_flax.py` recorded both with the Flax classes of transformers 4.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

from mmflax import cli
from mmflax.errors import MmflaxError
from mmflax.pretrained import hub
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.tensors import open_tensors
from tests.pretrained import cases

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "flax"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
FILE = "flax_model.msgpack"
RENAMED = {"word_logits": "logits"}


def flax_leaves(folder):
    """Path -> array of every msgpack file of a folder, as it is."""
    leaves = {}
    for path in folder.glob("*.msgpack"):
        leaves |= flatten_dict(msgpack_restore(path.read_bytes()), sep="/")
    return leaves


def recorded(name):
    with np.load(GOLDEN / name / "arrays.npz") as file:
        arrays = dict(file)
    parts = {"input": {}, "output": {}}
    for key, value in arrays.items():
        part, rest = key.split(":")
        parts[part][rest] = value
    given = parts["input"]
    batch = {}
    if "input_ids" in given:
        batch["tokens"] = given["input_ids"].astype(np.int32)
        batch["text_mask"] = given["attention_mask"].astype(bool)
    if "pixel_values" in given:
        batch["image"] = given["pixel_values"].transpose(0, 2, 3, 1)
    return batch, parts["output"]


def equal(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype and np.array_equal(value, other[name]), name


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_flax_class(name):
    batch, expected = recorded(name)
    found = from_pretrained(GOLDEN / name)
    outputs = jax.jit(found.model.apply)({"params": found.params}, batch)
    compared = 0
    for key, value in outputs.items():
        key = key if key in expected else RENAMED.get(key, key)
        key = "prediction_logits" if key == "logits" and key not in expected else key
        if key in expected and expected[key].shape == value.shape:
            mask = batch["text_mask"] if value.shape[:2] == (2, 7) else slice(None)
            np.testing.assert_allclose(value[mask], expected[key][mask], rtol=2e-5, atol=2e-5)
            compared += 1
    assert compared == len(set(expected) - {"seq_relationship_logits"}), (outputs.keys(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_is_exact(name, tmp_path):
    """The file of the Flax class, and from it ours, PyTorch's layout, and Flax's again."""
    as_stored = dict(param_dtype=None, dtype="bfloat16" if name.endswith("half") else None)
    first = from_pretrained(GOLDEN / name, **as_stored)
    first.save(tmp_path / "flax", to="flax")
    assert (tmp_path / "flax" / FILE).exists()
    assert json.loads((tmp_path / "flax/config.json").read_text()) == first.config["original"]
    written = flax_leaves(tmp_path / "flax")
    original = flax_leaves(GOLDEN / name)
    if original:  # the head for the next sentence is not read
        equal(written, {k: x for k, x in original.items() if "seq_relationship" not in k})
    first.save(tmp_path / "hf")
    from_pretrained(tmp_path / "hf", **as_stored).save(tmp_path / "again", to="flax")
    equal(flax_leaves(tmp_path / "again"), written)
    equal(dict(open_tensors(tmp_path / "flax")), dict(open_tensors(tmp_path / "hf")))


@pytest.mark.parametrize(
    "name", ["bert-plain", "bert-words", "roberta-plain", "roberta-words", "vit-plain",
             "vit-classifier", "clip-pair"],
)  # fmt: skip
def test_pytorch_to_flax_and_back(name, tmp_path, capsys):
    source = cases.GOLDEN / name
    assert cli.main(["convert", str(source), str(tmp_path / "flax"), "--to", "flax"]) in (0, None)
    assert not (tmp_path / "flax" / "model.safetensors").exists()
    from_pretrained(tmp_path / "flax", param_dtype=None).save(tmp_path / "hf")
    from_pretrained(source, param_dtype=None).save(tmp_path / "straight")
    equal(dict(open_tensors(tmp_path / "hf")), dict(open_tensors(tmp_path / "straight")))


def test_kernels_of_convolutions_and_denses_change_their_axes():
    tensors = open_tensors(GOLDEN / "vit")
    raw = flax_leaves(GOLDEN / "vit")
    patches = raw["embeddings/patch_embeddings/projection/kernel"]
    assert tensors.shapes["embeddings.patch_embeddings.projection.weight"] == (8, 3, 4, 4)
    assert np.array_equal(
        tensors["embeddings.patch_embeddings.projection.weight"], patches.transpose(3, 2, 0, 1)
    )
    dense = "encoder/layer/0/intermediate/dense/kernel"
    assert np.array_equal(tensors["encoder.layer.0.intermediate.dense.weight"], raw[dense].T)
    assert open_tensors(GOLDEN / "bert-classifier").shapes[
        "bert.encoder.layer.0.intermediate.dense.weight"
    ] == (12, 8)  # fmt: skip


def nested(tree, *keys):
    for key in reversed(keys):
        tree = {key: tree}
    return tree


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tree: nested(tree, "params"),
        lambda tree: nested(tree, "params", "params"),
        lambda tree: {"params": tree, "step": 3, "opt_state": {"0": {"mu": tree}}},
        lambda tree: nested(tree, "model"),
    ],
)
def test_the_tree_may_lie_under_params(wrap, tmp_path):
    shutil.copytree(GOLDEN / "bert", tmp_path / "x")
    tree = msgpack_restore((GOLDEN / "bert" / FILE).read_bytes())
    (tmp_path / "x" / FILE).write_bytes(msgpack_serialize(wrap(tree)))
    one, other = (from_pretrained(path) for path in (GOLDEN / "bert", tmp_path / "x"))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_statistics_of_norms_are_pytorchs(tmp_path):
    tree = {
        "params": {"norm": {"scale": np.ones(2), "bias": np.zeros(2)}},
        "batch_stats": {"norm": {"mean": np.full(2, 3.0), "var": np.full(2, 4.0)}},
    }
    (tmp_path / FILE).write_bytes(msgpack_serialize(tree))
    tensors = open_tensors(tmp_path)
    assert {name: x[0] for name, x in tensors.items()} == {
        "norm.weight": 1, "norm.bias": 0, "norm.running_mean": 3, "norm.running_var": 4,
    }  # fmt: skip


def test_safetensors_and_pytorch_go_before_flax(tmp_path):
    shutil.copytree(cases.GOLDEN / "bert-plain", tmp_path / "x")
    (tmp_path / "x" / FILE).write_bytes(b"")
    assert open_tensors(tmp_path / "x").source.endswith("model.safetensors")


WHOLE = (GOLDEN / "bert" / FILE).read_bytes()
DAMAGED = {
    "truncated": (WHOLE[:-3], "truncated, corrupt, or not a Flax file"),
    "half": (WHOLE[: len(WHOLE) // 2], "truncated, corrupt, or not a Flax file"),
    "longer": (WHOLE + b"x", "truncated, corrupt, or not a Flax file"),
    "empty": (b"", "truncated, corrupt, or not a Flax file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not a Flax file"),
    "number": (msgpack_serialize(3), "holds int; expected a tree of arrays"),
    "list": (msgpack_serialize({"a": [1]}), "holds list at a; expected a tree of arrays"),
    "nothing": (msgpack_serialize({}), "holds no arrays"),
    "twice": (
        msgpack_serialize({"a": {"kernel": np.ones((2, 2)), "embedding": np.ones((2, 2))}}),
        r"two arrays that PyTorch calls a\.weight",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_sentence(case, tmp_path):
    content, message = DAMAGED[case]
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(MmflaxError, match=message) as raised:
        open_tensors(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_shard_that_is_not_there(tmp_path):
    shutil.copytree(GOLDEN / "clip", tmp_path / "x")
    (tmp_path / "x" / "flax_model-00002-of-00004.msgpack").unlink()
    with pytest.raises(MmflaxError, match="of which flax_model-00002-of-00004.msgpack is not"):
        from_pretrained(tmp_path / "x")


def test_what_does_not_fit_is_listed_under_pytorchs_names(tmp_path):
    shutil.copytree(GOLDEN / "bert", tmp_path / "x")
    leaves = flax_leaves(GOLDEN / "bert")
    leaves["strange/kernel"] = leaves.pop("pooler/dense/bias")[None]
    (tmp_path / "x" / FILE).write_bytes(msgpack_serialize(unflatten_dict(leaves, sep="/")))
    with pytest.raises(MmflaxError, match=r"missing: pooler\.dense\.bias .*strange\.weight"):
        from_pretrained(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit-plain", "family deit; the families with a Flax layout are bert, roberta, vit, clip"),
        ("clip-openai", "in one tensor .*in_proj_.*which no Flax class of transformers does"),
    ],
)
def test_what_no_flax_class_has_is_not_written(name, message, tmp_path):
    with pytest.raises(MmflaxError, match=message):
        from_pretrained(cases.GOLDEN / name).save(tmp_path / "x", to="flax")
    assert not list(tmp_path.iterdir())


def test_the_hub_is_asked_for_flax_last(tmp_path, monkeypatch):
    asked = []

    def download(name, patterns, revision, offline):
        asked.append(tuple(patterns[len(hub.SMALL) :]))
        if hub.FLAX[0] in patterns:
            (tmp_path / FILE).touch()
        return tmp_path

    monkeypatch.setattr(hub, "_download", download)
    assert hub.locate("someone/flax-only") == tmp_path
    assert asked[-1] == hub.FLAX and len(asked) > 2
