"""Images in WebDataset tars: the index of a tar's samples, units of work cut by it, and how their images are read.

A tar is read twice, once for its index (headers and labels: the images are skipped where the tar can be sought in) and
once for its images, by units of which each reads its own range of bytes only. A compressed tar cannot be entered in the
middle, so it is one unit. Which member belongs to which is in `tar_samples.py`, the format in `tar_members.py`.
"""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from pydantic import Base64Bytes, BaseModel, ConfigDict

from pipeline.data.endings import HEIF_ENDINGS
from pipeline.data.raw import RawExample, check_heif, check_label, too_large
from pipeline.data.split import Split
from pipeline.data.tar_members import BLOCK, TarMembers, TarStream, opened_tar, read_body, readable_name
from pipeline.data.tar_samples import IMAGE_ENDINGS, LABEL_ENDINGS, Label, Sample, TarImage, group_samples, label_of
from pipeline.storage import open_storage

_LABEL_BYTES = 16 << 20  # of a .cls or .json member, which may hold captions and more
_SCHEMA = pa.schema([("offset", pa.int64()), ("key", pa.string()), ("label", pa.int32()), ("bytes", pa.int64())])
_TWICE = "the key occurs twice in its tar; the first one is used"


class TarIndex(BaseModel):
    """The samples of a tar, packed: 1.3 million in 40 MB."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    compressed: bool
    rows: int
    samples: Base64Bytes  # `_packed`
    excluded: tuple[tuple[str, str], ...]  # keys and reasons: for the quarantine
    skipped: dict[str, int]  # numbers of members by reason: no images by intention


@dataclass(frozen=True)
class TarUnit:
    """Some samples of one tar."""

    index: int
    split: Split | None
    uri: str
    path: str
    rows: int
    samples: bytes  # `_packed`
    excluded: tuple[tuple[str, str], ...]  # keys and reasons; the whole tar's, in its first unit

    def read(self) -> Iterator[RawExample]:
        """The images in the order of the tar."""
        samples = list(_unpacked(self.samples))
        if not samples:
            return
        begin, content = -1, b""
        with opened_tar(open_storage(self.uri), self.path, samples[0].offset - BLOCK) as stream:
            for offset, key, label, size in samples:
                where = f"{self.path}/{key}"
                if offset != begin:  # links have the bytes of another sample
                    begin, content = offset, read_body(stream, offset, size, where)
                yield RawExample(where, label, content)

    def labels(self) -> Iterator[tuple[str, int]]:
        """The key and label of each image."""
        for sample in _unpacked(self.samples):
            yield f"{self.path}/{sample.key}", sample.label


def tar_units(first: int, split: Split | None, root: str, index: TarIndex, size: int) -> Iterator[TarUnit]:
    """Units of `size` samples each; a compressed tar is one, as is one without samples."""
    table = pa.ipc.open_stream(index.samples).read_all()
    size = max(1, index.rows) if index.compressed else size
    for i, start in enumerate(range(0, max(1, index.rows), size)):
        part = table.slice(start, size)
        excluded = index.excluded if start == 0 else ()
        yield TarUnit(first + i, split, root, index.path, part.num_rows, _packed(part), excluded)


def index_tar(uri: str, path: str, classes: int) -> TarIndex:
    """Read the headers and labels of a tar.

    DataError if it is damaged or cut, and for an image without a label, or with one outside of 0 to classes - 1.
    """
    with opened_tar(open_storage(uri), path) as stream:
        members, archive = _Sorted(path), TarMembers(stream)
        for member in archive:
            members.add(member, stream)
        compressed = stream.compressed
    members.resolve_links()
    check_heif(f"{uri}/{path}", [image.name for image in members.images.values() if f".{image.ending}" in HEIF_ENDINGS])
    if archive.garbage_at is not None:
        members.excluded.append(("", f"what follows its end mark, from byte {archive.garbage_at} on, is no tar"))
    if archive.zeros:
        members.excluded.append(("", f"it ends with {archive.zeros} zero bytes, as an interrupted download does"))
    found = group_samples(members.images.values(), members.labels, members.unlabelled, path)
    for sample in found.samples:
        check_label(sample.label, f"{path}/{sample.key}", classes)
    excluded = tuple((f"{path}/{name}".rstrip("/"), reason) for name, reason in (*members.excluded, *found.excluded))
    return TarIndex.model_construct(
        path=path,
        compressed=compressed,
        rows=len(found.samples),
        samples=_packed(_table(found.samples)),
        excluded=excluded,
        skipped=dict(sorted((members.skipped + found.skipped).items())),
    )


@dataclass
class _Sorted:
    """The members of a tar by what they are."""

    path: str
    images: dict[str, TarImage] = field(default_factory=dict)  # by name with the ending in lower case
    labels: dict[str, Label] = field(default_factory=dict)  # likewise
    unlabelled: set[str] = field(default_factory=set)  # .json without "label"
    links: list[tuple[str, str]] = field(default_factory=list)  # names and targets
    excluded: list[tuple[str, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, member: tarfile.TarInfo, stream: TarStream) -> None:
        name = readable_name(member.name)
        if member.isdir():
            return
        if _is_hidden(name):
            self.skipped["hidden"] += 1
            return
        stem, ending = _parts(name)
        if ending not in IMAGE_ENDINGS and ending not in LABEL_ENDINGS:
            self.skipped[f".{ending}" if ending else "no ending"] += 1
        elif member.issym() or member.islnk():
            self.links.append((f"{stem}.{ending}", _target(name, member)))
        elif not member.isreg() or member.issparse():
            self.excluded.append((name, f"no ordinary file, but a tar member of type {member.type!a}"))
        elif ending in IMAGE_ENDINGS:
            self._add_image(TarImage(stem, ending, member.offset_data, member.size))
        else:
            self._add_label(f"{stem}.{ending}", member, stream)

    def _add_image(self, image: TarImage) -> None:
        if image.name in self.images:
            self.excluded.append((image.name, _TWICE))
        elif reason := too_large(image.bytes):
            self.excluded.append((image.name, reason))
        else:
            self.images[image.name] = image

    def _add_label(self, name: str, member: tarfile.TarInfo, stream: TarStream) -> None:
        if member.size > _LABEL_BYTES:
            label: Label | None = f"its label {name} has {member.size} bytes, more than {_LABEL_BYTES}"
        else:
            content = stream.body(member.size)
            if len(content) < member.size:
                raise tarfile.ReadError(f"it is cut within {name}")
            label = label_of(name, content, f"{self.path}/{name}")
        self._set_label(name, label)

    def _set_label(self, name: str, label: Label | None) -> None:
        if label is None:
            self.unlabelled.add(name)
        elif self.labels.get(name, label) != label:
            self.labels[name] = f"its label {name} occurs twice, with different values"
        else:
            self.labels[name] = label

    def resolve_links(self) -> None:
        """Links to images and labels of the same tar stand for them; an image behind any other link is excluded."""
        for name, target in self.links:
            stem, ending = _parts(name)
            if target in self.images:
                found = self.images[target]
                self._add_image(TarImage(stem, ending, found.offset, found.bytes))
            elif target in self.labels or target in self.unlabelled:
                self._set_label(name, self.labels.get(target))
            elif ending in IMAGE_ENDINGS:
                self.excluded.append((name, f"a link to {target}, which is no image in its tar"))


def _parts(name: str) -> tuple[str, str]:
    """A path without its ending, and the ending in lower case: what follows the last dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.rpartition(".")
    return (f"{folder}{slash}{stem}", ending.lower()) if stem else (name, "")


def _target(name: str, member: tarfile.TarInfo) -> str:
    """The name of the member that a link leads to; a hard link's is a path in the tar, a symbolic one's is relative."""
    link = member.linkname
    if member.issym():
        link = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    stem, ending = _parts(readable_name(link))
    return f"{stem}.{ending}"


def _is_hidden(name: str) -> bool:
    """Dot files, and what macOS and pax leave in tars."""
    parts = name.split("/")
    return any(part.startswith((".", "__MACOSX", "PaxHeader")) and part != ".." for part in parts)


def _table(samples: list[Sample]) -> pa.Table:
    arrays = [pa.array([sample[i] for sample in samples], kind.type) for i, kind in enumerate(_SCHEMA)]
    return pa.table(arrays, schema=_SCHEMA)


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _unpacked(packed: bytes) -> Iterator[Sample]:
    for batch in pa.ipc.open_stream(packed):
        yield from map(Sample, *(column.to_pylist() for column in batch.columns))
