"""Decodes the bytes of an image file to the pixels for the models: decode, crop, flip. No file access here.

Legend: B images, H rows, W columns.
"""

import importlib.util
import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.data.metadata import without_metadata

Encoded = bytes | memoryview
Pixels = npt.NDArray[np.uint8]

# Formats whose decoders are considered safe for untrusted files. JPEG includes MPO, which phones write.
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"]
HEIF = importlib.util.find_spec("pillow_heif") is not None  # the extra `heif` is installed
if HEIF:
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")
_STRIP = 16  # images per task of the thread pool: a single one may take less time than its dispatch
# Mean bytes per image from which threads are used: Pillow reacquires the GIL several times per image, which for small
# images costs more than the work (measured: two threads are half as fast as one at 32 x 32, faster at 64 x 64).
_SHARED_BYTES = 4096

# Disable Pillow's limits, which are fixed; `decode_image` checks each image against `max_pixels` instead.
Image.MAX_IMAGE_PIXELS = None
# Do not log every invalid EXIF block: an image is either readable or quarantined.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


# How to turn an image upright by the value of its orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The ratio of an image's sides from which it is cropped before it is resized: resized as a whole, one of 1 x 12000
# pixels would have gigabytes. Others keep the order of ADM, to the last bit: Pillow may resize a part in another order
# of rows and columns, and rounds in between.
_ELONGATED = 4


class UnreadableImage(Exception):  # noqa: N818  # named after the image's state; always caught
    """An image that cannot be used; `reason` is stored in the quarantine list."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Damaged(UnreadableImage):
    """The file cannot be decoded as it is."""


def decode_image(image: Encoded, max_pixels: int | None) -> Image.Image:
    """An encoded image as RGB, upright.

    Greyscale, CMYK, palette and 16-bit images are converted (16 and 12 bits scaled to 8, not clipped), transparent ones
    composited on white, EXIF rotation is applied; of an animation the first frame is used. Embedded colour profiles are
    not applied, and metadata that cannot be read are ignored. `max_pixels` is checked on the header, before any pixel
    is read; None: not checked.
    Raises UnreadableImage for zero bytes, other formats, damaged data, too many pixels, and for pixels that are signed,
    of 32 bits, or floating-point.
    """
    if len(image) == 0:
        raise UnreadableImage("zero bytes")
    try:
        return _decoded(image, max_pixels)
    except UnreadableImage as error:
        stripped = without_metadata(bytes(image)) if isinstance(error, _Damaged) else None
        if stripped is None:
            raise
        try:
            return _decoded(stripped, max_pixels)
        except _Damaged:
            raise error from None


# Pillow's `draft`, which decodes a JPEG at a half or less, takes half of the time at 64 px, but gives other pixels: 5
# of 255 levels in the mean. Decoders with the same pixels are no faster, with the crop: `benchmarks/decode.py`.
def _decoded(image: Encoded, max_pixels: int | None) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
        if max_pixels is not None and opened.width * opened.height > max_pixels:
            raise UnreadableImage(f"{opened.width} x {opened.height} pixels are more than data.max_pixels {max_pixels}")
        opened.load()
        return _to_rgb(_upright(opened), _largest_value(opened), _is_negative(opened))
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise _Damaged(f"not an image in any of {', '.join(FORMATS)}") from None
    except Exception as error:  # on damaged data Pillow raises many types, even SyntaxError
        raise _Damaged(f"damaged: {error or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF or XMP says, if they can be read."""
    try:
        method = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on damaged metadata Pillow raises many types
        method = None
    return image if method is None else image.transpose(method)


def _largest_value(image: Image.Image) -> int:
    """Of pixels of more than 8 bits: 65535, if a TIFF does not say otherwise. UnreadableImage if it is unknown."""
    if image.format != "TIFF":
        return 65535
    bits, signed = max(image.tag_v2.get(258, (1,))), 2 in image.tag_v2.get(339, (1,))  # type: ignore[attr-defined]
    if signed or (bits > 16 and image.mode != "F"):
        raise UnreadableImage(f"{'signed ' if signed else ''}{bits}-bit pixels have no known range")
    return int((1 << bits) - 1)


def _is_negative(image: Image.Image) -> bool:
    """Whether 0 is white, which Pillow heeds for 8 bits only."""
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]


def _to_rgb(image: Image.Image, largest: int, negative: bool) -> Image.Image:
    """`largest` and `negative` are used for pixels of more than 8 bits."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        scaled = (510 * values + largest) // (2 * largest)  # rounded
        return Image.fromarray((255 - scaled if negative else scaled).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no known range")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def transform(image: Image.Image, size: int, center_crop: bool) -> Pixels:
    """RGB pixels (size, size, 3) in uint8.

    `center_crop` as in ADM: halve with a box filter while the smaller side is at least 2 x size, resize it to size
    (bicubic), crop the centre. Of elongated images only what the crop sees is resized. Without it, both sides are
    resized to size (bicubic).
    """
    if not center_crop:
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if max(width, height) > _ELONGATED * size:
        x, y = image.width / width, image.height / height  # source pixels per pixel
        seen = (left * x, top * y, (left + size) * x, (top + size) * y)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=seen))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def decode_batch(
    images: Sequence[Encoded],
    size: int,
    center_crop: bool,
    flips: npt.NDArray[np.bool_] | None,
    pool: ThreadPoolExecutor,
) -> Pixels:
    """Decode images that are known to be readable to uint8 (B, 3, size, size); those marked in `flips` (B,) mirrored.

    The pool's threads share the work (Pillow releases the GIL), unless the images are small. Raises UnreadableImage.
    """
    x_BCHW = np.empty((len(images), 3, size, size), np.uint8)

    def fill(rows: range) -> None:
        for i in rows:
            pixels = transform(decode_image(images[i], None), size, center_crop)
            mirrored = flips is not None and flips[i]
            x_BCHW[i] = (pixels[:, ::-1] if mirrored else pixels).transpose(2, 0, 1)

    everything = range(len(images))
    if sum(map(len, images)) < _SHARED_BYTES * len(images):
        fill(everything)
    else:
        for _ in pool.map(fill, (everything[begin : begin + _STRIP] for begin in everything[::_STRIP])):
            pass
    return x_BCHW
