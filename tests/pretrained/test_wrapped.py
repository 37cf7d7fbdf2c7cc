"""State dicts as training programs save them: nested, under prefixes, beside other objects."""

import json
import os
import pathlib
import pickle
import subprocess
import zipfile

import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained import state_dict
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.tensors import open_tensors
from mmflax.run.convert import convert
from mmflax.run.init_sources import Source, opened
from tests.pretrained import cases, torch_files
from tests.pretrained.torch_files import Instance, Name

RECORDED = "bert-words"


def checkpoint(tmp_path, tree, recorded=RECORDED):
    """The recorded checkpoint's config beside a PyTorch file that holds `tree`."""
    config = json.loads((cases.GOLDEN / recorded / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch_files.save(tree, tmp_path / "pytorch_model.bin")
    return tmp_path


@pytest.fixture(scope="module")
def weights():
    return dict(open_tensors(cases.GOLDEN / RECORDED))


def under(prefix):
    return lambda w: {prefix + name: x for name, x in w.items()}


def inside(w):
    """As `torch.compile` of every layer names them."""
    return {name.replace(".attention.", "._orig_mod.attention."): x for name, x in w.items()}


def module(w):
    """A pickled module tree, as `torch.save(model, ...)` writes it."""
    tree = {}
    for name, x in w.items():
        *parts, last = name.split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = x
    return _module(tree)


def _module(tree):
    children = {k: _module(v) for k, v in tree.items() if isinstance(v, dict)}
    own = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    state = {
        "training": False,
        "_parameters": own,
        "_buffers": {"cache": np.zeros(2, np.float32)},
        "_non_persistent_buffers_set": {"cache"},
        "_modules": children,
    }
    return Instance(Name("transformers.models.bert", "Layer"), state)


def scripted(w):
    """The same as TorchScript: attributes are tensors and modules."""

    def node(module):
        state = module.state
        members = {**state["_parameters"], **{k: node(v) for k, v in state["_modules"].items()}}
        return Instance(Name("__torch__.model", "Layer"), {"training": False, **members})

    return node(module(w))


OTHERS = {
    "epoch": 3,
    "best": np.float64(0.5),
    "hyper_parameters": Instance(Name("argparse", "Namespace"), {"lr": 1e-4}),
    "root": Instance(Name("pathlib", "PosixPath"), None),
    "config": Instance(Name("omegaconf.dictconfig", "DictConfig"), {"a": {"b": 1}}),
    "own": Instance(Name("my_project.trainer", "State"), {"best": {1, 2}}),
    "dtype": Name("torch", "float16"),
    "optimizer": {"state": {0: {"exp_avg": np.ones(3, np.float32)}}},
}
FORMS = {
    "module.": under("module."),
    "model.": under("model."),
    "_orig_mod.": under("_orig_mod."),
    "model._orig_mod.": under("model._orig_mod."),
    "module.model.": under("module.model."),
    "_fsdp_wrapped_module.": under("_fsdp_wrapped_module."),
    "inside": inside,
    "net": lambda w: {"net": w},
    "ema": lambda w: {"model_ema": under("module.")(w), **OTHERS},
    "averaged": lambda w: {**under("module.")(w), "n_averaged": np.array(3)},
    "backbone.": under("backbone."),
    "model_state": lambda w: {"model_state": w, "step": 3},
    "twice": lambda w: {"checkpoint": {"model": w}, "epoch": 1},
    "lightning": lambda w: {"state_dict": under("model.")(w), **OTHERS},
    "beside": lambda w: {"model": w, **OTHERS},
    "trained and ema": lambda w: {"model_ema": {n: x * 0 for n, x in w.items()}, "model": w},
    "settings named model": lambda w: {"model": {"name": "bert"}, "state_dict": w},
    "module": module,
    "nested module": lambda w: {"model": module(w), "epoch": 2},
    "scripted": scripted,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_those_of_the_plain_file(form, weights, tmp_path):
    read = from_pretrained(checkpoint(tmp_path, FORMS[form](weights)))
    back = read.tensors()
    assert set(back) <= set(weights)
    for name, value in back.items():
        assert np.array_equal(value, weights[name]), name


@pytest.mark.parametrize("keys", [("model", "model_ema"), ("student", "teacher")])
def test_state_dicts_that_are_passed_over_are_named(keys, weights, tmp_path):
    path = checkpoint(tmp_path, {key: weights for key in keys})
    (note,) = from_pretrained(path).config["notes"]
    read, other = sorted(keys, key=state_dict.KEYS.index)
    assert f"{read!r} was read, and not {other!r}" in note
    assert from_pretrained(checkpoint(tmp_path, {"model": weights})).config["notes"] == []
    torch_files.save({key: weights for key in keys}, path / "pytorch_model.bin")
    assert convert(str(path), str(tmp_path / "copy")) == [note]
    assert opened(Source(str(path))).notes == (note,)


class Own:
    """An object that holds itself; it is pickled by reference, and the reader never imports it."""


@pytest.mark.parametrize("kind", ["dict", "object"])
def test_what_holds_itself_is_read_to_an_end(kind, tmp_path):
    if kind == "dict":
        tree = {"epoch": 1}
        tree["model"] = tree["state_dict"] = tree
    else:
        tree = Own()
        tree.trainer = {"me": tree}
        tree.callback = tree
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(tree))
    with pytest.raises(MmflaxError, match="holds no tensors"):
        open_tensors(tmp_path / "model.pt")


def test_arrays_of_numpy_are_tensors(weights, tmp_path):
    path = checkpoint(tmp_path, {})
    for protocol in (2, 4):
        with zipfile.ZipFile(path / "pytorch_model.bin", "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps({"state_dict": weights}, protocol))
        back = from_pretrained(path).tensors()
        assert all(np.array_equal(value, weights[name]) for name, value in back.items())


REFUSED = {
    "nothing": (lambda w: {"epoch": 3, "settings": {"a": 1}}, "no tensors but epoch, settings"),
    "an object": (
        lambda w: Instance(Name("my.code", "Thing"), {"a": 1}),
        "of my.code.Thing",
    ),
    "twice the names": (lambda w: {**w, **under("_orig_mod.")(w)}, "holds tensors twice"),
    "lora": (
        lambda w: {"base_model.model.x.lora_A.weight": np.ones((2, 2), np.float32)},
        "holds a LoRA adapter",
    ),
    "tensors of the program's own": (
        lambda w: {**under("model.")(w), "loss.weight": np.ones(3, np.float32)},
        r"the model\. unknown \(no rule names them\): loss\.weight\.$",
    ),
    "another prefix": (
        under("backbone_of_mine."),
        r"unknown \(no rule names them\): backbone_of_mine\.bert",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_state_dict_is_refused(form, weights, tmp_path):
    make, message = REFUSED[form]
    with pytest.raises(MmflaxError, match=message):
        from_pretrained(checkpoint(tmp_path, make(weights)))


CODE = {
    "os.system": lambda: (os.system, ("touch ran",)),
    "eval": lambda: (eval, ("open('ran', 'w')",)),
    "exec": lambda: (exec, ("open('ran', 'w')",)),
    "subprocess": lambda: (subprocess.Popen, (["touch", "ran"],)),
}


class Code:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return CODE[self.name]()


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("where", ["weights", "beside", "nested"])
def test_code_is_refused_and_not_run(name, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = Code(name)
    tree = {"weights": bad, "beside": {"state_dict": {}, "x": bad}, "nested": {"a": [{"b": bad}]}}
    with zipfile.ZipFile("model.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(tree[where], 4))
    with pytest.raises(MmflaxError, match="asks to run"):
        open_tensors("model.pt")
    assert not pathlib.Path("ran").exists()


def test_unknown_functions_and_classes_are_never_looked_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "harmful.py").write_text("open('ran', 'w')\ndef run(*a): open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    weight = np.ones(2, np.float32)
    tree = {"state_dict": {"w": weight}, "x": Instance(Name("harmful", "run"), {"a": 1})}
    torch_files.save(tree, tmp_path / "model.pt")
    assert np.array_equal(open_tensors("model.pt")["w"], weight)
    assert not pathlib.Path("ran").exists()
