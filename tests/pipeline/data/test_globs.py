import glob
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.globs import has_glob, parse_glob
from pipeline.errors import DataError
from pipeline.storage import open_storage

FILES = (
    "a/1.jpg", "a/2.png", "a/deep/3.jpg", "b/1.jpg", "b/x[1].jpg", "c-1/4.jpg", "top.jpg", "train-000.tar",
    "train-001.tar", "val-000.tar",
)  # fmt: skip


def matched(uri: str) -> list[str]:
    """The files that match as a whole, as absolute paths."""
    parsed = parse_glob(uri)
    root = open_storage(parsed.root)
    found = (entry.path for prefix in parsed.prefixes() for entry in root.list(prefix))
    hits = [path for path in found if (hit := parsed.match(path)) is not None and hit[1] == path.count("/") + 1]
    return sorted(str(root.local_path(path)) for path in hits)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for path in FILES:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


parts = st.sampled_from(["*", "**", "a", "?", "[ab]", "[!a]", "c-?", "*.jpg", "[0-9].*", "x[[]1].jpg", "deep", "d*p"])


@settings(max_examples=300)
@given(st.lists(parts, min_size=1, max_size=4))
def test_they_match_what_python_finds(tree: Path, pattern: Sequence[str]) -> None:
    written = f"{glob.escape(str(tree))}/{'/'.join(pattern)}"
    expected = sorted({path for path in glob.glob(written, recursive=True) if os.path.isfile(path)})
    plain = f"{tree}/{'/'.join(pattern)}"
    if has_glob("/".join(pattern)):
        assert matched(plain) == expected
        assert matched(Path(tree).as_uri() + "/" + "/".join(pattern)) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{a,b}/1.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("{a/{1,2},b/1}.*", ["a/1.jpg", "a/2.png", "b/1.jpg"]),
        ("train-{000..001}.tar", ["train-000.tar", "train-001.tar"]),
        ("{train,val}-*.tar", ["train-000.tar", "train-001.tar", "val-000.tar"]),
        ("{a}/*.jpg", []),  # braces around one name are a name
        ("**/{3,4}.jpg", ["a/deep/3.jpg", "c-1/4.jpg"]),
    ],
)
def test_alternatives(tree: Path, pattern: str, expected: list[str]) -> None:
    assert matched(f"{tree}/{pattern}") == [str(tree / path) for path in expected]


def test_numbers_in_braces() -> None:
    assert len(parse_glob("/data/train-{000000..000146}.tar").patterns) == 147
    assert parse_glob("/data/{9..11}/*.jpg").texts == ("/data/9/*.jpg", "/data/10/*.jpg", "/data/11/*.jpg")
    assert parse_glob("/data/{2..1}").texts == ("/data/2", "/data/1")
    with pytest.raises(DataError, match=r"alternatives\. Use"):
        parse_glob("/data/{1..1000000}")


def test_only_what_can_match_is_listed() -> None:
    assert parse_glob("/data/{cat,dog}/*.jpg").prefixes() == ["cat", "dog"]
    assert parse_glob("/data/{cat,cat/deep,dog}/*.jpg").prefixes() == ["cat", "dog"]
    assert parse_glob("/data/*/x").prefixes() == [""]
    assert parse_glob("s3://bucket/a/b/*/x").root == "s3://bucket/a/b"
    assert parse_glob("s3://bucket/*").root == "s3://bucket"
    with pytest.raises(DataError, match="a bucket cannot be chosen by a glob"):
        parse_glob("s3://b*/x")


def test_a_folder_that_matches_has_the_files_below_it() -> None:
    parsed = parse_glob("/data/n0*")
    assert parsed.match("n01/deep/1.jpg") == (0, 1)
    assert parsed.match("n01") == (0, 1)
    assert parsed.match("m01/1.jpg") is None
    assert parse_glob("/data/*/").match("loose.jpg") is None
    assert parse_glob("/data/{a,b}").match("b/1.jpg") == (1, 1)


def test_names_with_special_characters(tmp_path: Path) -> None:
    folder = tmp_path / "shots [2020]" / "cat?"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"x")
    uri = f"{tmp_path}/shots [2020]/*/*.jpg"
    assert open_storage(parse_glob(uri).root).local_path() == tmp_path / "shots [2020]"
    assert matched(uri) == [str(folder / "1.jpg")]
    assert matched(f"{tmp_path.as_uri()}/shots%20%5B2020%5D/cat%3F/*.jpg") == [str(folder / "1.jpg")]
