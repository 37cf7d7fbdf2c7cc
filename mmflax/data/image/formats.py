"""In which format a file is, and what it is when no reader takes it."""

import difflib
import os
import pathlib
import unicodedata

from PIL import BmpImagePlugin as Bmp
from PIL import GifImagePlugin as Gif
from PIL import Image
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
_MOST_NAMES = 10_000  # of a folder, to look for a misspelt one
FORMATS = tuple(reader.format for reader in _READERS)

# Found at the place; the first that fits is it. Each goes on from "The image cat.jpg is …".
_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"gimp xcf", "a GIMP file"),
    (0, b"\x00\x00\x01\x00", "a Windows icon"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"JXL ", "a JPEG XL image"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
    (8, b"AVI ", "a video"),
    (8, b"WAVE", "a sound"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (4, b"moov", "a video"),
    (4, b"mdat", "a video"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x00\x05\x16\x07", "a ._ file, which macOS writes beside the image of that name"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"BPG\xfb", "a BPG image"),
    (0, b"DDS ", "a DirectDraw surface"),
)
_BRANDS = {
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIC image"
    ),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF image"),
    b"crx ": "a camera's raw image",
}
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"<svg", "an SVG drawing"),
    (b"<html", "a web page, as a failed download leaves it"),
    (b"<!doctype html", "a web page, as a failed download leaves it"),
    (b"version https://git-lfs", "the Git LFS pointer of one"),
    (b"<?xml", "an XML text"),
)


def without_texts(content: bytes) -> bytes:
    """A PNG file without its texts and its color profile, which may be too long for PIL."""
    kept, place = [content[:8]], 8
    while place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        if content[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def kind_of(content: bytes) -> str:
    """What the bytes are, such as "a HEIC image"; empty where nothing is recognized."""
    if not content:
        return "an empty file"
    if not any(content[:4096]):
        return "a file of zero bytes, as an interrupted copy leaves it"
    if content[4:8] == b"ftyp":
        brands = [content[8:12]] + [content[i : i + 4] for i in range(16, 48, 4)]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "a video")
    for place, start, kind in _STARTS:
        if content[place : place + len(start)] == start:
            return kind
    text = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, kind in _TEXTS:
        if text.startswith(start) or (start in (b"<svg", b"<html") and start in text[:512]):
            return kind
    try:
        return "a text" if content[:256].decode().isprintable() else ""
    except UnicodeDecodeError:
        return ""


def foreign(name: str, start: bytes, known: bool) -> MmflaxError:
    """The error of an image, called ``name``, that begins so, maybe as a ``known`` format does."""
    if known:
        return MmflaxError(
            f"{name} is damaged, or of a kind that cannot be read (such as 16 bits a color); "
            "convert it to JPEG or PNG."
        )
    kind = kind_of(start)
    return MmflaxError(
        f"{name} is not an image in {', '.join(FORMATS)} format{f' but {kind}' if kind else ''}; "
        "convert or replace it."
    )


def _near(error: Exception) -> str:
    """Which file of the folder may be meant: names differ in Unicode's form and in case."""
    path = pathlib.Path(str(getattr(error, "filename", None) or ""))
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    plain = {unicodedata.normalize("NFC", name).casefold(): name for name in names}
    wanted = unicodedata.normalize("NFC", path.name).casefold()
    near = [wanted] if wanted in plain else []
    if not near and len(plain) <= _MOST_NAMES:
        near = difflib.get_close_matches(wanted, plain, n=1)
    if not near:
        return ""
    found = plain[near[0]]
    same = unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", path.name)
    how = " (the same letters, in another Unicode form)" if same else ""
    return f"; did you mean {found!r}{how}"


def unreadable(name: str, error: Exception) -> MmflaxError:
    """The error of an image, called ``name``, that PIL did not read for ``error``."""
    reasons: dict[type[Exception] | tuple[type[Exception], ...], str] = {
        (Image.DecompressionBombError, Image.DecompressionBombWarning): (
            "has too many pixels; shrink it first"
        ),
        FileNotFoundError: f"does not exist{_near(error)}",
        PermissionError: "may not be read (permission denied)",
        IsADirectoryError: "is a folder, not an image",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return MmflaxError(f"{name} {reason}.")
    return MmflaxError(f"{name} is damaged: {str(error).rstrip('.')}.")
