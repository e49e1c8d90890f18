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
from PIL import Image, ImageOps, UnidentifiedImageError

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


class UnreadableImage(Exception):  # noqa: N818  # named after the image's state; always caught
    """An image that cannot be used; `reason` is stored in the quarantine list."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_image(image: Encoded, max_pixels: int | None) -> Image.Image:
    """An encoded image as RGB, upright.

    Greyscale, CMYK, palette and 16-bit images are converted (16 bits scaled to 8, not clipped), transparent ones
    composited on white, EXIF rotation is applied; of an animation the first frame is used. Embedded colour profiles are
    not applied. `max_pixels` is checked on the header, before any pixel is read; None: not checked.
    Raises UnreadableImage for zero bytes, other formats, damaged data, too many pixels, 32-bit and float pixels.
    """
    if len(image) == 0:
        raise UnreadableImage("zero bytes")
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
        if max_pixels is not None and opened.width * opened.height > max_pixels:
            raise UnreadableImage(f"{opened.width} x {opened.height} pixels are more than data.max_pixels {max_pixels}")
        opened.load()
        return _to_rgb(ImageOps.exif_transpose(opened))
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"not an image in any of {', '.join(FORMATS)}") from None
    except Exception as error:  # on damaged data Pillow raises many types, even SyntaxError
        raise UnreadableImage(f"damaged: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no known range")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _from_integers(values: npt.NDArray[np.integer]) -> Image.Image:
    """16-bit greyscale as 8-bit: 0..65535 to 0..255, rounded to nearest."""
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise UnreadableImage("32-bit pixels have no known range")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def transform(image: Image.Image, size: int, center_crop: bool) -> Pixels:
    """RGB pixels (size, size, 3) in uint8.

    `center_crop` as in ADM: halve with a box filter while the smaller side is at least 2 x size, resize it to size
    (bicubic), crop the centre. Without it, both sides are resized to size (bicubic).
    """
    if not center_crop:
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
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
