"""Whatever a tar can hold is read, or counted with its reason; what is no whole tar is refused in one line."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import tar_members, tars
from pipeline.data.raw import RawExample
from pipeline.data.tar_samples import IMAGE_ENDINGS
from pipeline.data.tars import TarIndex, index_tar, tar_units
from pipeline.errors import DataError
from pipeline.storage.uri import open_storage
from tests.support.sources import tar

CLASSES = 10


def indexed(root: str, content: bytes, path: str = "t.tar") -> TarIndex:
    open_storage(root).write(path, content)
    return index_tar(root, path, CLASSES)


def read(root: str, index: TarIndex, size: int = 1000) -> list[RawExample]:
    return [example for unit in tar_units(0, None, root, index, size) for example in unit.read()]


def found_in(root: Path, members: list[tuple[str, bytes]]) -> tuple[dict[str, tuple[int, bytes]], TarIndex]:
    """{key without the tar: (label, image)}, and the index."""
    index = indexed(root.as_uri(), tar(members))
    examples = read(root.as_uri(), index)
    assert len({example.key for example in examples}) == len(examples) == index.rows
    return {key.removeprefix("t.tar/"): (label, image) for key, label, image in examples}, index


# --- which member belongs to which ---


def test_keys_may_have_dots(tmp_path: Path) -> None:
    """All images of `v1.NNN` are one sample of WebDataset, with one field for each of them."""
    members = [("000.jpg", b"a"), ("000.cls", b"1"), ("v1.001.jpg", b"b"), ("v1.001.cls", b"2")]
    found, index = found_in(tmp_path, [*members, ("v1.002.JPG", b"c"), ("v1.002.CLS", b"3")])
    assert found == {"000": (1, b"a"), "v1.001": (2, b"b"), "v1.002": (3, b"c")}
    assert (index.excluded, index.skipped) == ((), {})


def test_fields_may_have_dots(tmp_path: Path) -> None:
    members = [("d.x/1.seg.png", b"mask"), ("d.x/1.jpg", b"a"), ("d.x/1.cls", b"4"), ("d.x/1.caption.txt", b"")]
    found, index = found_in(tmp_path, [*members, ("2.image.jpg", b"b"), ("2.cls", b"5")])
    assert found == {"d.x/1": (4, b"a"), "2.image": (5, b"b")}
    assert index.skipped == {".seg.png beside the sample's image": 1, ".txt": 1}


def test_which_of_several_images_is_meant(tmp_path: Path) -> None:
    members = [("1.png", b"depth"), ("1.jpg", b"a"), ("1.cls", b"4")]
    left_right = [("2.left.jpg", b"l"), ("2.right.jpg", b"r"), ("2.cls", b"5")]
    found, index = found_in(tmp_path, [*members, *left_right])
    assert found == {"1": (4, b"a")}
    assert index.skipped == {".png beside the sample's image": 1}
    assert [key for key, _ in index.excluded] == ["t.tar/2.left.jpg", "t.tar/2.right.jpg"]
    assert "which is meant cannot be told" in index.excluded[0][1]


@pytest.mark.parametrize("ending", sorted(IMAGE_ENDINGS))
def test_every_ending_is_read_beside_any_other(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.raw.HEIF", True)
    found, _ = found_in(tmp_path, [("1.jpg", b"a"), ("1.cls", b"1"), (f"2.{ending}", b"b"), ("2.cls", b"2")])
    assert found == {"1": (1, b"a"), "2": (2, b"b")}


def test_heif_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.raw.HEIF", False)
    with pytest.raises(DataError, match=r"t.tar: 1 HEIF images, such as 1\.heic, need pillow-heif"):
        found_in(tmp_path, [("1.heic", b"a"), ("1.cls", b"1")])


def test_labels_may_come_anywhere(tmp_path: Path) -> None:
    members = [("3.json", b'{"label": 3}'), ("1.jpg", b"a"), ("2.jpg", b"b"), ("3.jpg", b"c"), ("2.cls", b" 2\n")]
    found, _ = found_in(tmp_path, [*members, ("2.json", b"no JSON"), ("1.json", b'{"label": "1", "text": "x"}')])
    assert found == {"1": (1, b"a"), "2": (2, b"b"), "3": (3, b"c")}


def test_keys_that_come_twice(tmp_path: Path) -> None:
    """In a row, or later: the first image is used, the second one counted; of two labels none is believed."""
    members = [("1.jpg", b"a"), ("1.cls", b"1"), ("1.jpg", b"b"), ("2.jpg", b"c"), ("2.cls", b"2"), ("1.jpg", b"d")]
    twice = [("2.cls", b"2"), ("3.jpg", b"e"), ("3.cls", b"3"), ("3.cls", b"4")]
    found, index = found_in(tmp_path, [*members, *twice])
    assert found == {"1": (1, b"a"), "2": (2, b"c")}
    assert Counter(index.excluded) == {
        ("t.tar/1.jpg", "the key occurs twice in its tar; the first one is used"): 2,
        ("t.tar/3.jpg", "its label 3.cls occurs twice, with different values"): 1,
    }


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", b"")], r"t\.tar/1: the image has no label\. Add"),
        ([("1.png", b""), ("1.json", b"{}")], r't\.tar/1\.json: "label" is missing'),
        ([("1.png", b""), ("1.json", b"[1]")], '"label" is missing'),
        ([("1.png", b""), ("1.json", b"[" * 100_000)], '"label" is missing'),
        ([("1.png", b""), ("1.json", b'{"label": Infinity}')], "label inf is infinite"),
        ([("1.png", b""), ("1.json", b'{"label": 2.5}')], "label 2.5 is not an integer"),
        ([("1.png", b""), ("1.cls", b"cat")], r"t\.tar/1\.cls: label 'cat' is not an integer"),
        ([("1.png", b""), ("1.cls", b"10")], "label 10 is out of range, data.classes is 10"),
        ([("1.png", b""), ("1.cls", b"99999999999999999999999")], "is out of range"),
        ([("1.png", b""), ("1.cls", b"-1")], "label -1 is out of range"),
    ],
)
def test_labels_that_are_none(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        found_in(tmp_path, members)


STEMS = st.sampled_from(["0", "1", "v1.0", "v1.1", "d/0", "0.b", "v1.0.c", "d.e/f"])
IMAGES = st.tuples(STEMS, st.sampled_from(["jpg", "png", "JPG", "tif"])).map(".".join)
OTHERS = st.tuples(STEMS, st.sampled_from(["cls", "json", "txt", "npy"])).map(".".join)


@settings(max_examples=80)
@given(st.lists(IMAGES | OTHERS, max_size=14), st.integers(1, 4))
def test_no_image_is_lost(tmp_path_factory: pytest.TempPathFactory, names: list[str], size: int) -> None:
    """Each image of a random tar is read with the nearest label, excluded with a reason, or beside a sample's image."""
    root = tmp_path_factory.mktemp("tars").as_uri()
    least = [f"{PurePosixPath(name).parent / PurePosixPath(name).name.partition('.')[0]}.cls" for name in names]
    names = [*names, *sorted({*least} - {*names})]  # WebDataset's key has a label, so that none is without
    members = [(name, f"bytes {i}".encode() if is_image(name) else label_in(name, i)) for i, name in enumerate(names)]
    index = indexed(root, tar(members))
    examples = read(root, index, size)
    assert [*examples] == read(root, index)
    images = Counter(name for name in names if is_image(name))
    beside = sum(count for reason, count in index.skipped.items() if "beside" in reason)
    assert len(examples) + len(index.excluded) + beside == images.total()
    labels: dict[str, set[int]] = {}
    for i, (name, _) in enumerate(members):
        if not is_image(name) and not name.endswith((".txt", ".npy")):
            labels.setdefault(name, set()).add(i % CLASSES)
    for key, label, image in examples:
        (name,) = [name for name, content in members if content == image]
        assert key == f"t.tar/{name.rpartition('.')[0]}"
        assert {label} == nearest(name.rpartition(".")[0], labels)
    used = {key.removeprefix("t.tar/") for key, _, _ in examples}
    for stem in {name.rpartition(".")[0] for name in images}:
        own = labels.get(f"{stem}.cls", labels.get(f"{stem}.json", set()))
        assert stem in used or len(own) != 1, "an image with one label of its own name is read"


