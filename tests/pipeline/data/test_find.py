import bz2
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.response import StreamingBody
from PIL import Image
from pydantic import ValidationError

from pipeline.config.schema import DataConfig
from pipeline.data.decode import FORMATS
from pipeline.data.endings import HEAD, HEIF_ENDINGS, IMAGE_ENDINGS, image_kind, is_ignored
from pipeline.data.listing import Listing, list_source
from pipeline.data.sources import work_units
from pipeline.data.tars import TarUnit
from pipeline.errors import DataError
from pipeline.storage import open_storage
from pipeline.storage.local import LocalStorage, broken_links
from tests.support import sources

PNG = sources.encoded(sources.picture(1))
HEIC = b"\0\0\0\x18ftypheic" + bytes(80)


def listed(uri: str, **more: object) -> Listing:
    return list_source(DataConfig.model_validate({"format": "folder", "uri": uri, **more}))


def test_every_ending_of_an_allowed_format_is_read() -> None:
    Image.init()
    registered = {ending for ending, name in Image.EXTENSION.items() if name in FORMATS}
    assert registered - HEIF_ENDINGS - {".heics", ".heifs"} <= IMAGE_ENDINGS
    assert IMAGE_ENDINGS - registered == {".jif", ".mpo", ".dib"}  # JPEG and BMP by other names


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"])
def test_an_image_is_known_by_its_first_bytes(kind: str) -> None:
    assert image_kind(sources.encoded(sources.picture(1), kind)[:32]) == "image"


def test_what_is_no_image_by_its_first_bytes() -> None:
    assert image_kind(HEIC[:32]) == "heif"
    for other in (b"", b"BM is how this text begins, and so on", b"P1ain", b"%PDF-1.7", bytes(32)):
        assert image_kind(other[:32]) is None


def test_files_that_are_not_read_are_counted(any_root: str) -> None:
    storage = open_storage(any_root)
    for name in ("1.JPG", "2.jpe", "3.JFIF", "4.Tif", "5.apng", "6.avif", "noending", "deep/7.png"):
        storage.write(f"ant/{name}", PNG)
    storage.write("bee/1.png", PNG)
    for name in ("bee/a.txt", "bee/b.TXT", "bee/c.mp4", "bee/text", "bee/empty", "top.csv"):
        storage.write(name, b"" if name.endswith("empty") else b"no image")
    storage.write("loose.png", PNG)
    for name in ("bee/._1.jpg", "bee/.DS_Store", "bee/Thumbs.db", "__MACOSX/ant/1.jpg", "_SUCCESS", ".git/x"):
        storage.write(name, PNG)
    found = listed(any_root)
    assert found.classes == ("ant", "bee")
    assert found.files == 9
    assert found.skipped == {".txt": 2, "no ending": 2, ".mp4": 1, ".csv": 1, "outside of class folders": 1}
    assert found.remarks == ("not read: 2 .txt, 2 no ending, 1 .mp4, 1 .csv, 1 outside of class folders",)


def test_of_files_without_ending_only_the_first_bytes_are_read(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3_root)
    for name in ("ant/1", "ant/2", "bee/1"):
        storage.write(name, PNG + bytes(50_000))
    read, found = list[int](), list[int]()
    take = StreamingBody.read
    monkeypatch.setattr(StreamingBody, "read", lambda body, size=None: counted(read, take(body, size)))
    data = DataConfig.model_validate({"format": "folder", "uri": s3_root})
    listing = list_source(data, found.append)
    assert (listing.files, listing.classes) == (3, ("ant", "bee"))
    assert sum(read) == 3 * HEAD
    assert found == [0, 3]


def counted(sizes: list[int], content: bytes) -> bytes:
    sizes.append(len(content))
    return content


