"""Pictures of strangers: files of other formats, of odd shapes, and too large ones."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mmflax.data.image import transforms
from mmflax.data.image.published import PublishedImages
from mmflax.data.image.resample import resized_part
from mmflax.errors import MmflaxError


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def box(brand):
    return (24).to_bytes(4) + b"ftyp" + brand + bytes(4) + b"mif1miaf" + bytes(40)


KINDS = {
    "empty": (b"", "an empty file"),
    "zeros": (bytes(5000), "a file of zero bytes"),
    "iPhone": (box(b"heic"), "a HEIC image"),
    "AVIF": (box(b"avif"), "an AVIF image"),
    "raw of a camera": (box(b"crx "), "a camera's raw image"),
    "live photo": (box(b"qt  ").replace(b"mif1", b"qt  "), "a video"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "PostScript": (b"%!PS-Adobe-3.0\n", "a PostScript file"),
    "Photoshop": (b"8BPS\0\1", "a Photoshop file"),
    "JPEG XL": (b"\xff\x0a\0\0", "a JPEG XL image"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 image"),
    "icon": (b"\0\0\1\0\1\0", "a Windows icon"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "macOS": (b"\0\5\x16\7\0\2\0\0", "a ._ file"),
    "zip": (b"PK\3\4\x14\0", "a zip archive"),
    "gzip": (b"\x1f\x8b\x08\0", "a gzip archive"),
    "tar": (bytes(257).replace(b"\0", b"a") + b"ustar", "a tar archive"),
    "film": (b"RIFF\0\0\0\0AVI LIST", "a video"),
    "DICOM": (bytes(127) + b"\1DICM", "a DICOM file"),
    "text": (b"no picture here", "a text"),
}


@pytest.mark.parametrize("content, kind", KINDS.values(), ids=KINDS)
def test_a_file_that_is_no_image_is_named(content, kind, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (transforms.open_image, transforms.check_header):
        with pytest.raises(MmflaxError, match=f"a.jpg is not an image in JPEG.* but .*{kind}"):
            read(path)


def test_the_name_does_not_decide(tmp_path):
    image = noise(9, 7)
    for format in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        (tmp_path / "a.jpg").write_bytes(encoded(image, format))
        transforms.check_header(tmp_path / "a.jpg")
        assert transforms.open_image(tmp_path / "a.jpg").size == (9, 7)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "YCbCr", "LAB"])
def test_every_mode_is_rgb_or_one_sentence(mode):
    tiff = encoded(noise(9, 7).convert("L" if mode == "I;16" else mode).convert(mode), "TIFF")
    if mode == "LAB":
        with pytest.raises(MmflaxError, match="has LAB colors"):
            transforms.open_image(tiff)
    else:
        assert transforms.open_image(tiff).mode == "RGB"


def test_the_first_picture_of_an_animation_is_taken():
    first, second = noise(9, 7), Image.new("RGB", (9, 7))
    for format in ("PNG", "GIF", "WEBP"):
        raw = encoded(first, format, save_all=True, append_images=[second], lossless=True)
        assert np.asarray(transforms.open_image(raw)).any(), format


def test_long_texts_and_color_profiles_are_skipped():
    image, texts = noise(9, 7), PngImagePlugin.PngInfo()
    texts.add_itxt("workflow", "a" * 3_000_000, zip=True)
    plain = np.asarray(image)
    for raw in (encoded(image, pnginfo=texts), encoded(image, icc_profile=bytes(3_000_000))):
        transforms.check_header(raw)
        np.testing.assert_array_equal(np.asarray(transforms.open_image(raw)), plain)


# Shapes -------------------------------------------------------------------------------------------

FILTERS = ("box", "bilinear", "bicubic", "lanczos")


@pytest.mark.parametrize("filter", FILTERS)
def test_a_part_of_an_enlarged_image_is_that_of_the_whole(filter):
    rng = np.random.default_rng(0)
    for seed in range(40):
        width, height = rng.integers(1, 60, 2).tolist()
        image, scale = noise(width, height, seed), rng.uniform(1, 9)
        size = int(scale * width), int(scale * height)
        left, top = (int(rng.integers(0, side)) for side in size)
        right, bottom = (
            int(rng.integers(one, side)) + 1 for one, side in zip((left, top), size, strict=True)
        )
        part = left, top, right, bottom
        whole = image.resize(size, transforms.FILTERS[filter]).crop(part)
        ours = resized_part(image, size, part, filter)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(whole))


@pytest.mark.parametrize("size", [(700, 1), (1, 700), (3, 200), (200, 7), (33, 2), (16, 1)])
@pytest.mark.parametrize("floor", [True, False])
def test_a_narrow_image_is_cropped_as_if_it_were_resized_in_full(size, floor, monkeypatch):
    image = noise(*size)
    arguments = dict(how="crop", filter="bicubic", resize_to=37, floor_crop=floor)
    ours = transforms.resize(image, 32, **arguments)
    monkeypatch.setattr(transforms, "_PARTLY", 10**9)
    np.testing.assert_array_equal(ours, transforms.resize(image, 32, **arguments))


NARROW = [(4000, 1), (1, 4000), (60_000, 1), (1, 60_000), (3, 50_000)]
FAMILIES = ("clip", "vit", "deit", "resnet", "siglip", "align", "bridgetower", "vilt", "flava")


@pytest.mark.parametrize("size", NARROW, ids=str)
def test_a_narrow_image_takes_little_memory(size):
    """PIL's own memory is not traced: what its arrays become in numpy is."""
    raw = encoded(Image.new("L", size))
    readers = [PublishedImages.from_config({}, name) for name in FAMILIES]
    resizes = [
        lambda how=how: transforms.resize(
            transforms.open_image(raw, at_least=224), 224, how=how, filter="bicubic"
        )
        for how in transforms.RESIZES
    ]
    tracemalloc.start()
    done = 0
    for read in [*resizes, *((lambda one=one: one([raw])) for one in readers)]:
        try:
            read()
            done += 1
        except MmflaxError as error:
            assert "is too narrow" in str(error)
    assert done == len(resizes) + len(FAMILIES) - 3  # all but those of whole sides of 32
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_what_is_not_cropped_has_a_limit(tmp_path):
    path = tmp_path / "line.png"
    path.write_bytes(encoded(Image.new("L", (60_000, 1))))
    whole = PublishedImages.from_config({"do_center_crop": False}, "clip")
    with pytest.raises(MmflaxError, match=r"line\.png: .*60000 x 1 .* 13440000 x 224 .* limit"):
        whole([path])
    with pytest.raises(MmflaxError, match="too narrow"):
        transforms.resize(Image.new("RGB", (1, 500_000)), 224, how="squash", filter="bicubic")


