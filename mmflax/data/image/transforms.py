"""Decoding, resizing and normalizing of images; nothing else decodes.

EXIF orientation is applied, palette, gray,
CMYK and 16-bit gray become RGB, and an alpha channel is dropped (the stored colors are kept).
"""

import io
import os
from typing import Any

import numpy as np
from PIL import BmpImagePlugin as Bmp
from PIL import GifImagePlugin as Gif
from PIL import Image, ImageOps
from PIL import JpegImagePlugin as Jpeg
from PIL import PngImagePlugin as Png
from PIL import PpmImagePlugin as Ppm
from PIL import TiffImagePlugin as Tiff
from PIL import WebPImagePlugin as WebP

from mmflax.errors import MmflaxError

# Formats that PIL decodes by itself: PostScript and the like would start other programs. Imported
# by name because a restricted Image.open fails on a plugin that nobody has loaded.
_READERS = (
    Jpeg.JpegImageFile, Png.PngImageFile, WebP.WebPImageFile, Gif.GifImageFile, Bmp.BmpImageFile,
    Tiff.TiffImageFile, Ppm.PpmImageFile,
)  # fmt: skip
FORMATS = tuple(reader.format for reader in _READERS)
MAX_PIXELS = 89_478_485  # a quarter of a GiB at 3 bytes each; PIL's own limit for its warning
FILTERS = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "box", "bilinear", "bicubic", "lanczos")
}
RESIZES = ("squash", "crop", "divisible")
_EXIF_ORIENTATION = 0x0112


def open_image(
    raw: Any, *, at_least: int | None = None, upright: bool = True, white: bool = False
) -> Image.Image:
    """An upright RGB image from a PIL image, encoded bytes, a path, or a uint8 [h w 3] / [h w].

    Args:
      raw: the image.
      at_least: when both sides of a JPEG may shrink to this many pixels, it is decoded at 1/2, 1/4
        or 1/8 of its size, which skips most of the work. ``None`` decodes every pixel.
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
            _check_size(raw.size, name)
            return _rgb(_on_white(raw) if white else raw, at_least, name, upright)
        # A file is read at once: PIL's many small reads are slow on network disks.
        with _open(raw) as image:
            return _rgb(image, at_least, name, upright, white)
    except (MmflaxError, MemoryError):
        raise
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise _unreadable(name, error) from error


def check_header(path: str | os.PathLike[str]) -> None:
    """Reads the first bytes only: a missing, foreign or oversized image raises MmflaxError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image.size, _name(path))
    except MmflaxError:
        raise
    except Exception as error:
        raise _unreadable(_name(path), error) from error


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
    if (columns, rows) != image.size:
        image = image.resize((columns, rows), FILTERS[filter])
    return image if rows == columns == size else middle(image, size, size, floor_crop)


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
    left, top = image.width - width, image.height - height
    left, top = (left // 2, top // 2) if floor else (round(left / 2), round(top / 2))
    return image.crop((left, top, left + width, top + height))


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


def _open(raw: Any) -> Image.Image:
    if isinstance(raw, (str, os.PathLike)):
        with open(raw, "rb") as file:
            raw = file.read()
    if not isinstance(raw, (bytes, bytearray, memoryview)):
        raise MmflaxError(
            f"An image was given as {type(raw).__name__}; give a PIL image, a path, encoded bytes, "
            "or a uint8 array [h w 3]."
        )
    return Image.open(io.BytesIO(raw), formats=FORMATS)


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")


def _rgb(
    image: Image.Image, at_least: int | None, name: str, upright: bool, white: bool = False
) -> Image.Image:
    _check_size(image.size, name)
    if at_least is not None and image.format in ("JPEG", "MPO"):  # MPO: a phone's JPEG
        image.draft(None, (at_least, at_least))
    if upright and image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if white and isinstance(image.info.get("transparency"), (int, tuple)):
        image = _on_white(image.convert("RGB"))
    if image.mode.startswith("I;16"):
        # PIL's own conversion clips at 255, which turns a 16-bit scan white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
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
    _check_size((shape[1], shape[0]), "An image array")
    image = Image.fromarray(np.ascontiguousarray(array))
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise MmflaxError(
            f"{name} has {size[0]} x {size[1]} pixels, more than the limit of {MAX_PIXELS}; "
            "shrink it first."
        )


def _unreadable(name: str, error: Exception) -> MmflaxError:
    reasons: dict[type[Exception] | tuple[type[Exception], ...], str] = {
        (Image.DecompressionBombError, Image.DecompressionBombWarning): (
            f"has more than {MAX_PIXELS} pixels; shrink it first"
        ),
        FileNotFoundError: "does not exist",
        PermissionError: "may not be read (permission denied)",
        IsADirectoryError: "is a folder, not an image",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return MmflaxError(f"{name} {reason}.")
    if "cannot identify image" in str(error):
        return MmflaxError(f"{name} is not an image in {', '.join(FORMATS)} format.")
    return MmflaxError(f"{name} is damaged: {str(error).rstrip('.')}.")


def _name(raw: Any) -> str:
    if isinstance(raw, (str, os.PathLike)):
        return f"The image {os.fspath(raw)}"
    return f"The image {raw.filename}" if getattr(raw, "filename", "") else "The image"