def is_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".png", ".tif"))


def label_in(name: str, i: int) -> bytes:
    return b'{"label": %d}' % (i % CLASSES) if name.endswith(".json") else b"%d" % (i % CLASSES)


def nearest(stem: str, labels: dict[str, set[int]]) -> set[int]:
    path = PurePosixPath(stem)
    parts = path.name.split(".")
    for n in range(len(parts), 0, -1):
        for ending in ("cls", "json"):
            found = labels.get(f"{path.with_name('.'.join(parts[:n]))}.{ending}")
            if found:
                return found
    raise AssertionError(stem)


# --- members that are no plain files, and odd names ---


def made(fill: Callable[[tarfile.TarFile], None], kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        fill(archive)
    return file.getvalue()


def put(archive: tarfile.TarFile, name: str, content: bytes = b"", **more: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in more.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def test_links(any_root: str) -> None:
    """To an image or a label of the tar they stand for it; another one is excluded."""

    def fill(archive: tarfile.TarFile) -> None:
        put(archive, "d/4.jpg", type=tarfile.SYMTYPE, linkname="../e/1.jpg")  # before what it leads to
        put(archive, "d/4.cls", b"4")
        put(archive, "e/1.jpg", b"one")
        put(archive, "e/1.cls", b"1")
        put(archive, "e/2.jpg", type=tarfile.LNKTYPE, linkname="e/1.jpg")
        put(archive, "e/2.cls", type=tarfile.LNKTYPE, linkname="e/1.cls")
        put(archive, "e/3.jpg", type=tarfile.SYMTYPE, linkname="/data/elsewhere.jpg")
        put(archive, "e/3.cls", b"3")

    index = indexed(any_root, made(fill))
    for size in (1, 2, 9):
        examples = read(any_root, index, size)
        assert sorted(examples) == [("t.tar/d/4", 4, b"one"), ("t.tar/e/1", 1, b"one"), ("t.tar/e/2", 1, b"one")]
    assert index.excluded == (("t.tar/e/3.jpg", "a link to data/elsewhere.jpg, which is no image in its tar"),)


def test_members_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.raw.MAX_IMAGE_BYTES", 5)
    monkeypatch.setattr(tars, "_LABEL_BYTES", 3)

    def fill(archive: tarfile.TarFile) -> None:
        put(archive, "d.jpg/", type=tarfile.DIRTYPE)
        put(archive, "1.jpg", type=tarfile.FIFOTYPE)
        put(archive, "2.jpg", b"sparse", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.map": "0,6"})
        put(archive, "3.jpg", b"larger")
        put(archive, "4.jpg", b"a")
        put(archive, "4.cls", b"0000")
        for hidden in ("._5.jpg", ".cache/5.jpg", "__MACOSX/5.jpg", "./PaxHeaders.1/5.jpg"):
            put(archive, hidden, b"x")
        put(archive, "README", b"x")
        put(archive, "../6.jpg", b"f")
        put(archive, "../6.cls", b"6")

    index = indexed(tmp_path.as_uri(), made(fill))
    assert read(tmp_path.as_uri(), index) == [("t.tar/../6", 6, b"f")]
    reasons = dict(index.excluded)
    assert sorted(reasons) == ["t.tar/1.jpg", "t.tar/2.jpg", "t.tar/3.jpg", "t.tar/4.jpg"]
    assert "type b'6'" in reasons["t.tar/1.jpg"]
    assert "no ordinary file" in reasons["t.tar/2.jpg"]
    assert reasons["t.tar/3.jpg"] == "6 bytes are more than 5"
    assert reasons["t.tar/4.jpg"] == "its label 4.cls has 4 bytes, more than 3"
    assert index.skipped == {"hidden": 4, "no ending": 1}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_kinds(kind: int, tmp_path: Path) -> None:
    long = "/".join(["folder"] * 12) + "/" + "n" * 90  # in two fields, a member of its own, or an extended header

    def fill(archive: tarfile.TarFile) -> None:
        archive.encoding = "latin-1"
        for stem in ("./plain", "/absolute", long, "caf\xe9"):
            put(archive, f"{stem}.jpg", stem.encode())
            put(archive, f"{stem}.cls", b"1")

    found = read(tmp_path.as_uri(), indexed(tmp_path.as_uri(), made(fill, kind)))
    cafe = "caf\xe9" if kind == tarfile.PAX_FORMAT else "caf\\xe9"  # pax names are UTF-8
    assert [key for key, _, _ in found] == [f"t.tar/{stem}" for stem in ("plain", "absolute", long, cafe)]
    assert [image for _, _, image in found] == [stem.encode() for stem in ("./plain", "/absolute", long, "caf\xe9")]


# --- the file as a whole ---

SAMPLES = [part for i in range(9) for part in ((f"{i}.jpg", b"x" * (600 * i)), (f"{i}.cls", b"%d" % i))]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_are_read_whatever_their_name(pack: Callable[[bytes], bytes], any_root: str) -> None:
    index = indexed(any_root, pack(tar(SAMPLES)), "t.tar")
    assert [label for _, label, _ in read(any_root, index)] == list(range(9))
    assert len(list(tar_units(0, None, any_root, index, 2))) == 1
    (unit,) = tar_units(0, None, any_root, index, 2)
    assert list(unit.labels()) == [(f"t.tar/{i}", i) for i in range(9)]


def test_units_are_cut_by_samples_and_skip_what_is_not_theirs(any_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "_READ_THROUGH", 1000)  # of an object in a bucket: larger gaps are not read
    index = indexed(any_root, tar(SAMPLES))
    units = list(tar_units(5, "train", any_root, index, 4))
    assert [(unit.index, unit.split, unit.rows) for unit in units] == [
        (5, "train", 4),
        (6, "train", 4),
        (7, "train", 1),
    ]
    assert [label for unit in units for _, label, _ in unit.read()] == list(range(9))
    assert [key for unit in units for key, _ in unit.labels()] == [f"t.tar/{i}" for i in range(9)]
    again = TarIndex.model_validate_json(index.model_dump_json())
    assert read(any_root, again, 3) == read(any_root, index, 3)


def test_a_tar_without_images_is_a_unit_of_none(tmp_path: Path) -> None:
    index = indexed(tmp_path.as_uri(), tar([("1.txt", b"x"), ("1.jpg", b"y"), ("1.cls", b"1"), ("1.jpg", b"z")]))
    nothing = indexed(tmp_path.as_uri(), tar([("1.txt", b"x")]), "u.tar")
    (unit,) = tar_units(0, None, tmp_path.as_uri(), nothing, 5)
    assert (unit.rows, list(unit.read()), list(unit.labels())) == (0, [], [])
    units = list(tar_units(0, None, tmp_path.as_uri(), index, 5))
    assert [len(unit.excluded) for unit in units] == [1]


def test_tars_behind_each_other_are_read_on(any_root: str) -> None:
    content = tar(SAMPLES[:4]) + tar(SAMPLES[4:])
    for name, packed in (("t.tar", content), ("u.tar", gzip.compress(content))):
        assert len(read(any_root, indexed(any_root, packed, name))) == 9


def test_what_follows_the_end_and_is_no_tar_is_said(any_root: str) -> None:
    content = tar(SAMPLES)
    index = indexed(any_root, content + b"garbage" * 1000)
    assert len(read(any_root, index)) == 9
    assert index.excluded == (("t.tar", f"what follows its end mark, from byte {len(content)} on, is no tar"),)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_long_end_of_zeros_is_said(pack: Callable[[bytes], bytes], any_root: str) -> None:
    """Programs that reserve the whole file leave one of full size, with zeros from where they were interrupted."""
    whole = tar(SAMPLES)
    cut = whole[: boundaries()[8]]
    index = indexed(any_root, pack(cut + bytes(5 << 20)))
    assert len(read(any_root, index)) == index.rows < 9
    assert index.excluded[-1] == ("t.tar", f"it ends with {5 << 20} zero bytes, as an interrupted download does")
    padded = indexed(any_root, pack(whole + bytes(1 << 20)))
    assert (padded.rows, padded.excluded) == (9, ())


def test_one_block_of_zeros_is_an_end(tmp_path: Path) -> None:
    content = tar(SAMPLES)
    short = content[: len(content.rstrip(b"\0")) // 512 * 512 + 1024]
    assert indexed(tmp_path.as_uri(), short).rows == 9


def boundaries() -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(tar(SAMPLES))) as archive:
        return [member.offset for member in archive]


@pytest.mark.parametrize("cut", [0, 1, 511, 700, *boundaries()[1::4], boundaries()[-1] + 512, boundaries()[-1] + 1024])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_that_is_cut_is_damaged(pack: Callable[[bytes], bytes], cut: int, any_root: str) -> None:
    with pytest.raises(DataError, match=r"t\.tar cannot be read as a tar: .*Copy it again") as caught:
        indexed(any_root, pack(tar(SAMPLES)[:cut]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_is_cut_is_damaged(pack: Callable[[bytes], bytes], share: float, tmp_path: Path) -> None:
    content = pack(tar([(name, content[:1] + bytes(range(256)) * 3) for name, content in SAMPLES[::2]]))
    with pytest.raises(DataError, match=r"t\.tar cannot be read as a tar: .*Copy it again") as caught:
        indexed(tmp_path.as_uri(), content[: int(len(content) * share)])
    assert "\n" not in str(caught.value)


@settings(max_examples=60)
@given(st.integers(0, len(tar(SAMPLES)) - 1), st.integers(1, 255), st.booleans())
def test_flipped_bits_are_no_traceback(
    tmp_path_factory: pytest.TempPathFactory, place: int, bits: int, packed: bool
) -> None:
    """A damaged header is refused, wherever it is; a damaged body is an image's own matter."""
    root, content = tmp_path_factory.mktemp("tars").as_uri(), bytearray(tar(SAMPLES))
    content[place] ^= bits
    try:
        index = indexed(root, gzip.compress(content) if packed else bytes(content))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017  # it may also go well
    else:
        assert len(read(root, index)) + len([key for key, _ in index.excluded if key != "t.tar"]) == 9


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    content = bytearray(made(lambda archive: put(archive, "n" * 300 + ".jpg", b"x"), tarfile.GNU_FORMAT))
    content[124:136] = b"77777777777\0"  # 8 GiB of a name
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    with pytest.raises(DataError, match="a header of 8589934592 bytes"):
        indexed(tmp_path.as_uri(), bytes(content))


def test_zstd_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is compressed by zstd, which is not supported"):
        indexed(tmp_path.as_uri(), b"\x28\xb5\x2f\xfd" + bytes(600))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_that_changes_between_index_and_reading(pack: Callable[[bytes], bytes], any_root: str) -> None:
    index = indexed(any_root, pack(tar(SAMPLES)))
    open_storage(any_root).write("t.tar", pack(tar([*SAMPLES[2:12], *SAMPLES[12:]])))
    with pytest.raises(DataError, match=r"t\.tar/[0-9]: the tar has changed since the source was listed\. Run again"):
        read(any_root, index)
