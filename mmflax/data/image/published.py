"""Image preprocessing from a published `preprocessor_config.json`.

The numbers are those of transformers' processors for PIL (`...ImageProcessorPil`), to the last bit.
Its torchvision ones resize otherwise (a pixel may differ by a level, 1/255 before normalizing),
put the odd pixel of a crop that is larger than the image on the other side, and join rescaling
with normalizing in one step (1e-6). Unlike either, 16-bit gray is scaled to 8 bits and not clipped,
what is not RGB is converted for every family, and a JPEG file of more than 89 megapixels is decoded
at half its size before it is resized.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from mmflax.data.image import transforms
from mmflax.errors import MmflaxError

Size = tuple[int, int]  # height, width

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_SQUASH_FROM = 384  # ConvNeXt's processor crops only below this side

# What a config need not say, by its processor, over _DEFAULTS.
_DEFAULTS: dict[str, Any] = {
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True,
    "do_pad": False, "do_convert_rgb": False, "default_to_square": True, "rescale_factor": 1 / 255,
    "resample": 3, "image_mean": _HALF, "image_std": _HALF, "size": None, "crop_size": None,
    "pad_size": None,
}  # fmt: skip
_CLIP = {"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2},
    "DeiT": {"size": 256, "crop_size": 224, "do_center_crop": True},
    "ConvNext": {"size": 384, "default_to_square": False, "crop_pct": 224 / 256},
    "CLIP": {
        "size": 224, "crop_size": 224, "default_to_square": False, "do_center_crop": True,
        "do_convert_rgb": True, **_CLIP,
    },
    "Siglip": {
        "size": {"height": 224, "width": 224}, "default_to_square": False, "do_convert_rgb": True,
    },
    "EfficientNet": {
        "size": 346, "crop_size": 289, "rescale_offset": False, "include_top": True,
    },
    "BridgeTower": {
        "size": 288, "crop_size": {"shortest_edge": 288}, "default_to_square": False,
        "do_center_crop": True, "do_pad": True, "size_divisor": 32, **_CLIP,
    },
    "Vilt": {"size": 384, "default_to_square": False, "do_pad": True, "size_divisor": 32},
    "Blip": {"size": 384, "do_convert_rgb": True, **_CLIP},
    "Flava": {"size": 224, "crop_size": 224, "do_center_crop": True, **_CLIP},
}  # fmt: skip
_MODELS = {
    "vit": "ViT", "swin": "ViT", "swinv2": "ViT", "deit": "DeiT", "resnet": "ConvNext",
    "convnext": "ConvNext", "convnextv2": "ConvNext", "clip": "CLIP", "siglip": "Siglip",
    "align": "EfficientNet", "efficientnet": "EfficientNet", "bridgetower": "BridgeTower",
    "vilt": "Vilt", "blip": "Blip", "flava": "Flava",
}  # fmt: skip
# Keys that leave the pixels as they are; the last line is FLAVA's, of its codebook and masks.
_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "device",
    "_valid_processor_keys", "return_tensors", "data_format", "input_data_format", "num_channels",
    "disable_grouping", "image_seq_length", "model_input_names", "max_size", "patch_size",
    "return_image_mask", "input_size_patches", "total_mask_patches", "return_codebook_pixels",
}  # fmt: skip
_HARMLESS_STARTS = ("codebook_", "mask_group_")
_UNUSED = {"Blip": {"size_divisor"}, "ViT": {"crop_pct"}}  # written, and read by no step


class Resize(NamedTuple):
    """``how`` as in `transforms.scaled_size`; `height` is the short side unless it is `squash`."""

    how: str
    height: int
    width: int = 0
    divisor: int = 32

    def target(self, height: int, width: int) -> Size:
        """The new height and width of an image."""
        size = (self.height, self.width)
        return transforms.scaled_size(self.how, height, width, size, self.divisor)


@dataclasses.dataclass(frozen=True)
class PublishedImages:
    """Images to pixels [h w 3] and, where the family pads, which of them are real.

    Attributes:
      resize: None leaves the size.
      filter: PIL's resampling filter.
      crops: heights and widths cut from the middle, one after another; what is smaller gets zeros
        around it.
      mean, std, factor: `pixel * factor`, less 1 with `offset`, less `mean`, over `std`; None skips
        a step.
      std_twice: divide by `std` once more (EfficientNet's `include_top`).
      pads: zeros below and on the right, to `pad_size` or to the largest; `masks` says where.
      white: lay transparent images on white, not only drop their alpha.
      floor_crop: half a pixel before a crop rounds down; else to even, as torchvision's does.
    """

    resize: Resize | None
    filter: str
    crops: tuple[Size, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...]
    factor: float | None
    offset: bool = False
    std_twice: bool = False
    pads: bool = False
    pad_size: Size | None = None
    masks: bool = False
    white: bool = False
    floor_crop: bool = True

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], model_type: str = "", source: str = "The config"
    ) -> Self:
        """From a `preprocessor_config.json`, or the `image_processor` of a `processor_config.json`.

        Raises:
          MmflaxError: an unknown processor, a key or a value that is not understood.
        """
        name = _processor(config, model_type, source)
        values = {**_DEFAULTS, **_PROCESSORS[name]}
        known = {*values, *_HARMLESS, *_UNUSED.get(name, ())}
        strange = [k for k in config if k not in known and not k.startswith(_HARMLESS_STARTS)]
        if strange:
            raise MmflaxError(
                f"{source} has {', '.join(map(repr, strange))}, which may change the pixels and is "
                f"not known of {name}ImageProcessor; remove it if it does not."
            )
        values |= {key: value for key, value in config.items() if value is not None}
        values["size"] = _size(values, "size", source, bool(values["default_to_square"]))
        values["crop_size"] = _size(values, "crop_size", source)
        pad = _size(values, "pad_size", source)
        if values["resample"] not in _FILTERS:
            raise MmflaxError(
                f"{source} has resample {values['resample']!r}; expected one of "
                f"{', '.join(f'{number} ({word})' for number, word in _FILTERS.items())}."
            )
        resize, crops = _steps(name, values, source)
        if not values["do_resize"]:
            resize, crops = None, crops[-1:] if values["do_center_crop"] else ()
        return cls(
            resize=resize,
            filter=_FILTERS[values["resample"]],
            crops=crops,
            mean=_three(values, "image_mean", source) if values["do_normalize"] else None,
            std=_three(values, "image_std", source),
            factor=float(values["rescale_factor"]) if values["do_rescale"] else None,
            offset=bool(values.get("rescale_offset", False)),
            std_twice=bool(values.get("include_top", False)),
            # ConvNeXt's and EfficientNet's processors never pad.
            pads=bool(values["do_pad"]) and name not in ("ConvNext", "EfficientNet"),
            pad_size=None if pad is None else _square(pad, "pad_size", source),
            masks=name in ("BridgeTower", "Vilt"),
            white=bool(values["do_convert_rgb"]),
        )

    def __call__(
        self, raws: Sequence[Any], canvas: Size | str | None = None
    ) -> dict[str, np.ndarray]:
        """`image` float32 [b h w 3]; `pixel_mask` bool [b h w], true = use, where the family pads.

        Args:
          raws: PIL images, paths, encoded bytes or uint8 [h w 3] / [h w]. As in transformers, a PIL
            image is taken as it lies, and a file is turned upright and its alpha dropped.
          canvas: what images are padded to: None, the same for every batch (the family's `pad_size`
            or the largest that an image can become), `batch`, the largest of these images as in
            transformers, or a height and a width.
        """
        pixels = [self._pixels(raw) for raw in raws]
        if not pixels:
            raise MmflaxError("There are no images; give at least one.")
        sizes = [one.shape[:2] for one in pixels]
        largest = (max(h for h, _ in sizes), max(w for _, w in sizes))
        height, width = self._canvas(canvas, largest) if self.pads else largest
        if not self.pads and len(set(sizes)) > 1:
            raise MmflaxError(
                f"The images became {sizes[0][0]} x {sizes[0][1]} and {largest[0]} x {largest[1]} "
                "pixels, and this preprocessing neither crops nor pads; give one size at a time."
            )
        if largest[0] > height or largest[1] > width:
            raise MmflaxError(
                f"An image became {largest[0]} x {largest[1]} pixels, more than the canvas of "
                f"{height} x {width}; give a larger canvas."
            )
        out = np.zeros((len(pixels), height, width, 3), np.float32)
        mask = np.zeros((len(pixels), height, width), bool)
        table = self._table()
        for row, (one, (h, w)) in enumerate(zip(pixels, sizes, strict=True)):
            for channel in range(3):
                out[row, :h, :w, channel] = table[channel][one[..., channel]]
            mask[row, :h, :w] = True
        return {"image": out, **({"pixel_mask": mask} if self.pads and self.masks else {})}

    def largest(self) -> Size | None:
        """The largest height and width that an image can become; None where it has no bound."""
        if self.crops:
            return self.crops[-1]
        if self.resize is None or self.resize.how == "crop":
            return None
        # Of `divisible`, an image of the largest aspect ratio that is not shrunk for it.
        height, width = self.resize.target(1333, 800)
        return (height, width) if self.resize.how == "squash" else (height, height)

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [3] each: a pixel of 0..255 becomes `pixel * slope + start`."""
        std = np.asarray(self.std, np.float64)
        slope = np.full(3, 1.0 if self.factor is None else self.factor)
        start = np.full(3, -1.0 if self.offset and self.factor is not None else 0.0)
        if self.mean is not None:
            slope, start = slope / std, (start - np.asarray(self.mean)) / std
        if self.std_twice:
            slope, start = slope / std, start / std
        return slope, start

    def _table(self) -> np.ndarray:
        """float32 [3 256]: the value of every level of a color channel, rounded as the original."""
        factor = 1.0 if self.factor is None else self.factor
        line = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)
        if self.factor is not None and self.offset:
            line -= np.float32(1)
        table = np.tile(line, (3, 1))
        std = np.asarray(self.std, np.float32)[:, None]
        if self.mean is not None:
            table = (table - np.asarray(self.mean, np.float32)[:, None]) / std
        return table / std if self.std_twice else table

    def _pixels(self, raw: Any) -> np.ndarray:
        """uint8 [h w 3] of the final size, before padding."""
        try:
            return self._resized(raw)
        except MmflaxError as error:
            file = isinstance(raw, (str, os.PathLike)) and os.fspath(raw)
            if not file or file in str(error):
                raise
            raise MmflaxError(f"{file}: {error}") from error

    def _resized(self, raw: Any) -> np.ndarray:
        upright = not isinstance(raw, Image.Image)
        image = transforms.open_image(raw, upright=upright, white=self.white)
        crops = self.crops
        if self.resize is not None:
            height, width = self.resize.target(image.height, image.width)
            crop = crops[0] if crops else None
            image = transforms.resized(image, height, width, self.filter, crop, self.floor_crop)
            crops = crops[1:]
        for height, width in crops:
            image = transforms.middle(image, height, width, self.floor_crop)
        return np.asarray(image)

    def _canvas(self, canvas: Size | str | None, largest: Size) -> Size:
        if canvas is None:
            return self.pad_size or self.largest() or largest
        if canvas == "batch":
            return self.pad_size or largest
        if isinstance(canvas, str):
            raise MmflaxError(f"canvas is {canvas!r}; give None, 'batch' or (height, width).")
        return canvas


