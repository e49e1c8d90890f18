"""What a file of a source is: by its ending, by the first bytes of one without ending, and which files are no data.

Only names and at most `TAR_HEAD` bytes are looked at here. Whether an image can be read is decided in `decode.py`.
"""

import re
import zlib
from pathlib import PurePosixPath
from typing import Literal

HEAD = 32  # bytes that `image_kind` needs
TAR_HEAD = 4096  # bytes that `is_tar` needs
NO_ENDING = "no ending"

# What Pillow registers for the formats that `decode.py` allows (a test compares them), and other names of the same.
IMAGE_ENDINGS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jif",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
    }
    | {".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".avif", ".avifs"}
)
HEIF_ENDINGS = frozenset({".heic", ".heif", ".hif"})  # read by pillow-heif
# Tars of which `tars.py` knows the compression by their content; it refuses zstd in one line.
_COMPRESSED_TARS = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
ENDINGS = {
    "folder": IMAGE_ENDINGS | HEIF_ENDINGS,
    "parquet": frozenset({".parquet"}),
    "webdataset": frozenset({".tar", ".tgz", ".tbz", ".tbz2", ".txz", *_COMPRESSED_TARS}),
}
# Endings of files that are looked into, whether they are what the layout reads.
UNDECIDED = {"folder": frozenset({""}), "parquet": frozenset[str](), "webdataset": frozenset({"", ".gz"})}

# Left by operating systems, network drives, archivers and Spark.
_JUNK_FOLDERS = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "__pycache__"}
_JUNK_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "_success"}

_MAGIC = (
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|P[1-6Ff]\s"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|....ftypavi[fs]"
)
_IMAGE = re.compile(_MAGIC, re.DOTALL)
_HEIF = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)


def is_ignored(path: str) -> bool:
    """Whether a file is hidden, left by an operating system, or a marker of a folder on S3: no part of the source."""
    *folders, name = path.split("/")
    if not name or name.lower() in _JUNK_FILES:
        return True
    return any(part.startswith(".") for part in (*folders, name)) or any(map(is_junk_folder, folders))


def is_junk_folder(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK_FOLDERS


def readable(name: str) -> str:
    """A name as text that can be shown and stored: bytes that are not UTF-8 are written as \\xNN."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def ending_of(path: str) -> str:
    """The `readable` ending in lower case; `.tar.gz` and the like as a whole; empty without one."""
    name = readable(PurePosixPath(path).name.lower())
    compressed = next((ending for ending in _COMPRESSED_TARS if name.endswith(ending)), None)
    return compressed or PurePosixPath(name).suffix


def image_kind(head: bytes) -> Literal["image", "heif"] | None:
    """What the first `HEAD` bytes of a file show: an image that is read, one that needs pillow-heif, or neither."""
    if _HEIF.match(head):
        return "heif"
    return "image" if _IMAGE.match(head) else None


def is_tar(head: bytes) -> bool:
    """Whether the first `TAR_HEAD` bytes of a file begin a tar, plain or gzipped."""
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 512)
        except zlib.error:
            return False
    return head[257:262] == b"ustar"
