"""BLIP writes, token by token and without torch's help, what transformers writes."""

import numpy as np
import pytest

from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.tasks.generation_model import generate
from tests.parity import blip

LENGTH = 9


def written(head, tmp_path, rows=6, seed=1, **options):
    """(transformers' texts, ours) with these options of both, padded to LENGTH - 1 columns: ours
    ends in its last."""
    torch = pytest.importorskip("torch")
    module = blip.original(head, image=blip.ALIKE)()
    with torch.no_grad():  # so that some texts end early
        module.text_decoder.cls.predictions.bias[module.config.text_config.sep_token_id] += 2.0
    module.save_pretrained(tmp_path / "original")
    rng = np.random.default_rng(seed)
    batch = {
        "image": 3 * rng.normal(size=(rows, 8, 8, 3)).astype(np.float32),
        "tokens": rng.integers(1, 27, (rows, 5)).astype(np.int32),
        "text_mask": np.arange(5) < rng.integers(2, 6, (rows, 1)),
    }
    batch["tokens"][~batch["text_mask"]] = 0
    inputs = {"pixel_values": torch.tensor(batch["image"].transpose(0, 3, 1, 2))}
    if head == blip.QUESTION:
        inputs["input_ids"] = torch.tensor(batch["tokens"]).long()
        inputs["attention_mask"] = torch.tensor(batch["text_mask"]).long()
    search = dict(do_sample=False, num_beams=1, max_length=LENGTH - 1)
    found = module.generate(**inputs, **search, **options).numpy()
    theirs = np.zeros((rows, LENGTH - 1), np.int32)
    theirs[:, : found.shape[1]] = found
    pretrained = from_pretrained(tmp_path / "original")
    ours = generate(pretrained.model, pretrained.params, batch, max_length=LENGTH, **options)
    return theirs, np.asarray(ours["tokens"])[:, : LENGTH - 1]


@pytest.mark.parity
@pytest.mark.parametrize("head", [blip.WRITE, blip.QUESTION])
def test_greedy_search_writes_the_same(head, tmp_path):
    theirs, ours = written(head, tmp_path)
    np.testing.assert_array_equal(ours, theirs)
    lengths = (theirs != 0).sum(axis=1)
    assert len(np.unique(theirs, axis=0)) > 1 and lengths.min() < lengths.max() == LENGTH - 1


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        dict(repetition_penalty=1.8),
        dict(no_repeat_ngram_size=1),
        dict(no_repeat_ngram_size=2, repetition_penalty=1.2),
    ],
    ids=str,
)
def test_repetition_is_kept_out_as_there(options, tmp_path):
    theirs, ours = written(blip.WRITE, tmp_path, **options)
    np.testing.assert_array_equal(ours, theirs)
    plain, _ = written(blip.WRITE, tmp_path)
    assert (theirs != plain).any()
