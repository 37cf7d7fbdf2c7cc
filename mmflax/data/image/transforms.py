"""Decoding, resizing and normalizing of images; nothing else decodes.

EXIF orientation is applied, palette, gray, CMYK and 16-bit gray become RGB, and an alpha channel is
dropped (the stored colors are kept). Of an animation the first picture is taken.

No image takes more than `MAX_PIXELS` pixels, decoded or resized: a larger JPEG, as phones of 108
and 200 megapixels write them, is decoded at half its size or less; others are refused.
"""

import io
import os
import struct
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from mmflax.data.image.formats import FORMATS, foreign, unreadable, without_texts
from mmflax.data.image.resample import resized_part
from mmflax.errors import MmflaxError

MAX_PIXELS = 89_478_485  # a quarter of a GiB at 3 bytes each; PIL's own limit for its warning
MAX_JPEG_PIXELS = 3 * MAX_PIXELS  # in the file, unless it is progressive and so decoded in full
_PARTLY = 16  # an enlarged image of so many times the area that is kept is not made in full
FILTERS = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "box", "bilinear", "bicubic", "lanczos")
}
RESIZES = ("squash", "crop", "divisible")
_EXIF_ORIENTATION = 0x0112
_LONG_TEXT = "MAX_TEXT"  # of the image's texts PIL reads this much, and raises for more


def open_image(
    raw: Any, *, at_least: int | None = None, upright: bool = True, white: bool = False
) -> Image.Image:
    """An upright RGB image from a PIL image, encoded bytes, a path, or a uint8 [h w 3] / [h w].

    Args:
      raw: the image.
      at_least: when both sides of a JPEG file may shrink to this many pixels, it is decoded at
        1/2, 1/4 or 1/8 of its size, which skips most of the work. ``None`` decodes every pixel of
        one that has at most ``MAX_PIXELS``.
      upright: apply the EXIF orientation.
      white: lay what is transparent on white, as transformers does: in a file that is the one
        color it names as transparent, and an alpha channel is dropped all the same.

    Raises:
      MmflaxError: unreadable, truncated, too large, or of a kind that is not an image.
    """
    is_pil = isinstance(raw, Image.Image)
    if isinstance(raw, np.ndarray) or (hasattr(raw, "__array__") and not is_pil):
        return _from_array(np.asarray(raw))
    name = _name(raw)
    try:
        if is_pil:
            # The caller's own object: a draft would shrink it for whoever uses it next.
            _check_size(raw.size, name, MAX_JPEG_PIXELS)
            return _rgb(_on_white(raw) if white else raw, name, upright)
        # A file is read at once: PIL's many small reads are slow on network disks.
        with _identified(io.BytesIO(_content(raw)), name) as image:
            _check_size(image.size, name, _most_pixels(image))
            if _is_jpeg(image):
                _shrink(image, at_least)
            return _rgb(image, name, upright, white)
    except (MmflaxError, MemoryError):
        raise
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, zlib.error, ...
        if _LONG_TEXT in str(error) and not is_pil:
            bare = without_texts(bytes(_content(raw)))
            return open_image(bare, at_least=at_least, upright=upright, white=white)
        raise unreadable(name, error) from error


def check_header(raw: str | os.PathLike[str] | bytes) -> tuple[int, int] | None:
    """Width and height as stored (None where a long text hides them), from the first bytes only; a
    missing, foreign or oversized image raises MmflaxError."""
    name = _name(raw)
    try:
        with io.BytesIO(raw) if isinstance(raw, bytes) else open(raw, "rb") as file:
            image = _identified(file, name)
            _check_size(image.size, name, _most_pixels(image))
            return image.size
    except MmflaxError:
        raise
    except Exception as error:
        if _LONG_TEXT in str(error):
            return None
        raise unreadable(name, error) from error


