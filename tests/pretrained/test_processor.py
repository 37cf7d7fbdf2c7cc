"""The processor of a public checkpoint: as recorded, at fixed shapes, there and back."""

import json
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from mmflax.data.dataset import in_memory
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.pretrained.processor import PublishedProcessor
from tests.data import published_cases as cases
from tests.data import published_texts as odd
from tests.data.published_pictures import CONFIGS, random_image

NAMES = json.loads((odd.GOLDEN / "index.json").read_text())


def laid_out(name, root):
    """A recorded directory, with the SentencePiece file that several share."""
    shutil.copytree(odd.GOLDEN / name, root)
    if name in ("siglip", "albert", "t5"):
        model = "spiece_albert" if name == "albert" else "spiece"
        shutil.copy(odd.GOLDEN / f"{model}.model", root / "spiece.model")
    return root


def pictures(root):
    return [Image.open(path) for path in sorted(root.glob("image*.tiff"))]


def test_every_case_is_recorded():
    assert sorted(cases.CASES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_those_of_transformers(name, tmp_path):
    root = laid_out(name, tmp_path / name)
    processor = PublishedProcessor.load(root, max_length=cases.LENGTH)
    expected = np.load(root / "arrays.npz")
    if cases.CASES[name].words:
        given = json.loads((root / "texts.json").read_text())
        for start, pairs in (("", None), ("pair:", given["pairs"])):
            batch = processor.texts(given["texts"], pairs)
            np.testing.assert_array_equal(batch["tokens"], expected[f"{start}input_ids"])
            mask = expected[f"{start}attention_mask"].astype(bool)
            np.testing.assert_array_equal(batch["text_mask"], mask | (name == "siglip"))
            if processor.token_types:
                np.testing.assert_array_equal(
                    batch["token_types"], expected[f"{start}token_type_ids"]
                )
            assert batch["tokens"].dtype == np.int32 and batch["text_mask"].dtype == bool
        uses = {"bert", "bert-cased", "albert", "align", "vilt"}
        assert ("token_types" in batch) == (name in uses)
    if cases.CASES[name].images:
        batch = processor.images(pictures(root), canvas="batch")
        np.testing.assert_allclose(batch["image"], expected["pixel_values"], atol=1e-6)
        assert batch["image"].dtype == np.float32
        assert ("pixel_mask" in batch) == ("pixel_mask" in expected)
        if "pixel_mask" in batch:
            np.testing.assert_array_equal(batch["pixel_mask"], expected["pixel_mask"])


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_is_equal(name, tmp_path):
    processor = PublishedProcessor.load(laid_out(name, tmp_path / "first"), max_length=9)
    processor.save(tmp_path / "second")
    again = PublishedProcessor.load(tmp_path / "second")
    assert again == processor
    processor.save(tmp_path / "second")  # over itself
    assert PublishedProcessor.load(tmp_path / "second") == processor


def test_a_batch_has_fixed_shapes_and_a_text_comes_back(tmp_path):
    processor = PublishedProcessor.load(laid_out("vilt", tmp_path / "vilt"))
    assert processor.max_length == 40
    small, large = np.zeros((40, 80, 3), np.uint8), np.zeros((90, 90, 3), np.uint8)
    for images in ([small], [large]):
        batch = processor.batch(images, ["a photo of a cat"], ["a dog"])
        assert {key: value.shape for key, value in batch.items()} == {
            "image": (1, 96, 96, 3), "pixel_mask": (1, 96, 96), "tokens": (1, 40),
            "text_mask": (1, 40), "token_types": (1, 40),
        }  # fmt: skip
    assert processor.decode(batch["tokens"][0]) == "a photo of a cat a dog"
    assert set(processor.batch(texts=["a"])) == {"tokens", "text_mask", "token_types"}
    assert set(processor.batch(images=[small])) == {"image", "pixel_mask"}


def test_the_longest_text_is_what_the_files_allow(tmp_path):
    root = laid_out("align", tmp_path / "align")
    config = json.loads((root / "tokenizer_config.json").read_text())

    def longest(model, **tokenizer):
        odd.write_json(root / "tokenizer_config.json", {**config, **tokenizer})
        odd.write_json(root / "config.json", model)
        return PublishedProcessor.load(root).max_length

    assert longest({"model_type": "align"}, model_max_length=512) == 64
    assert longest({"model_type": "bert"}, model_max_length=512) == 512
    positions = {"model_type": "bert", "max_position_embeddings": 30}
    assert longest(positions, model_max_length=int(1e30)) == 30
    assert longest({"model_type": "clip", "text_config": positions}, model_max_length=77) == 30
    with pytest.raises(MmflaxError, match="does not say how long a text may be"):
        longest({}, model_max_length=int(1e30))
    roberta = laid_out("roberta", tmp_path / "roberta")
    odd.write_json(
        roberta / "config.json", {"model_type": "roberta", "max_position_embeddings": 34}
    )
    assert PublishedProcessor.load(roberta).max_length == 32


@pytest.mark.parametrize("name", ["clip", "siglip", "blip", "align", "bridgetower"])
def test_the_training_processor_does_the_same(name, tmp_path):
    root = laid_out(name, tmp_path / name)
    published = PublishedProcessor.load(root)
    processor = published.as_processor(["yes", "no"], max_length=12, soft_answers=True)
    processor.save(tmp_path / "run")
    loaded = Processor.load(tmp_path / "run")
    assert loaded == processor and loaded.answers == ("yes", "no") and loaded.soft_answers
    rng = np.random.default_rng(0)
    for height, width in ((50, 77), (64, 33), (91, 90)):
        image = rng.integers(0, 255, (height, width, 3), np.uint8)
        raw = {"image": image, "question": "a photo of a dog's ball", "answer": "no"}
        batch = loaded.batch([raw])
        expected = published.images([image])["image"]
        np.testing.assert_allclose(batch["image"], expected, atol=2e-6)
        texts = PublishedProcessor.load(root, max_length=12).texts([raw["question"]])
        np.testing.assert_array_equal(batch["tokens"], texts["tokens"])
        np.testing.assert_array_equal(batch["text_mask"], texts["text_mask"])


def test_a_run_that_takes_it_over_keeps_the_length_of_a_model_without_masks(tmp_path):
    published = PublishedProcessor.load(laid_out("siglip", tmp_path / "siglip"))
    row = {"image": np.zeros((9, 9, 3), np.uint8), "question": "a cat?", "answer": "no"}
    data = in_memory({"train": [row]})
    assert Processor.learn(data, published=[published]).max_length == 64
    clip = PublishedProcessor.load(laid_out("clip", tmp_path / "clip"))
    learned = Processor.learn(data, published=[clip])
    assert learned.max_length == 8 and learned.image_size == 25 and learned.floor_crop


@pytest.mark.parametrize("name", ["deit", "resnet", "convnext", "swin", "efficientnet", "flava"])
def test_every_square_preprocessing_can_be_trained_with(name, tmp_path):
    root = laid_out("bert", tmp_path / "bert")
    odd.write_json(root / "preprocessor_config.json", CONFIGS[name])
    published = PublishedProcessor.load(root)
    processor = published.as_processor(["yes"])
    image = np.asarray(random_image(random.Random(3), sides=(40, 90)))
    expected = published.images([image])["image"][0]
    np.testing.assert_allclose(processor.image(image), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIGS["vilt"], "keep their aspect ratio and are padded"),
        (CONFIGS["raw"], "do not resize"),
        (CONFIGS["levels"], "are not square"),
        (CONFIGS["padded"], "are not square"),
        ({**CONFIGS["resnet"], "do_center_crop": True, "crop_size": 20}, "are cropped twice"),
        ({**CONFIGS["bridgetower"], "size_divisor": 16}, "multiples of 16"),
        (None, "no image preprocessing"),
    ],
)
def test_what_a_training_processor_cannot_do_is_an_error(config, message, tmp_path):
    root = laid_out("bert", tmp_path / "bert")
    if config is not None:
        odd.write_json(root / "preprocessor_config.json", config)
    with pytest.raises(MmflaxError, match=message):
        PublishedProcessor.load(root).as_processor(["yes"])


