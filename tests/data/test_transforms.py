"""Every kind of image a user may hold becomes the same upright RGB picture, or one clear error."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from mmflax.data.image import transforms
from mmflax.errors import MmflaxError


def gradient(width=48, height=32):
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 60)], -1).astype(np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def opened(raw, **options):
    return np.asarray(transforms.open_image(raw, **options))


def test_every_container_gives_the_same_pixels(tmp_path):
    pixels = gradient()
    image = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    image.save(path)
    for raw in (pixels, image, encoded(image), path, str(path), bytearray(encoded(image))):
        np.testing.assert_array_equal(opened(raw), pixels)


def test_modes_become_rgb():
    image = Image.fromarray(gradient())
    gray = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(opened(encoded(image.convert("L")))[..., 1], gray)
    np.testing.assert_array_equal(opened(gray)[..., 2], gray)
    # Alpha is dropped and the colors under it are kept.
    alpha = image.copy()
    alpha.putalpha(0)
    np.testing.assert_array_equal(opened(encoded(alpha)), gradient())
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    raw = encoded(palette, transparency=bytes(range(256)))
    np.testing.assert_array_equal(opened(raw), np.asarray(palette.convert("RGB")))
    cmyk = opened(encoded(image.convert("CMYK"), "JPEG", quality=100))
    assert np.abs(cmyk.astype(int) - gradient()).mean() < 3
    assert opened(encoded(image.convert("1"))).shape == (32, 48, 3)


def test_16_bit_gray_is_scaled_and_not_clipped():
    values = np.arange(0, 65536, 64, np.uint16).reshape(32, 32)
    raw = encoded(Image.fromarray(values))
    np.testing.assert_array_equal(opened(raw)[..., 0], values >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = gradient()
    # What a camera stores for each orientation, so that turning it back gives the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(opened(raw), upright)


def test_draft_keeps_the_size_asked_for_and_nearly_the_pixels():
    large = Image.fromarray(gradient()).resize((640, 480), Image.Resampling.BICUBIC)
    raw = encoded(large, "JPEG", quality=90)
    full, draft = transforms.open_image(raw), transforms.open_image(raw, at_least=224)
    assert full.size == (640, 480) and draft.size == (320, 240)
    small = [transforms.resize(i, 224, how="squash", filter="bicubic") for i in (full, draft)]
    difference = np.abs(np.asarray(small[0], int) - np.asarray(small[1], int))
    assert difference.mean() < 1.0


def test_resize_squash_and_crop():
    image = Image.fromarray(gradient(60, 30))
    squashed = transforms.resize(image, 30, how="squash", filter="bilinear")
    cropped = transforms.resize(image, 30, how="crop", filter="bilinear")
    assert squashed.size == cropped.size == (30, 30)
    np.testing.assert_array_equal(np.asarray(cropped), gradient(60, 30)[:, 15:45])
    assert np.asarray(squashed)[0, -1, 0] > 240 > np.asarray(cropped)[0, -1, 0]
    for size in ((7, 100), (100, 7), (1, 1)):
        tall = transforms.resize(Image.new("RGB", size), 30, how="crop", filter="nearest")
        assert tall.size == (30, 30)


def test_normalize_matches_its_formula():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = Image.fromarray(gradient())
    ours = transforms.normalize(image, *transforms.affine(mean, std, 48))
    expected = (gradient() / 255.0 - mean) / std
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]; expected uint8.*multiply"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \[3, 4, 4\]; expected"),
        (np.zeros((0, 4, 3), np.uint8), r"expected uint8"),
        (b"not an image", "is not an image in JPEG"),
        (b"", "is not an image"),
        ("/no/such/cat.jpg", "/no/such/cat.jpg does not exist"),
        (os.curdir, "is a folder"),
        (7, "given as int"),
        (None, "given as NoneType"),
        pytest.param(Image.new("F", (2, 2)), "floating point pixels", id="mode F"),
    ],
    ids=str,
)
def test_bad_images_are_one_clear_error(raw, message):
    with pytest.raises(MmflaxError, match=message):
        transforms.open_image(raw)


def test_a_truncated_file_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for format in ("JPEG", "PNG"):
        path = tmp_path / f"half.{format}"
        whole = encoded(Image.fromarray(noise), format)
        path.write_bytes(whole[: len(whole) // 2])
        transforms.check_header(path)
        with pytest.raises(MmflaxError, match=f"half.{format} is damaged: .*truncated"):
            transforms.open_image(path)


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    image = Image.fromarray(gradient())
    whole = [encoded(image, format) for format in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")]
    refused = 0
    for _ in range(40):
        for data in whole:
            damaged = bytearray(data)
            for place in rng.integers(0, len(damaged), 8):
                damaged[place] = rng.integers(0, 256)
            try:
                transforms.open_image(bytes(damaged))
            except MmflaxError:
                refused += 1
            except UserWarning:  # PIL's remark on odd metadata; an error only under this suite
                pass
    assert refused > 20


def test_decompression_bombs_are_refused_before_decoding(monkeypatch):
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(MmflaxError, match="more than .* pixels"):
        transforms.open_image(bomb)
    monkeypatch.setattr(transforms, "MAX_PIXELS", 100)
    with pytest.raises(MmflaxError, match="48 x 32 pixels, more than the limit of 100"):
        transforms.open_image(encoded(Image.fromarray(gradient())))


@pytest.mark.parametrize(
    ("there", "asked", "how"),
    [
        ("nin\u0303o.png", "ni\u00f1o.png", " (the same letters, in another Unicode form)"),
        ("Cat.PNG", "cat.png", ""),
        ("cat.png", "cta.png", ""),
    ],
)
def test_a_file_of_nearly_that_name_is_said(there, asked, how, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / there)
    with pytest.raises(MmflaxError) as error:
        transforms.open_image(str(tmp_path / asked))
    assert str(error.value) == (
        f"The image {tmp_path / asked} does not exist; did you mean {there!r}{how}."
    )
