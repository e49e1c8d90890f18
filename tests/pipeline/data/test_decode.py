import io
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_all_sixteen_bits_are_rounded() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = np.asarray(decode_image(sources.encoded(Image.fromarray(values)), LIMIT))[..., 0]
    assert np.array_equal(decoded, np.rint(values / 257).astype(np.uint8))


def tiff(pixels: bytes, bits: int, sample_format: int = 1, photometric: int = 1) -> bytes:
    """A grey TIFF of 4 x 2 pixels."""
    tags = {256: 4, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 2, 279: len(pixels)}
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    body = pixels + b"\0" * (len(pixels) % 2)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_tiffs_of_many_ranges() -> None:
    """Eight values over the whole range, as 8, 12 and 16 bits, with white or black as 0."""
    deep = np.array([0, 257, 4369, 8738, 21845, 43690, 61166, 65535], np.uint16)
    packed = int("".join(f"{value >> 4:012b}" for value in deep.tolist()), 2).to_bytes(12, "big")
    expected = np.rint(deep / 257)
    for content, tolerance in (
        (tiff(deep.tobytes(), 16), 0),
        (tiff(packed, 12), 1),
        (tiff((deep // 257).astype(np.uint8).tobytes(), 8), 0),
        (tiff((65535 - deep).tobytes(), 16, photometric=0), 0),
        (tiff((255 - deep // 257).astype(np.uint8).tobytes(), 8, photometric=0), 0),
    ):
        found = np.asarray(decode_image(content, LIMIT))[..., 0].reshape(-1)
        assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize(("bits", "sample_format"), [(8, 2), (16, 2), (32, 1), (32, 2), (32, 3)])
def test_tiffs_of_unknown_range(bits: int, sample_format: int) -> None:
    """Small values of 32 bits came out black, signed ones of 16 bits partly so."""
    pixels = np.arange(8, dtype=f"int{bits}").tobytes()
    with pytest.raises(UnreadableImage, match="no known range"):
        decode_image(tiff(pixels, bits, sample_format), LIMIT)


def test_the_first_frame_is_read() -> None:
    frames = [sources.picture(i) for i in range(3)]
    for kind in ("TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = sources.encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(np.asarray(decode_image(content, LIMIT)), np.asarray(frames[0]))


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


def resized_as_a_whole(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop as its authors wrote it: the crop comes last."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pixels, left, top = np.asarray(image), (image.width - size) // 2, (image.height - size) // 2
    return pixels[top : top + size, left : left + size]


@settings(max_examples=60)
@given(st.integers(1, 300), st.floats(1, 3.9), st.booleans(), st.sampled_from([16, 32, 64]), st.integers(0, 99))
def test_ordinary_images_are_as_adm_has_them(side: int, ratio: float, upright: bool, size: int, seed: int) -> None:
    sides = (side, round(side * ratio)) if upright else (round(side * ratio), side)
    image = sources.picture(seed, *sides)
    assert np.array_equal(transform(image, size, True), resized_as_a_whole(image, size))


@pytest.mark.parametrize("sides", [(40, 300), (300, 40), (60, 500), (1000, 90), (9, 700)])
def test_elongated_images_differ_by_roundings_between_rows_and_columns(sides: tuple[int, int]) -> None:
    image = sources.picture(1, sides[0] // 8 + 1, sides[1] // 8 + 1).resize(sides, Image.Resampling.BICUBIC)
    difference = transform(image, 64, True).astype(int) - resized_as_a_whole(image, 64)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("sides", [(1, 65_000), (12_000, 1), (65_000, 3)])
def test_elongated_images_are_cropped_first(sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole, 1 x 65000 pixels at 256 would be 12 GB."""
    made, resize = list[tuple[int, int]](), Image.Image.resize

    def recorded(image: Image.Image, size: tuple[int, int], *more: Any, **options: Any) -> Image.Image:
        made.append(size)
        return resize(image, size, *more, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    pixels = transform(Image.new("RGB", sides, (7, 8, 9)), 256, True)
    assert (pixels == (7, 8, 9)).all()
    assert made == [(256, 256)]


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
