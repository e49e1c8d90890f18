"""From the bytes of an image file to the pixels that the models see: decode, crop, flip. Nothing knows of files here.

Legend: B images, H rows, W columns.
"""

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Encoded = bytes | memoryview
Pixels = npt.NDArray[np.uint8]

# Formats whose decoders we trust with files from anywhere. JPEG takes in what phones write (MPO).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_STRIP = 16  # images a task of the thread pool: one alone may take less time than handing it over
# Mean bytes from which threads pay: Pillow takes Python's lock back several times an image, and for a small one that
# costs more than the work (measured: at 32 x 32 two threads are half as fast as one, at 64 x 64 faster).
_SHARED_BYTES = 4096

# Pillow's own guard warns below, and refuses at, fixed sizes; `decode` holds each image to `max_pixels` instead.
Image.MAX_IMAGE_PIXELS = None
# Nor does it tell the log of every odd EXIF block: an image is readable or it is quarantined.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(Exception):  # noqa: N818  # it names the image's state, and is caught, never shown
    """An image that cannot be used; `reason` goes to the quarantine list."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_image(image: Encoded, max_pixels: int | None) -> Image.Image:
    """An encoded image as RGB, upright.

    Greyscale, CMYK, palette and 16-bit images are converted (16 bits scaled to 8, not clipped), transparent ones laid
    on white, EXIF rotation applied; of an animation the first frame. An embedded colour profile is not applied.
    `max_pixels` is checked on the header, before any pixel is read; None for an image that has passed it before.
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
    except Exception as error:  # damaged data makes Pillow's decoders raise nearly anything, SyntaxError too
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

    `center_crop` is ADM's: box halvings while the smaller side is at least 2 x size, bicubic until it is size, the
    middle cut out. Without it both sides are resized to size, bicubic.
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
    """Images that were found readable before, as uint8 (B, 3, size, size); those marked in `flips` (B,) mirrored.

    The pool's threads share the work (Pillow lets go of Python's lock), unless the images are small. Raises
    UnreadableImage.
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
