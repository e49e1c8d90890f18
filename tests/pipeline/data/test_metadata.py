"""Pictures whose metadata Pillow refuses: their pixels are read, upright where the orientation can be read."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipeline.data.decode import UnreadableImage, decode_image
from pipeline.data.metadata import without_metadata
from tests.support.sources import encoded, picture

PICTURE = picture(1, 20, 10)
PNG, JPEG = encoded(PICTURE), encoded(PICTURE, "JPEG")
LARGE = zlib.compress(b"x" * 2_000_000)
BAD_EXIF = b"not a TIFF header"
XMP = b"XML:com.adobe.xmp\0"


def chunk(kind: bytes, data: bytes, checksum: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ checksum)


def in_png(*chunks: bytes, at: int = 33) -> bytes:
    """Behind the header, or where told."""
    return PNG[:at] + b"".join(chunks) + PNG[at:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def in_jpeg(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def in_tiff(number: int, value: object, **entry: int) -> bytes:
    """A TIFF with this tag, whose entry in the directory is then changed."""
    tags = ImageFileDirectory_v2()
    tags[number] = value
    content = bytearray(encoded(PICTURE, "TIFF", tiffinfo=tags))
    (at,) = struct.unpack_from("<I", content, 4)
    for place in range(at + 2, at + 2 + 12 * content[at], 12):
        if struct.unpack_from("<H", content, place) == (number,):
            kind, count, offset = struct.unpack_from("<HII", content, place + 2)
            new = {"tag": number, "kind": kind, "count": count, "offset": offset, **entry}
            struct.pack_into("<HHII", content, place, *new.values())
    return bytes(content)


ODD = {
    "2 MB of text": in_png(chunk(b"zTXt", b"workflow\0\0" + LARGE)),
    "2 MB of text behind the pixels": in_png(chunk(b"zTXt", b"workflow\0\0" + LARGE), at=len(PNG) - 12),
    "2 MB of international text": in_png(chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE)),
    "70 MB of texts": in_png(*(chunk(b"tEXt", b"%d\0" % i + b"x" * 1_000_000) for i in range(70))),
    "a profile of 2 MB": in_png(chunk(b"iCCP", b"n\0\0" + LARGE)),
    "a profile that is none": in_png(chunk(b"iCCP", b"n\0\0garbage")),
    "a wrong checksum of a text": in_png(chunk(b"tEXt", b"a\0b", 1)),
    "a cut physical size": in_png(chunk(b"pHYs", b"1")),
    "a cut gamma": in_png(chunk(b"gAMA", b"1")),
    "a cut animation": in_png(chunk(b"acTL", b"1")),
    "a wrong checksum of EXIF": in_png(chunk(b"eXIf", BAD_EXIF, 1)),
    "a wrong checksum of XMP": in_png(chunk(b"iTXt", XMP + b"\0\0\0\0<x/>", 1)),
    "XMP of 2 MB, compressed": in_png(chunk(b"iTXt", XMP + b"\1\0\0\0" + LARGE)),
    "EXIF behind a cut physical size, with a wrong checksum": in_png(chunk(b"pHYs", b"1"), chunk(b"eXIf", b"", 1)),
    "bad EXIF in PNG": in_png(chunk(b"eXIf", BAD_EXIF)),
    "bad EXIF as text": in_png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n    8\nzzzz\n")),
    "bad EXIF in JPEG": in_jpeg(segment(0xE1, b"Exif\0\0" + BAD_EXIF)),
    "a cut profile": in_jpeg(segment(0xE2, b"ICC_PROFILE\0")),
    "a cut JFIF": in_jpeg(segment(0xE0, b"JFIF")),
    "a cut Adobe": in_jpeg(segment(0xEE, b"Adobe")),
    "a cut Photoshop block": in_jpeg(segment(0xED, b"Photoshop 3.0\x008BIM\x03")),
    "no frames": in_jpeg(segment(0xE2, b"MPF\0garbage")),
    "bad EXIF in WebP": encoded(PICTURE, "WEBP", lossless=True, exif=b"Exif\0\0" + BAD_EXIF),
    "a bad profile in WebP": encoded(PICTURE, "WEBP", lossless=True, icc_profile=b"garbage"),
    "a description beyond the end": in_tiff(270, "a description", offset=99_999_999),
    "a description of 4 GB": in_tiff(270, "a description", count=0xFFFFFFFF),
    "a tag of no known type": in_tiff(270, "a description", kind=77),
    "a pointer to EXIF that leads nowhere": in_tiff(
        270, "a description", tag=34665, kind=4, count=1, offset=99_999_999
    ),
    "an orientation that is a text": in_tiff(274, 1, kind=2, count=100),
}


@pytest.mark.parametrize("name", ODD)
def test_the_pixels_are_read(name: str) -> None:
    plain = JPEG if ODD[name].startswith(b"\xff\xd8") else PNG
    assert np.array_equal(np.asarray(decode_image(ODD[name], None)), np.asarray(decode_image(plain, None)))


def test_the_orientation_stays() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    text = chunk(b"zTXt", b"workflow\0\0" + LARGE)
    for content in (
        in_png(text, chunk(b"eXIf", exif.tobytes()[6:])),
        in_png(text, chunk(b"iTXt", xmp)),
        in_jpeg(segment(0xE2, b"ICC_PROFILE\0"), segment(0xE1, exif.tobytes())),
    ):
        assert decode_image(content, None).size == (10, 20)


def test_transparency_and_palette_stay() -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([9, 9, 9, 10, 200, 30])
    content = encoded(image, transparency=0)
    odd = content[:33] + chunk(b"pHYs", b"1") + content[33:]
    assert np.array_equal(np.asarray(decode_image(odd, None)), np.asarray(decode_image(content, None)))


@pytest.mark.parametrize("content", [PNG, JPEG], ids=["PNG", "JPEG"])
def test_damaged_pixels_stay_damaged(content: bytes) -> None:
    """Of a file that cannot be read without its metadata either, the first reason is given."""
    odd = content[:20] if content is PNG else content[: len(content) // 2]
    with pytest.raises(UnreadableImage) as plain:
        decode_image(odd, None)
    with pytest.raises(UnreadableImage) as bomb:
        decode_image(in_png(chunk(b"pHYs", b"1")), 100)
    assert "damaged" in plain.value.reason or "not an image" in plain.value.reason
    assert "data.max_pixels" in bomb.value.reason or "damaged" in bomb.value.reason


def test_nothing_to_strip() -> None:
    bare = without_metadata(JPEG) or JPEG
    cut = (b"", b"\x89PNG\r\n\x1a\n", b"II*\0", b"II*\0\xff\0\0\0")
    for content in (PNG, bare, encoded(PICTURE, "WEBP"), *cut):
        assert without_metadata(content) is None


def files() -> Iterator[bytes]:
    yield from (PNG, JPEG, in_tiff(270, "a description"), ODD["a cut physical size"], ODD["no frames"])


@settings(max_examples=60)
@given(st.sampled_from(list(files())), st.integers(0, 400), st.integers(0, 255), st.floats(0, 1))
def test_damaged_files_are_no_traceback(content: bytes, place: int, value: int, keep: float) -> None:
    changed = bytearray(content)
    changed[place % len(changed)] = value
    try:
        decode_image(bytes(changed[: int(len(changed) * (1 - keep**4))]), 10_000)
    except UnreadableImage as error:
        assert error.reason  # noqa: PT017  # it may also go well
