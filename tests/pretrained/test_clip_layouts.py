"""A CLIP in OpenAI's layout and in transformers' is one model."""

import jax
import numpy as np
import pytest

from mmflax import paths
from mmflax.pretrained import rules
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.families.clip import names as clip
from tests.pretrained import cases

pytestmark = pytest.mark.parity


def test_openai_weights_run_in_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.parity import clip as family

    case = family.CASES["openai"]
    original, batch = case.original(), cases.batch_of(case)
    cases.save_original(case, original, tmp_path / "openai")
    pretrained = from_pretrained(tmp_path / "openai")
    theirs = transformers.CLIPModel(family.openai_configuration()).eval()
    names = list(theirs.state_dict())
    table = clip.table(pretrained.config["original"], names)
    flat = {path: np.asarray(leaf) for path, leaf in paths.leaves(pretrained.params).items()}
    tensors = rules.write(table, flat)
    theirs.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()})
    with torch.no_grad():
        expected = family.call_openai(original, batch)["logits_per_image"]
        found = family.call(theirs, batch)["logits_per_image"]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_openai_text_of_its_own(tmp_path):
    """open_clip's models with a text encoder of their own keep it under `text.`."""
    directory, batch, expected = cases.load_golden("clip/openai")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    outside = ("visual.", "logit_scale")
    moved = {k if k.startswith(outside) else f"text.{k}": v for k, v in tensors.items()}
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    save_file({**moved, "text.attn_mask": np.zeros((9, 9))}, tmp_path / "model.safetensors")
    pretrained = from_pretrained(tmp_path)
    found = jax.jit(pretrained.model.apply)({"params": pretrained.params}, batch)
    np.testing.assert_allclose(
        found["logits_per_image"], expected["logits_per_image"], rtol=2e-5, atol=2e-5
    )
    assert set(pretrained.tensors()) == set(moved)
