"""Zero-shot answers are the pair's own scores, whatever the batch size and the templates."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.inference.zero_shot import ZeroShot, prompts
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.processor import PublishedProcessor
from tests.pretrained import cases

LABELS = ["cat", "dog", "goat"]


# What "a photo of a cat." and "a photo of a dog." need: letters, words as they grow, and the end
# token at the place the tiny model knows.
MERGES = ["p h", "ph o", "pho t", "phot o</w>", "o f</w>", "c a", "ca t</w>", "d o", "do g</w>"]
SYMBOLS = "p h o t c a d g a</w> o</w> f</w> t</w> g</w> .</w>".split()


def processor(directory):
    """A real CLIP processor with 29 tokens and images of 16 pixels."""
    words = [*SYMBOLS, *("".join(merge.split()) for merge in MERGES)]
    words += [f"unused{i}" for i in range(27 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    size = {"height": 16, "width": 16}
    written = {
        "vocab.json": {word: i for i, word in enumerate(words)},
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 9,
            "bos_token": "<|startoftext|>",
            **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
            "size": {"shortest_edge": 16},
            "crop_size": size,
            "resample": 3,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        "config.json": {"model_type": "clip", "text_config": {"max_position_embeddings": 9}},
    }
    for name, content in written.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return PublishedProcessor.load(directory)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """name of a recorded case -> the model, with that processor."""
    prepared = processor(tmp_path_factory.mktemp("processor"))

    def open_(name):
        found = from_pretrained(cases.load_golden(name)[0])
        return dataclasses.replace(found, processor=prepared)

    return open_


@pytest.fixture(scope="module")
def clip(opened):
    return opened("clip/pair")


def pictures(count):
    shape = (count, 20, 16, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))


def scores(pretrained, images, texts):
    batch = pretrained.processor.batch(images, texts)
    return jax.jit(pretrained.model.apply)({"params": pretrained.params}, batch)["logits_per_image"]


def test_probabilities_are_the_softmax_of_the_pairs_scores(clip):
    images = pictures(3)
    found = ZeroShot(clip, LABELS, batch_size=2).probabilities(images)
    expected = jax.nn.softmax(scores(clip, images, [f"a photo of a {x}." for x in LABELS]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-6)


def test_siglip_judges_each_label_by_itself(opened):
    siglip, images = opened("siglip/pair"), pictures(2)
    found = ZeroShot(siglip, LABELS).probabilities(images)
    expected = jax.nn.sigmoid(scores(siglip, images, [f"a photo of a {x}." for x in LABELS]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_templates_are_averaged_at_unit_length(clip):
    templates = ["a {} of a photo", "{}"]
    zero_shot = ZeroShot(clip, LABELS, templates=templates, batch_size=4)
    each = []
    for template in templates:
        each.append(ZeroShot(clip, LABELS, templates=[template], batch_size=4).text_embeds)
    mean = np.mean(each, axis=0)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(zero_shot.text_embeds, mean, rtol=1e-5, atol=1e-6)


def test_predictions_are_sorted(clip):
    zero_shot = ZeroShot(clip, LABELS)
    row = zero_shot.probabilities(pictures(1))[0]
    one = zero_shot.predict(pictures(1)[0], top=2)
    assert one.answer == LABELS[row.argmax()] and one.probability == pytest.approx(row.max())
    assert [label for label, _ in one.top] == [LABELS[i] for i in np.argsort(-row)[:2]]
    assert [each.answer for each in zero_shot.predict(pictures(2))][0] == one.answer


def test_prompts():
    assert prompts("cat") == ["a photo of a cat."]
    assert prompts("an owl") == ["a photo of an owl."]
    assert prompts("{odd}", ["it is {}", "{}!"]) == ["it is {odd}", "{odd}!"]
    with pytest.raises(MmflaxError, match="each needs {} once"):
        prompts("cat", ["a photo"])


def test_what_cannot_be_asked_is_said(clip):
    with pytest.raises(MmflaxError, match="'cat' twice"):
        ZeroShot(clip, ["cat", "dog", "cat"])
    with pytest.raises(MmflaxError, match="at least one"):
        ZeroShot(clip, [])
    with pytest.raises(MmflaxError, match="list of images is empty"):
        ZeroShot(clip, LABELS).probabilities([])
    with pytest.raises(MmflaxError, match="tokenizer files and preprocessor_config"):
        ZeroShot(from_pretrained(cases.load_golden("clip/pair")[0]), LABELS)
    bert = from_pretrained(cases.load_golden("bert/plain")[0])
    with pytest.raises(MmflaxError, match="BertFamily does not compare"):
        ZeroShot(bert, LABELS)
