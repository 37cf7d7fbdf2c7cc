"""Caption measures against pycocoevalcap 1.2 and Stanford's tokenizer 3.4.1.

The golden captions are tokens already, so that no tokenizer comes between the two programs.
"""

import pytest

from mmflax.errors import MmflaxError
from mmflax.metrics import captions
from mmflax.metrics.tokens import tokenize
from tests.metrics import golden

OFFICIAL = golden.load("captions")
CANDIDATES, REFERENCES = OFFICIAL["candidates"], OFFICIAL["references"]


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "cider_d"])
def test_equals_the_official_code(name):
    found = getattr(captions, name)(CANDIDATES, REFERENCES, tokenized=True)
    assert found == pytest.approx(OFFICIAL[name], abs=1e-9)


def test_tokens_are_stanfords_on_captions():
    wrong = {s: words for s, words in golden.load("tokens").items() if tokenize(s) != words}
    assert wrong == {}


def test_raw_text_is_tokenized_first():
    raw = (["A man's dog, running!"], [["a man's dog is running."]])
    split = (["a man 's dog running"], [["a man 's dog is running"]])
    for measure in (captions.bleu, captions.rouge_l, captions.cider_d):
        assert measure(*raw) == pytest.approx(measure(*split, tokenized=True))
    found = captions.caption_scores(*raw)
    assert list(found) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert found["bleu_2"] == captions.bleu(*raw)[1] and found["rouge_l"] == captions.rouge_l(*raw)


def test_a_perfect_caption_has_the_highest_score():
    texts = ["a red bus on the street", "two dogs play in green grass"]
    refs = [[text] for text in texts]
    assert captions.bleu(texts, refs) == pytest.approx([1.0] * 4)
    assert captions.rouge_l(texts, refs) == pytest.approx(1.0)
    assert captions.cider_d(texts, refs) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("candidates", "references", "said"),
    [
        (["a"], ["a cat"], "references of text 0 are 'a cat'"),
        (["a"], [[]], "expected a list of at least one text"),
        (["a", "b"], [["a"]], "2 generated texts for 1 lists"),
        ([], [], "at least one"),
    ],
)
def test_wrong_input_is_one_sentence(candidates, references, said):
    with pytest.raises(MmflaxError, match=said):
        captions.bleu(candidates, references)