def resize(
    image: Image.Image,
    size: int,
    *,
    how: str,
    filter: str,
    resize_to: int = 0,
    floor_crop: bool = False,
) -> Image.Image:
    """To ``size`` x ``size``: ``squash`` ignores the aspect ratio, the others keep the middle.

    Args:
      image: RGB.
      size: pixels a side of the result; where the resized image is smaller, black is around it.
      how: ``squash``, ``crop`` the middle after resizing the short side, or ``divisible``, which
        also limits the long side and rounds both down; see ``divisible_size``.
      filter: PIL's resampling filter, by its name in ``FILTERS``.
      resize_to: the side, or short side, before the middle is taken; 0 is ``size``.
      floor_crop: an odd pixel too many goes to the right and below, as transformers has it; without
        it the offset is rounded to even, as torchvision's CenterCrop does.
    """
    first = resize_to or size
    rows, columns = scaled_size(how, image.height, image.width, (first, first))
    if rows == columns == size:
        return resized(image, rows, columns, filter)
    return resized(image, rows, columns, filter, (size, size), floor_crop)


def resized(
    image: Image.Image,
    height: int,
    width: int,
    filter: str,
    crop: tuple[int, int] | None = None,
    floor: bool = True,
) -> Image.Image:
    """``image.resize``, then its ``middle`` of ``crop``, a height and a width.

    Where an image grows far beyond its crop, as one of 4000 x 1 pixels does whose short side is to
    be 224, only the crop is computed.

    Raises:
      MmflaxError: the result would have more than ``MAX_PIXELS`` pixels.
    """
    if crop is None:
        _check_result(image, height, width)
        if (width, height) == image.size:
            return image
        return image.resize((width, height), FILTERS[filter])
    left, top, right, bottom = _middle_box(width, height, *crop, floor)
    most = _PARTLY * crop[0] * crop[1]
    if width < image.width or height < image.height or width * height <= most:
        return middle(resized(image, height, width, filter), *crop, floor)
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    part = resized_part(image, (width, height), inside, filter)
    return part.crop((left - inside[0], top - inside[1], right - inside[0], bottom - inside[1]))


def scaled_size(
    how: str, height: int, width: int, size: tuple[int, int], divisor: int = 32
) -> tuple[int, int]:
    """Height and width of an image that is resized to ``size``, or its short side to ``size[0]``.

    The long side is rounded down, as torchvision's Resize does.
    """
    if how == "squash":
        return size
    if how == "crop":
        short = min(height, width)
        return size[0] * height // short, size[0] * width // short
    return divisible_size(height, width, size[0], divisor)