def test_names_that_are_not_utf8_are_shown(tmp_path: Path) -> None:
    """The counts and the names of classes go to a screen and into JSON, which such bytes would stop."""
    LocalStorage(tmp_path).write("ant/1.png", PNG)
    (tmp_path / os.fsdecode(b"ant/notes.\xff")).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"ant/\xff.png")).symlink_to("nothing")
    found = listed(tmp_path.as_uri())
    assert found.remarks == (r"not read: 1 .\xff",)
    assert [link.path for link in found.broken] == [r"ant/\xff.png"]
    (tmp_path / os.fsdecode(b"b\xffe")).mkdir()
    with pytest.raises(DataError) as refused:
        listed(tmp_path.as_uri())
    assert r"class folder 'b\xffe' has no image" in str(refused.value)


@pytest.mark.parametrize("name", ["shard-0.gz", "shard-0", "shard-0.tbz"])
def test_tars_are_found_whatever_their_name(name: str, any_root: str) -> None:
    content = sources.webdataset(sources.examples(40))
    packs: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".tbz": bz2.compress, "": bytes}
    storage = open_storage(any_root)
    storage.write(name, packs[name[7:]](content))
    storage.write("labels.json.gz", gzip.compress(b"[" + b"1, " * 1000))
    storage.write("broken.gz", b"\x1f\x8b" + bytes(100))
    storage.write("README", b"text")
    data = DataConfig.model_validate({"format": "webdataset", "uri": any_root, "classes": 3})
    found = list_source(data)
    assert [entry.path for entry in found.train] == [name]
    assert found.skipped == {".gz": 2, "no ending": 1}
    assert sum(unit.rows for unit in work_units(found, data) if isinstance(unit, TarUnit)) == 40
    if "." in name:
        alone = data.model_copy(update={"uri": f"{any_root}/{name}"})
        assert [entry.path for entry in list_source(alone).train] == [name]


def test_a_bucket_s_folder_with_a_number_sign(s3_root: str) -> None:
    """By a glob: written out it is refused, since other programs would take another folder for it."""
    for folder in ("photos#1", "photos"):
        open_storage(s3_root).write(f"{folder}/ant/a#{folder}.png", PNG)
    with pytest.raises(ValidationError, match=r"a glob in which \? stands for it"):
        listed(f"{s3_root}/photos#1")
    (unit,) = work_units(found := listed(f"{s3_root}/photos?1/*"), DataConfig.model_validate({"uri": "x"}))
    assert found.classes == ("ant",)
    assert [example.key for example in unit.read()] == ["photos#1/ant/a#photos#1.png"]
    assert listed(f"{s3_root}/photos/") == listed(f"{s3_root}/photos")


def test_markers_of_folders_on_s3(s3_root: str) -> None:
    storage = open_storage(s3_root)
    storage.write("ant/1.png", PNG)
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    for key in ("", "ant/"):
        storage.client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"")  # type: ignore[attr-defined]
    assert listed(s3_root).classes == ("ant",)
    assert listed(s3_root).remarks == ()
    storage.client.put_object(Bucket=bucket, Key=f"{prefix}/bee/", Body=b"")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="class folder 'bee' has no image that can be read"):
        listed(s3_root)


@pytest.mark.parametrize("content", [{}, {"1.txt": b"x", "2.xyz": b"y", "3.xyz": b"y"}])
def test_a_class_without_images_is_named(content: dict[str, bytes], tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("ant/1.png", PNG)
    (tmp_path / "bird").mkdir()
    for name, data in content.items():
        storage.write(f"bird/{name}", data)
    counted = r" \(2 .xyz, 1 .txt\)" if content else r"\. Add"
    with pytest.raises(DataError, match=f"class folder 'bird' has no image that can be read{counted}"):
        listed(str(tmp_path))
    assert listed(f"{tmp_path}/a*").classes == ("ant",)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "images")
    storage.write("ant/1.png", PNG)
    storage.write("bee/1.png", PNG)
    (tmp_path / "images/ant/gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "images/bee/self.png").symlink_to("self.png")
    (tmp_path / "images/bee/notes.txt").symlink_to("nothing.txt")
    (tmp_path / "images/bee/up").symlink_to("..")
    (tmp_path / "images/loose.png").symlink_to("nothing.png")
    found = listed(storage.root)
    assert found.broken == (
        ("train", "ant/gone.png", "a link to nothing"),
        ("train", "bee/self.png", "a link to itself"),
    )
    assert found.files == 2
    assert found.skipped == {".txt": 1, "outside of class folders": 1}
    assert sorted(broken_links(tmp_path / "images")) == [
        ("ant/gone.png", "a link to nothing"), ("bee/notes.txt", "a link to nothing"),
        ("bee/self.png", "a link to itself"), ("loose.png", "a link to nothing"),
    ]  # fmt: skip
    (tmp_path / "images/cat").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match=r"class folder 'cat' has no image that can be read \(1 a link to nothing\)"):
        listed(storage.root)


