"""A family from outside the package: its own model and table, and no edit elsewhere."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmflax import cli, paths
from mmflax.errors import MmflaxError
from mmflax.models.contracts import Family
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.inspect import inspect
from mmflax.run import init_from
from tests.pretrained import cases

FAMILY = "their_package.tiny_family"
SOURCE = '''
"""A bag of words, and its score."""

import flax.linen as nn
import jax.numpy as jnp

from mmflax.pretrained.rules import LINEAR, Rule, Table


class TinyFamily(nn.Module):
    vocab_size: int
    width: int
    labels: int

    def zeros(self, rows=1):
        return {"tokens": jnp.zeros((rows, 3), jnp.int32)}

    @nn.compact
    def __call__(self, batch, *, train=False):
        words = nn.Embed(self.vocab_size, self.width, name="word_embedding")(batch["tokens"])
        return {"logits": nn.Dense(self.labels, name="head")(words.mean(axis=1))}


def build(**fields) -> TinyFamily:
    return TinyFamily(**fields)


def fields(config, names):
    return dict(vocab_size=config["words"], width=config["dim"], labels=config["classes"])


def table(config, names):
    return Table(
        (
            Rule("lookup", "word_embedding/embedding"),
            Rule("score.weight", "head/kernel", LINEAR),
            Rule("score.bias", "head/bias"),
        )
    )
'''


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    package = tmp_path / "site" / "their_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tiny_family.py").write_text(SOURCE)
    (package / "no_table.py").write_text("fields = None\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = {"lookup": (5, 4), "score.weight": (2, 4), "score.bias": (2,)}
    tensors = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "tiny", "words": 5, "dim": 4, "classes": 2}
    (folder / "config.json").write_text(json.dumps(config))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "their_package"]:
        del sys.modules[name]


def test_it_runs_and_goes_back_in_both_formats(checkpoint, tmp_path):
    pretrained = from_pretrained(checkpoint, family=FAMILY)
    assert isinstance(pretrained.model, Family)
    tensors = load_file(checkpoint / "model.safetensors")
    tokens = np.array([[0, 3, 3], [1, 2, 4]])
    outputs = pretrained.model.apply({"params": pretrained.params}, {"tokens": jnp.asarray(tokens)})
    mean = tensors["lookup"][tokens].mean(axis=1)
    expected = mean @ tensors["score.weight"].T + tensors["score.bias"]
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)
    pretrained.save(tmp_path / "own", to="mmflax")
    own = from_pretrained(tmp_path / "own")  # which knows the family's path
    own.save(tmp_path / "back")
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, value in written.items():
        assert np.array_equal(value, tensors[name]), name
    again = from_pretrained(tmp_path / "back", family=FAMILY)
    assert again.config["original"] == pretrained.config["original"]


def test_the_command_line_converts_it(checkpoint, tmp_path, capsys):
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "x"), "--to", "mmflax"]) == 1
    assert "model_type 'tiny'" in capsys.readouterr().err
    options = ["--to", "mmflax", "--family", FAMILY]
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "own"), *options]) == 0
    assert json.loads((tmp_path / "own" / "mmflax.json").read_text())["family"] == FAMILY


def test_a_run_starts_from_it(checkpoint):
    pretrained = from_pretrained(checkpoint, family=FAMILY)
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in paths.leaves(pretrained.params).items()
    }
    start = init_from.start({"from": str(checkpoint), "family": FAMILY, "skip": ()}, shapes)
    assert set(start.how.values()) == {"loaded"} and start.unused == ()
    for path, value in start.values.items():
        assert np.array_equal(value.read(), paths.leaves(pretrained.params)[path])


def test_what_is_no_family_is_named(checkpoint):
    with pytest.raises(MmflaxError, match=r"There is no module their_package\.nothing"):
        from_pretrained(checkpoint, family="their_package.nothing")
    with pytest.raises(MmflaxError, match=r"no_table has no table; a family has fields"):
        from_pretrained(checkpoint, family="their_package.no_table")


@pytest.mark.parametrize("name", cases.golden_names())
def test_every_family_keeps_the_contract(name):
    assert isinstance(inspect(cases.load_golden(name)[0]).model, Family)
