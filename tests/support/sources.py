"""Small sources made for tests: images, folders, Parquet files and tars with known pixels and labels."""

import io
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.storage.base import Storage


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(number: int, width: int = 12, height: int = 10) -> Image.Image:
    """A picture of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def examples(count: int, classes: int = 3) -> list[tuple[bytes, int]]:
    return [(encoded(picture(i)), i % classes) for i in range(count)]


def put_folder(storage: Storage, images: Sequence[tuple[bytes, int]]) -> None:
    for i, (image, label) in enumerate(images):
        storage.write(f"class{label}/{i:03d}.png", image)
    first = f"class{images[0][1]}"
    storage.write(f"{first}/notes.txt", b"no image")
    storage.write(f"{first}/.hidden.png", b"no image")
    storage.write("loose.png", b"an image in no class")


def parquet(images: Sequence[tuple[bytes | None, Any]], names: tuple[str, str] = ("image", "label")) -> bytes:
    """In the Hugging Face image layout, in row groups of 5."""
    files = [{"bytes": image, "path": f"{i}.png"} for i, (image, _) in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({names[0]: pa.array(files, kind), names[1]: [label for _, label in images]})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=5)
    return file.getvalue()


def tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def webdataset(images: Sequence[tuple[bytes, int]]) -> bytes:
    members = [("part/", b"")]
    for i, (image, label) in enumerate(images):
        members += [(f"part/{i:03d}.png", image), (f"part/{i:03d}.txt", b"a caption")]
        members += [
            (f"part/{i:03d}.json", b'{"label": %d}' % label) if i % 2 else (f"part/{i:03d}.cls", b"%d\n" % label)
        ]
    return tar(members[1:])


def put_source(storage: Storage, layout: str, images: Sequence[tuple[bytes, int]]) -> None:
    """The images in this layout, cut into two files where it has files."""
    half = len(images) // 2
    if layout == "folder":
        put_folder(storage, images)
    elif layout == "parquet":
        storage.write("a.parquet", parquet(images[:half]))
        storage.write("b.parquet", parquet(images[half:]))
    else:
        storage.write("a.tar", webdataset(images[:half]))
        storage.write("b.tar", webdataset(images[half:]))


def huge_png(width: int, height: int) -> bytes:
    """A small PNG file whose header promises width x height pixels."""
    import struct
    import zlib

    small = encoded(Image.new("L", (1, 1)))
    header = struct.pack(">II", width, height) + small[24:29]
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return small[:16] + header + checksum + small[33:]