def test_pipes_and_sockets_are_told(tmp_path: Path) -> None:
    """Opening a pipe to read would wait until somebody writes into it."""
    for name in ("ant/1.png", "bee/1.png"):
        LocalStorage(tmp_path).write(name, PNG)
    os.mkfifo(tmp_path / "ant/pipe.png")
    os.mkfifo(tmp_path / "ant/log.txt")
    (tmp_path / "bee/link.png").symlink_to(tmp_path / "ant/pipe.png")
    found = listed(tmp_path.as_uri())
    assert [entry.path for entry in found.train] == ["ant/1.png", "bee/1.png"]
    why = "no file, but a pipe, socket or device"
    assert [(link.path, link.reason) for link in found.broken] == [("ant/pipe.png", why), ("bee/link.png", why)]
    assert found.skipped == {".txt": 1}


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    LocalStorage(tmp_path / "store").write("1.png", PNG)
    (tmp_path / "images/ant").mkdir(parents=True)
    (tmp_path / "images/ant/1.png").symlink_to(tmp_path / "store/1.png")
    (tmp_path / "images/bee").symlink_to(tmp_path / "store")
    found = listed(str(tmp_path / "images"))
    assert [entry.path for entry in found.train] == ["ant/1.png", "bee/1.png"]
    assert found.broken == ()


def test_a_dead_link_to_a_parquet_file_is_refused(tmp_path: Path) -> None:
    LocalStorage(tmp_path).write("a.parquet", sources.parquet(sources.examples(3)))
    (tmp_path / "b.parquet").symlink_to("nothing.parquet")
    with pytest.raises(DataError, match=r"b.parquet is a link to nothing\. Restore"):
        list_source(DataConfig(format="parquet", uri=str(tmp_path), classes=3))


@pytest.mark.parametrize("name", ["1.heic", "2.HEIF", "3.hif", "noending"])
def test_heif_images_want_a_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("ant/1.png", PNG)
    storage.write(f"bird/{name}", HEIC)
    data = DataConfig(uri=str(tmp_path), classes=2)
    monkeypatch.setattr("pipeline.data.raw.HEIF", False)
    with pytest.raises(DataError, match=rf"1 HEIF images, such as bird/{name}, need pillow-heif.*\[heif\]"):
        work_units(list_source(data), data)
    monkeypatch.setattr("pipeline.data.raw.HEIF", True)
    assert len(work_units(list_source(data), data)) == 1


def test_heif_images_are_read() -> None:
    heif = pytest.importorskip("pillow_heif")
    from pipeline.data.decode import decode_image

    heif.register_heif_opener()
    image = sources.encoded(sources.picture(1, 64, 48), "HEIF")
    assert image_kind(image[:32]) == "heif"
    assert decode_image(image, None).size == (64, 48)


def test_what_is_ignored() -> None:
    for path in ("a/.x", ".a/x.jpg", "a/", "", "a/Thumbs.db", "a/desktop.ini", "__MACOSX/a/1.jpg", "@eaDir/1.jpg"):
        assert is_ignored(path)
    for path in ("a/x.jpg", "a/_x.jpg", "thumbs.db/x.jpg", "a..b/x.jpg"):
        assert not is_ignored(path)


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    LocalStorage(tmp_path).write("ant/1.png", PNG)
    os.symlink(tmp_path, tmp_path / "ant" / "again")
    assert [entry.path for entry in LocalStorage(tmp_path).list()] == ["ant/1.png"]