def _processor(config: Mapping[str, Any], model_type: str, source: str) -> str:
    given = config.get("image_processor_type") or config.get("feature_extractor_type")
    if given is None and model_type in _MODELS:
        return _MODELS[model_type]
    match = re.fullmatch(r"(\w+?)(ImageProcessor|FeatureExtractor)(Pil)?(Fast)?", str(given))
    if match and match[1] in _PROCESSORS:
        return match[1]
    raise MmflaxError(
        f"{source} is of image_processor_type {given!r}; known: "
        f"{', '.join(f'{one}ImageProcessor' for one in sorted(_PROCESSORS))}."
    )


def _size(
    values: Mapping[str, Any], name: str, source: str, square: bool = True
) -> dict[str, int] | None:
    """In the form of the newest configs: height and width, or shortest_edge."""
    value = values[name]
    if value is None:
        return None
    if isinstance(value, int):
        return {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return {"height": int(value[0]), "width": int(value[1])}
    if isinstance(value, Mapping) and set(value) in ({"height", "width"}, {"shortest_edge"}):
        return {key: int(side) for key, side in value.items()}
    raise MmflaxError(
        f"{source} has {name} {value!r}; expected height and width, or shortest_edge."
    )


def _square(size: Mapping[str, int], name: str, source: str) -> Size:
    if "height" not in size:
        raise MmflaxError(f"{source} has {name} {dict(size)}; expected height and width.")
    return size["height"], size["width"]


def _steps(
    name: str, values: Mapping[str, Any], source: str
) -> tuple[Resize | None, tuple[Size, ...]]:
    """Resizing and crops; each family reads its sizes in its own way."""
    size, crop = values["size"], values["crop_size"]
    edge = size.get("shortest_edge")
    crops: tuple[Size, ...] = ()
    if values["do_center_crop"] and name != "Vilt":
        if crop is None:
            raise MmflaxError(f"{source} has do_center_crop and no crop_size; add one.")
        side = crop.get("shortest_edge") if name == "BridgeTower" else None
        crops = ((side, side) if side else _square(crop, "crop_size", source),)
    if name in ("ConvNext", "BridgeTower", "Vilt") and edge is None:
        raise MmflaxError(
            f"{source} has size {dict(size)}; {name}ImageProcessor expects shortest_edge."
        )
    if edge is None:
        return Resize("squash", size["height"], size["width"]), crops
    if name in ("BridgeTower", "Vilt"):
        return Resize("divisible", edge, divisor=values["size_divisor"]), crops
    if name != "ConvNext":
        return Resize("crop", edge), crops
    if edge >= _SQUASH_FROM:
        return Resize("squash", edge, edge), crops
    return Resize("crop", int(edge / values["crop_pct"])), ((edge, edge), *crops)


def _three(values: Mapping[str, Any], name: str, source: str) -> tuple[float, ...]:
    value = values[name]
    numbers = [value] * 3 if isinstance(value, (int, float)) else list(value)
    if len(numbers) != 3 or (name == "image_std" and min(numbers) <= 0):
        above = " above 0" if name == "image_std" else ""
        raise MmflaxError(f"{source} has {name} {value!r}; expected three numbers{above}, or one.")
    return tuple(float(number) for number in numbers)
