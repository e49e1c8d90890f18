import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import UnreadableImage, decode_batch, decode_image, transform
from tests.support import sources

LIMIT = 178_956_970


def pixel(image: Image.Image, kind: str = "PNG", **options: object) -> tuple[int, ...]:
    decoded = decode_image(sources.encoded(image, kind, **options), LIMIT)
    assert decoded.mode == "RGB"
    found = decoded.getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


def test_rgb_is_as_it_was() -> None:
    image = sources.picture(1)
    assert np.array_equal(np.asarray(decode_image(sources.encoded(image), LIMIT)), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG"])
def test_every_format_that_is_listed_is_read(kind: str) -> None:
    assert decode_image(sources.encoded(sources.picture(1), kind), LIMIT).size == (12, 10)


def test_colour_modes_are_converted() -> None:
    assert pixel(Image.new("L", (3, 2), 77)) == (77, 77, 77)
    assert pixel(Image.new("1", (3, 2), 1)) == (255, 255, 255)
    cmyk = pixel(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)
    assert cmyk[0] < 5
    assert min(cmyk[1:]) > 250
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(palette) == (10, 200, 30)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (257 * 100, 100), (257 * 100 + 129, 101)])
def test_sixteen_bits_are_scaled(value: int, expected: int) -> None:
    image = Image.fromarray(np.full((4, 4), value, np.uint16))
    for kind in ("PNG", "TIFF"):
        assert pixel(image, kind) == (expected,) * 3
    big_endian = b"P5 2 2 65535 " + value.to_bytes(2, "big") * 4
    assert decode_image(big_endian, LIMIT).getpixel((1, 1)) == (expected,) * 3


def test_transparency_is_laid_on_white() -> None:
    assert pixel(Image.new("RGBA", (3, 2), (10, 20, 30, 0))) == (255, 255, 255)
    assert pixel(Image.new("RGBA", (3, 2), (10, 20, 30, 255))) == (10, 20, 30)
    half = pixel(Image.new("LA", (3, 2), (0, 128)))
    assert half == (127, 127, 127)
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([10, 20, 30])
    assert pixel(palette, transparency=0) == (255, 255, 255)
    assert pixel(Image.new("RGB", (3, 2), (1, 2, 3)), transparency=(1, 2, 3)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = sources.picture(3)
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(sources.encoded(stored, exif=exif), LIMIT)
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def cut(keep: float) -> Callable[[], bytes]:
    def make() -> bytes:
        content = sources.encoded(sources.picture(1, 64, 64), "JPEG")
        return content[: int(len(content) * keep)]

    return make


def flipped_bits() -> bytes:
    content = bytearray(sources.encoded(sources.picture(1, 64, 64)))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "zero bytes"),
        (lambda: b"not an image at all", "not an image"),
        (lambda: b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
        (lambda: sources.encoded(sources.picture(1))[:-30], "damaged"),
        (cut(0.5), "damaged"),
        (cut(0.02), "not an image|damaged"),
        (flipped_bits, "damaged"),
        (lambda: sources.huge_png(30_000, 30_000), "30000 x 30000 pixels are more than data.max_pixels"),
        (lambda: sources.encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
        (lambda: sources.encoded(Image.new("I", (4, 4), 1 << 20), "TIFF"), "32-bit"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "not an image"),
    ],
)
def test_unreadable_images_say_why(make: Callable[[], bytes], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImage, match=reason) as caught:
            decode_image(make(), LIMIT)
    assert caught.value.reason == str(caught.value)


def test_a_bomb_is_refused_before_a_pixel_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(UnreadableImage, match="max_pixels"):
        decode_image(sources.huge_png(30_000, 30_000), LIMIT)
    with pytest.raises(UnreadableImage, match=r"12 x 10 pixels are more than data.max_pixels 119"):
        decode_image(sources.encoded(sources.picture(1)), 119)


def test_broken_exif_is_no_surprise() -> None:
    content = sources.encoded(sources.picture(1), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert decode_image(content, LIMIT).size == (12, 10)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (200, 64), (32, 32), (8, 8), (5, 9), (33, 500)])
def test_transform_gives_squares(size: tuple[int, int]) -> None:
    image = sources.picture(2, *size)
    for center_crop in (True, False):
        pixels = transform(image, 32, center_crop)
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)


def test_centre_crop_keeps_the_middle() -> None:
    stripes = np.zeros((32, 96, 3), np.uint8)
    stripes[:, 32:64] = 200
    image = Image.fromarray(stripes)
    assert (transform(image, 32, True) == 200).all()
    assert transform(image, 32, False)[:, 0].max() < 10


def test_large_images_are_halved_by_boxes_first() -> None:
    """A checkerboard's halving is exactly grey; bicubic alone would ring."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    assert set(np.unique(transform(image, 32, True))) <= {127, 128}


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = sources.picture(5, 32, 32)
    assert np.array_equal(transform(image, 32, True), np.asarray(image))


@pytest.mark.parametrize("side", [20, 80])  # small files, and such as the threads share
def test_batches_are_flipped_where_told(side: int) -> None:
    images = [sources.encoded(sources.picture(i, side, side)) for i in range(37)]
    flips = np.arange(37) % 3 == 0
    with ThreadPoolExecutor(3) as pool:
        plain = decode_batch(images, 16, True, None, pool)
        flipped = decode_batch([memoryview(image) for image in images], 16, True, flips, pool)
        assert decode_batch([], 16, True, None, pool).shape == (0, 3, 16, 16)
        with pytest.raises(UnreadableImage):
            decode_batch([*images, b""], 16, True, None, pool)
    assert (plain.shape, plain.dtype) == ((37, 3, 16, 16), np.uint8)
    assert np.array_equal(plain[5].transpose(1, 2, 0), transform(sources.picture(5, side, side), 16, True))
    assert np.array_equal(flipped[flips], plain[flips][..., ::-1])
    assert np.array_equal(flipped[~flips], plain[~flips])


def test_real_photographs(real_data: Path) -> None:
    paths = sorted((real_data / "imagenet-sample").glob("*/*.JPEG"))[::16]
    with ThreadPoolExecutor(2) as pool:
        x_BCHW = decode_batch([path.read_bytes() for path in paths], 64, True, None, pool)
    assert x_BCHW.shape == (16, 3, 64, 64)
    assert x_BCHW.std(axis=(1, 2, 3)).min() > 10
    with Image.open(io.BytesIO(paths[0].read_bytes())) as image:
        assert decode_image(paths[0].read_bytes(), LIMIT).size == image.size
