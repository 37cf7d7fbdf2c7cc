"""The engine that reads a table both ways: every mismatch is listed, and nothing is lost."""

import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained import rules
from mmflax.pretrained.rules import Rule, Table

OPS = {
    "copy": (rules.COPY, [(4, 3)]),
    "linear": (rules.LINEAR, [(4, 6)]),
    "linear into heads": (rules.LINEAR, [(6, 2, 3)]),
    "linear out of heads": (rules.LINEAR_OUT, [(2, 3, 5)]),
    "flat": (rules.FLAT, [(2, 3)]),
    "conv": (rules.CONV, [(2, 3, 4, 5)]),
    "first": (rules.FIRST, [(4, 3)]),
    "scalar": (rules.FIRST, [()]),
    "split linear": (rules.LINEAR, [(6, 2, 3), (6, 2, 3), (6, 2, 3)]),
    "split flat": (rules.FLAT, [(2, 3), (2, 3), (4, 1)]),
}


@pytest.mark.parametrize("name", OPS)
def test_ops_undo_each_other(name):
    op, shapes = OPS[name]
    rule = Rule("theirs", tuple(map(str, range(len(shapes)))), op)
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=rule.shape(shapes)).astype(np.float32)
    ours = rule.read(theirs, shapes)
    assert [x.shape for x in ours] == shapes
    assert np.array_equal(rule.write(ours), theirs)
    again = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    for one, other in zip(rule.read(rule.write(again), shapes), again, strict=True):
        assert np.array_equal(one, other)


def test_a_linear_computes_the_same():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(5, 6)), rng.normal(size=(8, 6))
    kernel = rules.LINEAR.read(weight, (6, 2, 4))
    expected = x @ weight.T
    assert np.allclose(np.einsum("bd,dhk->bhk", x, kernel).reshape(5, 8), expected)
    out = rules.LINEAR_OUT.read(weight, (2, 3, 8))
    assert np.allclose(np.einsum("bhk,hkd->bd", x.reshape(5, 2, 3), out), expected)


TABLE = Table(
    rules=(
        Rule("layer.{i}.weight", "layers_{i}/kernel", rules.LINEAR),
        Rule("layer.{i}.qkv", ("layers_{i}/q", "layers_{i}/k"), rules.COPY),
        Rule("norm.weight", "scale"),
        Rule("norm.gamma", "scale"),
        Rule("head.weight", "head/kernel", rules.LINEAR),
    ),
    tied=(("decoder.weight", "norm.weight"),),
    unused=(r"position_ids$",),
)
OURS = {f"layers_{i}/{name}": (3, 4) for i in (0, 10) for name in ("kernel", "q", "k")}
OURS |= {"scale": (4,)}
THEIRS = {f"layer.{i}.weight": (4, 3) for i in (0, 10)} | {
    f"layer.{i}.qkv": (6, 4) for i in (0, 10)
}
THEIRS |= {"norm.weight": (4,), "x.position_ids": (1, 7)}


def bind(theirs=THEIRS, ours=OURS, **more):
    return rules.bind(TABLE, theirs, ours, shapes=theirs, **more)


def test_every_name_finds_its_place():
    bound = {one.theirs: one.paths for one in bind()}
    assert bound["layer.10.qkv"] == ("layers_10/q", "layers_10/k")
    assert len(bound) == len(THEIRS) - 1
    old = {k: v for k, v in THEIRS.items() if k != "norm.weight"} | {"norm.gamma": (4,)}
    assert "norm.gamma" in {one.theirs for one in bind(old)}
    only_tied = {k: v for k, v in THEIRS.items() if k != "norm.weight"} | {"decoder.weight": (4,)}
    assert "decoder.weight" in {one.theirs for one in bind(only_tied)}


def test_all_that_does_not_fit_is_listed_at_once():
    theirs = {**THEIRS, "head.weight": (2, 4), "strange": (1,), "layer.0.weight": (4, 5)}
    del theirs["layer.10.weight"]
    with pytest.raises(MmflaxError) as raised:
        bind(theirs, source="file.bin")
    text = str(raised.value)
    assert text.startswith("file.bin does not fit the model.")
    assert "missing: layer.10.weight (for layers_10/kernel)" in text
    assert "misshapen: layer.0.weight is [4, 5], layers_0/kernel needs [4, 3]" in text
    assert "unknown (no rule names them): strange" in text
    assert "unused (the model has no place for them): head.weight" in text
    expected = dict(may_lack=("layers_10/kernel",), may_ignore=("^strange$", "^head"))
    theirs["layer.0.weight"] = (4, 3)
    assert len(bind(theirs, **expected)) == 4


def test_a_parameter_without_a_rule_and_a_broken_tie_are_errors():
    with pytest.raises(MmflaxError, match="no rule of its table leads to our parameter bias"):
        bind(ours={**OURS, "bias": (4,)})
    same = {"norm.weight": np.ones(4), "decoder.weight": np.ones(4)}
    rules.check_tied(TABLE, same)
    with pytest.raises(MmflaxError, match="decoder.weight differs from norm.weight.*tie_word"):
        rules.check_tied(TABLE, {**same, "decoder.weight": np.zeros(4)})


def test_writing_undoes_reading():
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in OURS.items()}
    tensors = rules.write(TABLE, params)
    assert {name: x.shape for name, x in tensors.items()} == {
        name: shape for name, shape in THEIRS.items() if "position_ids" not in name
    }
    for one in rules.bind(TABLE, tensors, OURS):
        for path, array in zip(
            one.paths, one.read(tensors[one.theirs], [OURS[p] for p in one.paths]), strict=True
        ):
            assert np.array_equal(array, params[path])
