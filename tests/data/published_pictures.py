"""Odd images, and image preprocessing configs of every published kind, at small sizes."""

import random

import numpy as np
from PIL import Image

MODES = ("RGB", "L", "P", "RGBA", "CMYK", "LA", "1", "P+", "RGB+")
_HALF = [0.5, 0.5, 0.5]
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def random_image(rng: random.Random, mode: str = "RGB", sides: tuple[int, int] = (9, 70)):
    """Noise over a gradient; `P+` and `RGB+` have a transparent color."""
    width, height = rng.randint(*sides), rng.randint(*sides)
    noise = np.random.default_rng(rng.randrange(1 << 30))
    ramp = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 4))
    pixels = (ramp + noise.integers(0, 56, (height, width, 4))).astype(np.uint8)
    image = Image.fromarray(pixels[..., :3])
    if mode == "RGBA":
        return Image.fromarray(pixels)
    if mode == "LA":
        return Image.merge("LA", [image.convert("L"), Image.fromarray(pixels[..., 3])])
    if mode == "P+":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = 7
        return image
    if mode == "RGB+":
        image.info["transparency"] = image.getpixel((0, 0))
        return image
    return image.convert(mode)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


# name -> preprocessor_config.json; the older ones are in the form of their time.
CONFIGS = {
    "vit": {
        "image_processor_type": "ViTImageProcessor", "size": _square(24), "resample": 2,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": _HALF,
        "image_std": _HALF, "rescale_factor": 1 / 255,
    },
    "swin": {
        "feature_extractor_type": "ViTFeatureExtractor", "size": 28, "resample": 3,
        "do_normalize": True, "do_resize": True, **_IMAGENET,
    },
    "deit": {
        "feature_extractor_type": "DeiTFeatureExtractor", "size": 33, "crop_size": 24,
        "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, **_IMAGENET,
    },
    "resnet": {
        "feature_extractor_type": "ConvNextFeatureExtractor", "size": 27, "crop_pct": 0.875,
        "do_normalize": True, "do_resize": True, "resample": 3, **_IMAGENET,
    },
    "convnext": {
        "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384},
        "crop_pct": 0.95, **_IMAGENET,
    },
    "clip": {
        "feature_extractor_type": "CLIPFeatureExtractor", "size": 25, "crop_size": 25,
        "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
    },
    "clip-small": {
        "image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 20},
        "crop_size": _square(27), "do_convert_rgb": True, "processor_class": "CLIPProcessor",
    },
    "siglip": {
        "image_processor_type": "SiglipImageProcessor", "size": _square(32), "resample": 3,
        "rescale_factor": 0.00392156862745098, "image_mean": _HALF, "image_std": _HALF,
    },
    "align": {
        "image_processor_type": "EfficientNetImageProcessor", "size": _square(33),
        "crop_size": _square(29), "do_center_crop": True, "do_normalize": False,
        "include_top": False, "rescale_offset": True, "rescale_factor": 0.00784313725490196,
        "resample": 2,
    },
    "efficientnet": {
        "image_processor_type": "EfficientNetImageProcessor", "size": _square(32), "resample": 0,
        "do_center_crop": False, "include_top": True, "rescale_offset": False,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.4785, 0.4732, 0.4744],
    },
    "bridgetower": {
        "image_processor_type": "BridgeTowerImageProcessor", "size": {"shortest_edge": 64},
        "crop_size": {"shortest_edge": 64}, "size_divisor": 32, "do_center_crop": True,
        "do_pad": True, "resample": 3,
    },
    "vilt": {
        "feature_extractor_type": "ViltFeatureExtractor", "size": 64, "size_divisor": 32,
        "do_normalize": True, "do_resize": True, "image_mean": _HALF, "image_std": _HALF,
        "resample": 3,
    },
    "vilt-16": {
        "image_processor_type": "ViltImageProcessor", "size": {"shortest_edge": 48}, "do_pad": True,
        "size_divisor": 16, "resample": 1,
    },
    "blip": {
        "image_processor_type": "BlipImageProcessor", "size": _square(24), "size_divisor": 32,
        "do_pad": True, "do_resize": True, "resample": 3,
    },
    "flava": {
        "image_processor_type": "FlavaImageProcessor", "size": _square(24), "resample": 3,
        "crop_size": _square(24), "codebook_size": _square(12), "return_image_mask": False,
        "mask_group_max_patches": None, "codebook_do_resize": True,
    },
    "raw": {"image_processor_type": "ViTImageProcessor", "do_resize": False, "do_rescale": False},
    "levels": {
        "image_processor_type": "ViTImageProcessor", "size": [20, 30], "do_rescale": False,
        "do_normalize": False, "resample": 4,
    },
    "scalars": {
        "image_processor_type": "SiglipImageProcessor", "size": 20, "image_mean": 0.4,
        "image_std": 0.2, "do_center_crop": True, "crop_size": {"height": 15, "width": 19},
    },
    "padded": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20},
        "do_center_crop": False, "do_pad": True, "pad_size": {"height": 80, "width": 160},
    },
}  # fmt: skip
CONVERTS = ("clip", "clip-small", "siglip", "blip", "scalars", "padded")  # do_convert_rgb