def divisible_size(height: int, width: int, short: int, divisor: int = 32) -> tuple[int, int]:
    """Height and width with the short side at ``short``, then the long one at most 1333/800 of it
    (which shrinks both), then both down to a multiple of ``divisor``: ViLT's and BridgeTower's.
    """
    longest = int(1333 / 800 * short)
    scale = short / min(height, width)
    sides = [short, scale * width] if height < width else [scale * height, short]
    if max(sides) > longest:
        scale = longest / max(sides)
        sides = [scale * side for side in sides]
    rows, columns = (int(side + 0.5) // divisor * divisor for side in sides)
    if rows < 1 or columns < 1:
        raise MmflaxError(
            f"An image of {width} x {height} pixels is too narrow: it would be resized to "
            f"{columns} x {rows}; crop it first."
        )
    return rows, columns


def middle(image: Image.Image, height: int, width: int, floor: bool = True) -> Image.Image:
    """The middle of an image, with black around one that is smaller; ``floor`` as in ``resize``."""
    return image.crop(_middle_box(*image.size, height, width, floor))


def _middle_box(
    full_width: int, full_height: int, height: int, width: int, floor: bool
) -> tuple[int, int, int, int]:
    left, top = full_width - width, full_height - height
    left, top = (left // 2, top // 2) if floor else (round(left / 2), round(top / 2))
    return left, top, left + width, top + height


def normalize(
    image: Image.Image, scale: np.ndarray, shift: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """``pixel * scale + shift`` as float32 [h w 3]; see ``affine`` for the two rows.

    Args:
      image: RGB.
      scale: float32 [w*3], one value for each byte of a pixel row: numpy's inner loop is then a
        row long rather than 3.
      shift: float32 [w*3], likewise.
      out: float32 [h w 3] to write into.
    """
    width, height = image.size
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width * 3)
    if out is None:
        out = np.empty((height, width, 3), np.float32)
    rows = out.reshape(height, width * 3)
    np.multiply(pixels, scale, out=rows)
    np.add(rows, shift, out=rows)
    return out


def affine(
    mean: tuple[float, ...], std: tuple[float, ...], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that turn 0..255 into ``(pixel / 255 - mean) / std``; mean and std are of 0..1."""
    scale = 1.0 / (255.0 * np.asarray(std, np.float64))
    shift = -np.asarray(mean, np.float64) / np.asarray(std, np.float64)
    return np.tile(scale, width).astype(np.float32), np.tile(shift, width).astype(np.float32)


def _content(raw: Any) -> bytes | bytearray | memoryview:
    if isinstance(raw, (str, os.PathLike)):
        with open(raw, "rb") as file:
            return file.read()
    if not isinstance(raw, (bytes, bytearray, memoryview)):
        raise MmflaxError(
            f"An image was given as {type(raw).__name__}; give a PIL image, a path, encoded bytes, "
            "or a uint8 array [h w 3]."
        )
    return raw


def _identified(file: IO[bytes], name: str) -> Image.Image:
    """The image, not decoded yet; as ``Image.open``, which has a limit of pixels before a draft.

    Args:
      file: at its start; stays open as long as the image is to be decoded.
      name: begins the message.

    Raises:
      MmflaxError: of no known format, naming what the file is where that is recognized.
    """
    start = file.read(4096)
    known = False
    for format in FORMATS:
        create, accepts = Image.OPEN[format]
        if accepts is None or not accepts(start[:16]):
            continue
        known = True
        file.seek(0)
        try:
            return create(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise foreign(name, start, known)


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")  # MPO: a phone's JPEG


def _most_pixels(image: Image.Image) -> int:
    return MAX_JPEG_PIXELS if _is_jpeg(image) and "progressive" not in image.info else MAX_PIXELS


def _shrink(image: Image.Image, at_least: int | None) -> None:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8 of its size, as far as allowed or needed."""
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    full, scale = image.size, 2
    while image.width * image.height > MAX_PIXELS and scale <= 8:
        image.draft(None, (full[0] // scale, full[1] // scale))
        scale *= 2


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")


def _rgb(image: Image.Image, name: str, upright: bool, white: bool = False) -> Image.Image:
    if upright and image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if white and isinstance(image.info.get("transparency"), (int, tuple)):
        image = _on_white(image.convert("RGB"))
    if image.mode.startswith("I;16"):
        # PIL's own conversion clips at 255, which turns a 16-bit scan white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "LAB":
        raise MmflaxError(f"{name} has LAB colors, which cannot be read; convert it to RGB.")
    if image.mode in ("I", "F"):
        raise MmflaxError(
            f"{name} has {'32-bit integer' if image.mode == 'I' else 'floating point'} pixels, "
            "whose range is unknown; convert it to 8 bits."
        )
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "P":  # straight to RGB, PIL warns about palettes with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    good_shape = array.ndim == 2 or (array.ndim == 3 and shape[2] == 3)
    if array.dtype != np.uint8 or not good_shape or 0 in shape:
        hint = " (multiply pixels in 0..1 by 255 and cast)" if array.dtype.kind == "f" else ""
        raise MmflaxError(
            f"An image array is {array.dtype} {list(shape)}; expected uint8 [height width 3] or "
            f"[height width]{hint}."
        )
    _check_size((shape[1], shape[0]), "An image array", MAX_JPEG_PIXELS)
    image = Image.fromarray(np.ascontiguousarray(array))
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_size(size: tuple[int, int], name: str, most: int) -> None:
    if not all(size):
        raise MmflaxError(f"{name} has {size[0]} x {size[1]} pixels, so it shows nothing.")
    if size[0] * size[1] > most:
        raise MmflaxError(
            f"{name} has {size[0]} x {size[1]} pixels, more than the limit of {most} pixels; "
            "shrink it first."
        )


def _check_result(image: Image.Image, height: int, width: int) -> None:
    # In between, Pillow holds all rows at the new width.
    if max(height, image.height) * width > MAX_PIXELS:
        raise MmflaxError(
            f"An image of {image.width} x {image.height} pixels is too narrow: resizing it to "
            f"{width} x {height} takes more than the limit of {MAX_PIXELS} pixels; crop it first."
        )


def _name(raw: Any) -> str:
    if isinstance(raw, (str, os.PathLike)):
        return f"The image {os.fspath(raw)}"
    return f"The image {raw.filename}" if getattr(raw, "filename", "") else "The image"