def test_the_newest_form_of_both_configs_in_one_file(tmp_path):
    root = laid_out("vit", tmp_path / "vit")
    plain = PublishedProcessor.load(root)
    config = json.loads((root / "preprocessor_config.json").read_text())
    odd.write_json(root / "processor_config.json", {"image_processor": config})
    (root / "preprocessor_config.json").unlink()
    assert PublishedProcessor.load(root) == plain
    odd.write_json(root / "processor_config.json", {"image_processor": {"size": 24}})
    assert PublishedProcessor.load(root).pixels.resize == plain.pixels.resize  # by model_type


def test_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not PublishedProcessor.exists(tmp_path / "empty")
    with pytest.raises(MmflaxError, match="has no preprocessing; expected"):
        PublishedProcessor.load(tmp_path / "empty")
    bert = PublishedProcessor.load(laid_out("bert", tmp_path / "bert"))
    vit = PublishedProcessor.load(laid_out("vit", tmp_path / "vit"))
    assert PublishedProcessor.exists(tmp_path / "bert") and PublishedProcessor.exists(
        tmp_path / "vit"
    )
    for act, message in (
        (lambda: bert.images([np.zeros((2, 2), np.uint8)]), "no image preprocessing"),
        (lambda: vit.images("cat.jpg"), "images is str; give a list"),
        (lambda: vit.texts(["a"]), "no tokenizer"),
        (lambda: vit.decode([1]), "no tokenizer"),
        (lambda: bert.texts("a cat"), "give a list of str"),
        (lambda: bert.texts([3]), "give a list of str"),
        (lambda: bert.texts(["a"], ["b", "c"]), "1 texts and 2 pairs"),
        (lambda: bert.batch(), "nothing to make a batch of"),
        (
            lambda: PublishedProcessor.load(tmp_path / "bert", max_length=2),
            "more than the 2 special",
        ),
    ):
        with pytest.raises(MmflaxError, match=message):
            act()


def test_a_learned_tokenizer_writes_one_file():
    from mmflax.data.text.tokenizer import Tokenizer

    assert list(Tokenizer.learn(["a cat"]).files()) == ["tokenizer.json"]
