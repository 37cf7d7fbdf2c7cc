"""Images of a published preprocessing: pixels as recorded, and as transformers makes them."""

import random

import numpy as np
import pytest
from PIL import Image

from mmflax.data.image.published import PublishedImages
from mmflax.errors import MmflaxError
from tests.data.published_pictures import CONFIGS, CONVERTS, MODES, random_image

# Narrower images would have no pixel left on the short side.
SIDES = dict.fromkeys(("vilt", "vilt-16", "bridgetower"), (30, 70))


def original(config):
    """transformers' processor for PIL."""
    transformers = pytest.importorskip("transformers")
    name = config.get("image_processor_type") or config["feature_extractor_type"]
    name = name.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    return getattr(transformers, f"{name}Pil")(**config)


def theirs(processor, images):
    """Their pixels as [b h w 3], and their mask."""
    output = processor(images, return_tensors="np")
    return np.moveaxis(output["pixel_values"], 1, -1), output.get("pixel_mask")


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_those_of_transformers(name):
    processor, ours = original(CONFIGS[name]), PublishedImages.from_config(CONFIGS[name])
    rng = random.Random(name)
    modes = MODES if name in CONVERTS else ("RGB",)
    for turn in range(4 if name == "convnext" else 24):
        image = random_image(rng, modes[turn % len(modes)], SIDES.get(name, (9, 70)))
        pixels, _ = theirs(processor, [image])
        output = ours([image], canvas="batch")["image"]
        assert output.dtype == np.float32
        np.testing.assert_array_equal(output, pixels.astype(np.float32))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vilt", "vilt-16", "bridgetower", "padded"])
def test_batches_are_padded_as_by_transformers(name):
    processor, ours = original(CONFIGS[name]), PublishedImages.from_config(CONFIGS[name])
    rng = random.Random(1)
    for _ in range(6):
        images = [random_image(rng, sides=SIDES.get(name, (9, 70))) for _ in range(3)]
        pixels, mask = theirs(processor, images)
        output = ours(images, canvas="batch")
        np.testing.assert_array_equal(output["image"], pixels)
        assert ("pixel_mask" in output) == (mask is not None)
        if mask is not None:
            np.testing.assert_array_equal(output["pixel_mask"], mask.astype(bool))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vit", "clip"])
def test_files_and_turned_photographs_are_read_as_by_transformers(name, tmp_path):
    processor, ours = original(CONFIGS[name]), PublishedImages.from_config(CONFIGS[name])
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "L", "P+", "RGBA", "CMYK"):
        image = random_image(random.Random(mode), mode, (20, 40))
        path = str(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
        image.save(path, exif=exif)
        pixels, _ = theirs(processor, [path])
        np.testing.assert_array_equal(ours([path])["image"], pixels)
        with open(path, "rb") as file:
            np.testing.assert_array_equal(ours([file.read()])["image"], pixels)
        if mode == "RGB":  # an opened image is not turned
            turned, _ = theirs(processor, [Image.open(path)])
            np.testing.assert_array_equal(ours([Image.open(path)])["image"], turned)
            assert np.abs(turned - pixels).max() > 0.1


def test_the_canvas_is_the_same_for_every_image_unless_it_is_told():
    vilt = PublishedImages.from_config(CONFIGS["vilt"])
    assert vilt.largest() == (96, 96)
    wide, tall = Image.new("RGB", (90, 40), "white"), Image.new("RGB", (40, 90), "white")
    output = vilt([wide])
    assert output["image"].shape == (1, 96, 96, 3) and output["pixel_mask"].shape == (1, 96, 96)
    used = output["pixel_mask"][0]
    assert used[:32, :96].all() and used.sum() == 32 * 96 or used[:64, :96].all()
    assert (output["image"][0][~used] == 0).all() and (output["image"][0][used] == 1).all()
    both = vilt([wide, tall], canvas="batch")
    alone = vilt([wide], canvas="batch")["image"][0]
    height, width = alone.shape[:2]
    np.testing.assert_array_equal(both["image"][0, :height, :width], alone)
    assert vilt([wide], canvas=(128, 160))["image"].shape == (1, 128, 160, 3)
    with pytest.raises(MmflaxError, match="more than the canvas of 32 x 32"):
        vilt([wide], canvas=(32, 32))
    with pytest.raises(MmflaxError, match="canvas is 'all'"):
        vilt([wide], canvas="all")


def test_a_small_image_is_cropped_with_black_around_it():
    config = {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 5}
    config |= {"do_normalize": False, "do_rescale": False}
    pixels = PublishedImages.from_config(config)([np.full((2, 8, 3), 9, np.uint8)])["image"]
    assert pixels.shape == (1, 5, 5, 3)
    assert pixels[0, :, 0, 0].tolist() == [0, 0, 9, 9, 0]


def test_transparency_lies_on_white_in_opened_images_and_is_dropped_in_files(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    clip = PublishedImages.from_config({**CONFIGS["clip"], "do_normalize": False})
    assert (clip([clear])["image"] == 1).all()
    assert clip([tmp_path / "clear.png"])["image"][0, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "image_processor_type None; known: BlipImageProcessor"),
        ({"image_processor_type": "Sam2ImageProcessor"}, "'Sam2ImageProcessor'; known"),
        ({"do_flip": True, "bias": 1}, "'do_flip', 'bias', which may change the pixels"),
        ({"resample": 5}, "resample 5; expected one of 0 .nearest."),
        ({"size": {"longest_edge": 4}}, "expected height and width, or shortest_edge"),
        ({"do_center_crop": True}, "do_center_crop and no crop_size"),
        ({"pad_size": {"shortest_edge": 4}}, "expected height and width"),
        ({"image_mean": [0.5]}, "image_mean .0.5.; expected three"),
        ({"image_std": 0}, "image_std 0; expected three numbers above 0"),
    ],
)
def test_a_config_that_is_not_understood_is_an_error(config, message):
    config = {"image_processor_type": "ViTImageProcessor", **config} if config else config
    with pytest.raises(MmflaxError, match=message):
        PublishedImages.from_config(config)


def test_images_that_cannot_be_used_are_errors():
    vilt, vit = (PublishedImages.from_config(CONFIGS[name]) for name in ("vilt", "vit"))
    raw = PublishedImages.from_config(CONFIGS["raw"])
    with pytest.raises(MmflaxError, match="9 x 900 pixels is too narrow"):
        vilt([Image.new("RGB", (9, 900))])
    with pytest.raises(MmflaxError, match="give at least one"):
        vit([])
    with pytest.raises(MmflaxError, match="neither crops nor pads"):
        raw([Image.new("RGB", (9, 9)), Image.new("RGB", (9, 8))])
    with pytest.raises(MmflaxError, match="expected shortest_edge|ViltImageProcessor expects"):
        PublishedImages.from_config({**CONFIGS["vilt"], "size": {"height": 9, "width": 9}})
