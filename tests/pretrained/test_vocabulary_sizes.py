"""A tokenizer with tokens that the embedding table lacks is refused when it is loaded."""

import json
import shutil

import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained.checkpoint import from_pretrained
from tests.pretrained import cases


def checkpoint(tmp_path, recorded, more):
    """A recorded BERT with a vocabulary of so many words more than its table has rows."""
    root = tmp_path / recorded
    shutil.copytree(cases.GOLDEN / recorded, root)
    rows = json.loads((root / "config.json").read_text())["vocab_size"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{i}" for i in range(rows + more - len(words))]
    (root / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return root, words


@pytest.mark.parametrize("recorded", ["bert-words", "bert-plain"])
@pytest.mark.parametrize("more", [-3, 0])
def test_a_table_may_have_more_rows(tmp_path, recorded, more):
    root, words = checkpoint(tmp_path, recorded, more)
    assert from_pretrained(root).processor.tokenizer.vocab_size == len(words)


@pytest.mark.parametrize("recorded", ["bert-words", "bert-plain"])
def test_tokens_without_a_row_are_named(tmp_path, recorded):
    root, words = checkpoint(tmp_path, recorded, 2)
    with pytest.raises(MmflaxError, match=rf"lacks: '{words[-2]}' \(id {len(words) - 2}\)"):
        from_pretrained(root)
