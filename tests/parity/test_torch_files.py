"""Files that PyTorch itself writes: state dicts in training's wrappings, modules, TorchScript."""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.tensors import open_tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def under(prefix):
    return lambda m: {prefix + name: x for name, x in m.state_dict().items()}


FORMS = {
    "plain": under(""),
    "data parallel": lambda m: torch.nn.DataParallel(m).state_dict(),
    "compiled": lambda m: torch.compile(m).state_dict(),
    "compiled layers": lambda m: compiled_layers(m).state_dict(),
    "lightning": lambda m: {
        "state_dict": under("model.")(m),
        "epoch": 3,
        "hyper_parameters": {
            "root": pathlib.PosixPath("/x"),
            "device": torch.device("cpu"),
            "dtype": torch.float16,
            "args": argparse.Namespace(lr=1),
            "size": torch.Size([1, 2]),
        },
        "best": np.float64(0.5),
        "optimizer_states": [torch.optim.Adam(m.parameters()).state_dict()],
    },
    "ema": lambda m: {"model_ema": m.state_dict(), "optimizer": {"state": {}}},
    "net": lambda m: {"net": m.state_dict()},
    "whole module": lambda m: m,
    "whole module in a dict": lambda m: {"model": m, "epoch": 1},
    "parameters": lambda m: dict(m.named_parameters()),
    "numpy": lambda m: {"model": {n: x.numpy() for n, x in m.state_dict().items()}},
}


def compiled_layers(model):
    for index, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = torch.compile(layer)
    return model


@pytest.fixture
def original():
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=4, intermediate_size=32,
        num_hidden_layers=1, max_position_embeddings=12, architectures=["BertForMaskedLM"],
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(config).eval()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_are_the_originals(form, zipped, original, tmp_path):
    tokens = np.array([[2, 5, 6, 7, 3]], np.int32)
    with torch.no_grad():
        expected = original(torch.tensor(tokens).long()).logits.numpy()
    original.config.to_json_file(tmp_path / "config.json")
    tree = FORMS[form](original)
    torch.save(tree, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    ours = from_pretrained(tmp_path)
    outputs = ours.model.apply({"params": ours.params}, {"tokens": jnp.asarray(tokens)})
    np.testing.assert_allclose(np.asarray(outputs["logits"]), expected, atol=1e-5)


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        self.logit_scale = torch.nn.Parameter(torch.ones([]))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.visual(x) * self.logit_scale


def test_torchscript_is_read_without_its_code(tmp_path):
    model = Scripted().half()
    torch.jit.script(model).save(tmp_path / "model.pt")
    tensors = open_tensors(tmp_path / "model.pt")
    for name, value in model.state_dict().items():
        assert np.array_equal(tensors[name], value.detach().numpy()), name


UNREADABLE = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "a sparse tensor; save it as tensor.to_dense"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "a quantized tensor",
    ),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "float8"),
    "meta": (lambda: torch.ones(3, device="meta"), "meta device"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_that_are_no_plain_arrays_are_refused(kind, tmp_path):
    make, message = UNREADABLE[kind]
    torch.save({"w": make()}, tmp_path / "x.pt")
    with pytest.raises(MmflaxError, match=message):
        open_tensors(tmp_path / "x.pt")