# Large ones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_least", [None, 64])
def test_a_large_jpeg_is_decoded_smaller(at_least, monkeypatch):
    smooth = Image.linear_gradient("L").resize((1200, 900), Image.Resampling.BICUBIC)
    raw = encoded(smooth, "JPEG", quality=95)
    full = np.asarray(transforms.open_image(raw))
    monkeypatch.setattr(transforms, "MAX_PIXELS", 1_000_000)
    monkeypatch.setattr(transforms, "MAX_JPEG_PIXELS", 3_000_000)
    transforms.check_header(raw)
    small = transforms.open_image(raw, at_least=at_least)
    assert small.size == ((600, 450) if at_least is None else (150, 113))
    expected = Image.fromarray(full).resize((48, 48), Image.Resampling.BOX)
    ours = small.resize((48, 48), Image.Resampling.BOX)
    assert np.abs(np.asarray(ours, int) - np.asarray(expected, int)).max() <= 3
    progressive = encoded(smooth, "JPEG", progressive=True)
    with pytest.raises(MmflaxError, match="more than the limit of 1000000"):
        transforms.open_image(progressive, at_least=at_least)
    monkeypatch.setattr(transforms, "MAX_JPEG_PIXELS", 1_000_000)
    for read in (transforms.open_image, transforms.check_header):
        with pytest.raises(MmflaxError, match="1200 x 900 pixels, more than the limit of 1000000"):
            read(raw)


@pytest.mark.parametrize("size", [(12_000, 9_000), (16_320, 12_240)], ids=["108", "200"])
def test_the_megapixels_of_a_phone(size, tmp_path):
    Image.new("L", size, 77).save(tmp_path / "phone.jpg")
    transforms.check_header(tmp_path / "phone.jpg")
    assert np.unique(transforms.open_image(tmp_path / "phone.jpg", at_least=224)) == [77]
    published = PublishedImages.from_config({"do_normalize": False}, "clip")
    np.testing.assert_allclose(published([tmp_path / "phone.jpg"])["image"], 77 / 255, rtol=1e-6)


def test_an_image_of_the_caller_keeps_its_size():
    lazy = Image.open(io.BytesIO(encoded(noise(640, 480), "JPEG")))
    assert transforms.open_image(lazy, at_least=64).size == (640, 480)
    assert lazy.size == (640, 480)
