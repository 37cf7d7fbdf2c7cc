"""Every family of public checkpoints gives the original's numbers; `cases.py` says how."""

import dataclasses
import json
import re
from copy import deepcopy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.tensors import open_tensors
from tests.pretrained import cases

GOLDEN = cases.golden_names()


@pytest.mark.parametrize("name", GOLDEN)
def test_recorded_outputs_come_out_again(name):
    case = cases.all_cases()[name]
    directory, batch, expected = cases.load_golden(name)
    pretrained = from_pretrained(directory, **case.options)
    found = cases.differences(case, expected, cases.ours(case, pretrained, batch), batch)
    assert found and max(found.values()) < cases.TOLERANCE, found


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_written_back_is_the_file(name, tmp_path):
    """By way of our own format, too."""
    directory, _, _ = cases.load_golden(name)
    options = cases.all_cases()[name].options
    pretrained = from_pretrained(directory, **options)
    pretrained.save(tmp_path / "own", to="mmflax")
    own = from_pretrained(tmp_path / "own", **options)
    own.save(tmp_path / "back")
    before, after = open_tensors(directory), open_tensors(tmp_path / "back")
    for key in after:
        assert key in before and np.array_equal(before[key], after[key]), key
    again = from_pretrained(tmp_path / "back", **options)
    for path, leaf in paths.leaves(pretrained.params).items():
        assert np.array_equal(leaf, paths.leaves(again.params)[path]), path
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((directory / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", {name.split("/")[0]: name for name in GOLDEN}.values())
def test_half_precision_stays_near(name):
    case = cases.all_cases()[name]
    directory, batch, expected = cases.load_golden(name)
    pretrained = from_pretrained(directory, dtype="bfloat16", **case.options)
    found = cases.differences(case, expected, cases.ours(case, pretrained, batch), batch)
    assert max(found.values()) < 0.15, found  # 8 bits of mantissa through a few layers


CASES = cases.all_cases() if GOLDEN else {}


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_branch_equals_the_original(name, tmp_path):
    pytest.importorskip("torch")
    check(CASES[name], tmp_path)


BASE = cases.all_cases("BASE") if GOLDEN else {}


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BASE))
def test_full_size_equals_the_original(name, tmp_path):
    pytest.importorskip("torch")
    check(BASE[name], tmp_path)


def check(case, tmp_path):
    module, batch = case.original(), cases.batch_of(case)
    cases.save_original(case, module, tmp_path / "original")
    pretrained = from_pretrained(tmp_path / "original", **case.options)
    expected = cases.theirs(case, module, batch)
    found = cases.differences(case, expected, cases.ours(case, pretrained, batch), batch)
    assert found and max(found.values()) < cases.TOLERANCE, found
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    state |= open_tensors(tmp_path / "original")
    for key, value in pretrained.tensors().items():
        assert np.array_equal(value, state[key]), key
    if case.gradients:
        spelt = saved_names(module, open_tensors(tmp_path / "original"))
        worst = gradient_differences(case, module, pretrained, batch, spelt)
        wrong = {name: both for name, both in worst.items() if both[0] > max(1e-4, 4 * both[1])}
        assert worst and not wrong, wrong


def saved_names(module, saved):
    """A parameter's name in the module -> in the file: transformers renames some as it saves."""
    state = {name: weight.detach().numpy() for name, weight in module.named_parameters()}
    renamed = {saved[n].astype(np.float32).tobytes(): n for n in saved if n not in state}
    return {
        name: name if name in saved else renamed.get(weight.tobytes(), name)
        for name, weight in state.items()
    }


def gradient_differences(case, module, pretrained, batch, spelt):
    """Of a random sum of all outputs, by every parameter: ours and the original's own in float32,
    both against the original's in float64 and over that gradient's own scale.

    A key's bias has no true gradient, only what rounding leaves: a bias is as large as its kernel.
    """
    rng = np.random.default_rng(1)
    weights = {}

    def weigh(name, value):
        if name not in weights:
            weight = rng.normal(size=value.shape).astype(np.float32) / value.size**0.5
            mask = case.masks.get(name)
            if mask is not None:
                weight[~np.asarray(batch[mask])] = 0.0
            weights[name] = weight
        return weights[name]

    arrays = {key: jnp.asarray(value) for key, value in batch.items()}

    def loss(params):
        outputs = pretrained.model.apply({"params": params}, arrays)
        return sum(
            (value * weigh(case.renamed.get(name, name), value)).sum()
            for name, value in sorted(outputs.items())
            if name not in case.absent and jnp.issubdtype(value.dtype, jnp.floating)
        )

    ours = paths.leaves(jax.grad(loss)(pretrained.params))

    def theirs(dtype):
        copy = deepcopy(module).to(dtype)
        kind = np.dtype(str(dtype).removeprefix("torch."))
        exact = {key: x.astype(kind) if x.dtype.kind == "f" else x for key, x in batch.items()}
        found = case.call(copy, exact)
        total = sum(
            (found[name] * found[name].new_tensor(weight)).sum() for name, weight in weights.items()
        )
        total.backward()
        return {
            spelt[name]: np.zeros(weight.shape) if weight.grad is None else weight.grad.numpy()
            for name, weight in copy.named_parameters()
        }

    import torch

    grads, rounded = theirs(torch.float64), theirs(torch.float32)
    # Whatever type the file's weights have, gradients are compared in float32.
    names = dict.fromkeys(pretrained.config["names"], "float32")
    exact = dataclasses.replace(pretrained, config={**pretrained.config, "names": names})
    mine = exact.tensors(paths.nested(ours))
    sizes = {name: float(np.abs(value).max()) for name, value in grads.items()}
    least = 1e-3 * max(sizes.values())

    def off(found, name):
        scale = max(sizes[name], sizes.get(re.sub("bias$", "weight", name), 0.0), least)
        return float(np.abs(found[name] - grads[name]).max()) / scale

    return {name: (off(mine, name), off(rounded, name)) for name in grads if name in mine}
