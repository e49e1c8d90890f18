"""Takes the metadata out of an image file, for files of which Pillow refuses the pixels because of them.

Text, colour profiles, thumbnails and the like are dropped; what the pixels need, and their orientation, stays. No pixel
is decoded here.
"""

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_XMP = b"XML:com.adobe.xmp\0\0"  # begins a text chunk, not compressed, that may hold the orientation
_XMP_BYTES = 1 << 20
_SOS, _COMMENT = 0xDA, 0xFE
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
# The tags of TIFF 6.0 and its supplements that say how pixels are stored, and 274, the orientation.
_TIFF_PIXELS = {254, 255, *range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293}
_TIFF_PIXELS |= {317, 320, 322, 323, 324, 325, 332, 333, 338, 339, 340, 341, 347, 529, 530, 531, 532}
_ENTRY = 12  # bytes of an entry of a TIFF's directory


def without_metadata(image: bytes) -> bytes | None:
    """The same picture with what its pixels need; None for other formats than PNG, JPEG and TIFF, or without metadata.

    A file that is damaged elsewhere stays so.
    """
    if image.startswith(_PNG):
        stripped = _strip_png(image)
    elif image.startswith(b"\xff\xd8"):
        stripped = _strip_jpeg(image)
    elif image[:4] in (b"II*\0", b"MM\0*"):
        stripped = _strip_tiff(image)
    else:
        return None
    return stripped if stripped != image else None


def _strip_png(image: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(image):
        size, kind = struct.unpack_from(">I4s", image, at)
        end = at + size + 12
        chunk = image[at:end]
        if kind in _PNG_PIXELS or (_may_turn(kind, chunk[8 : 8 + len(_XMP)], size) and _is_whole(chunk)):
            kept.append(chunk)
        at = end
    return b"".join(kept)


def _may_turn(kind: bytes, start: bytes, size: int) -> bool:
    """Whether a chunk of this kind, with these first bytes, may hold the orientation."""
    return kind == b"eXIf" or (kind == b"iTXt" and size <= _XMP_BYTES and start == _XMP)


def _is_whole(chunk: bytes) -> bool:
    """Whether the checksum at the chunk's end is that of its kind and data."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _strip_jpeg(image: bytes) -> bytes:
    """Without comments and application segments, except whole ones of JFIF, Exif and Adobe (its colour transform)."""
    kept, at = [image[:2]], 2
    while at + 4 <= len(image) and image[at] == 0xFF and image[at + 1] != _SOS:
        marker = image[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        (size,) = struct.unpack_from(">H", image, at + 2)
        data = image[at + 4 : at + 2 + size]
        whole = (
            (marker == _JFIF and len(data) >= 14)
            or (marker == _EXIF and data.startswith(b"Exif\0\0"))
            or (marker == _ADOBE and len(data) >= 12)
        )
        if whole or not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
            kept.append(image[at : at + 2 + size])
        at += 2 + size
    return b"".join([*kept, image[at:]])


def _strip_tiff(image: bytes) -> bytes:
    """With a shorter first directory in the place of the old one, so that all offsets stay right."""
    order = "<" if image[:2] == b"II" else ">"
    try:
        (at,) = struct.unpack_from(f"{order}I", image, 4)
        (count,) = struct.unpack_from(f"{order}H", image, at)
        entries = [image[at + 2 + i * _ENTRY : at + 2 + (i + 1) * _ENTRY] for i in range(count)]
        kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_PIXELS]
    except struct.error:  # the directory is cut
        return image
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)  # and no further one
    return image[:at] + directory + image[at + len(directory) :]
