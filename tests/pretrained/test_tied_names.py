"""A tensor that a model ties to another may be stored under either name, or under both.

safetensors keeps one of the two names. Untied, both are needed: transformers would draw the one
that is not there at random.
"""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained.checkpoint import from_pretrained
from tests.pretrained import cases

# Case -> pairs of names of one tensor: the head's, and the other.
PAIRS = {
    "bert/words": (
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    "roberta/words": (
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    "vilt/words": (
        ("mlm_score.decoder.weight", "vilt.embeddings.text_embeddings.word_embeddings.weight"),
    ),
    "bridgetower/words tied": (
        ("mlm_score.decoder.weight", "bridgetower.text_model.embeddings.word_embeddings.weight"),
    ),
    "lxmert/pretraining": (
        ("cls.predictions.decoder.weight", "lxmert.embeddings.word_embeddings.weight"),
    ),
    "visual_bert/pretraining": (
        ("cls.predictions.decoder.weight", "visual_bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
}
ALWAYS_TIED = ("vilt/words",)  # by transformers, whatever the config says


def saved(name, folder):
    """The case's tensors under all their names, and its config."""
    module = cases.all_cases()[name].original()
    with contextlib.redirect_stderr(io.StringIO()):
        module.save_pretrained(str(folder))
    tensors = {key: value.clone().contiguous() for key, value in module.state_dict().items()}
    return tensors, json.loads((folder / "config.json").read_text())


def loaded(folder, tensors, config):
    import safetensors.torch

    safetensors.torch.save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config))
    return jax.tree.map(np.asarray, from_pretrained(folder).params)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_tied_either_name_is_enough_and_untied_neither(name, tmp_path):
    pytest.importorskip("torch")
    tensors, config = saved(name, tmp_path)
    whole = loaded(tmp_path, tensors, config)
    for pair in PAIRS[name]:
        for missing in pair:
            one = {key: value for key, value in tensors.items() if key != missing}
            found = loaded(tmp_path, one, config)
            # With both names stored the table may be a parameter of its own, too.
            for path, value in jax.tree_util.tree_leaves_with_path(found):
                other = whole
                for key in path:
                    other = other[key.key]
                np.testing.assert_array_equal(value, other, err_msg=f"{missing}: {path}")
            if missing.endswith("weight") and name not in ALWAYS_TIED:
                with pytest.raises(MmflaxError, match=f"missing: {missing}"):
                    loaded(tmp_path, one, config | {"tie_word_embeddings": False})
