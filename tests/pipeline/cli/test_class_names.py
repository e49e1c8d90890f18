"""`sample --class` takes a class by its name or its number, and `data index` says what it found."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.labels import label_of
from pipeline.errors import ConfigError
from tests.support import sources

NUMBERS = [str(number) for number in range(1, 13)]


@pytest.mark.parametrize(
    ("given", "names", "label"),
    [
        ("cat", ["ant", "cat"], 1),
        ("1", ["ant", "cat"], 1),
        ("2", NUMBERS, 1),  # the folder 2, not the label 2
        ("12", NUMBERS, 11),
        ("2", [f"{number:02}" for number in range(1, 13)], 1),  # the folder 02, not the label 2
        ("007", ["1", "7"], 1),
        ("7", ["007", "7"], 1),
        ("1", ["1a", "2b"], 1),  # not all names are numbers
        ("7", [], 7),
    ],
)
def test_a_name_goes_before_a_number(given: str, names: list[str], label: int) -> None:
    assert label_of(given, names, max(len(names), 10)) == label


@pytest.mark.parametrize(
    ("given", "names", "said"),
    [
        ("cta", ["ant", "cat"], "Did you mean 'cat'"),
        ("zebra", ["ant", "cat"], "Choose one of ant, cat"),
        ("zebra", [], "from 0 to 9: no names are known"),
        ("0", NUMBERS, "there is no class of this name. Choose one of 1, 2, 3"),  # label 0 is the folder 1
        ("5", ["1", "2", "3", "4", "6", "8", "9", "10"], "there is no class of this name"),  # label 5 is the folder 8
        ("10", [], "--class 10 is out of range. Choose a class from 0 to 9"),
        ("-1", [], "from 0 to 9"),
        ("²", [], "from 0 to 9"),
    ],
)
def test_no_such_class(given: str, names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        label_of(given, names, 10)


def test_index_says_what_was_chosen_and_what_is_not_read(tmp_path: Path) -> None:
    for name in ("train/[ant]/1.png", "val/[ant]/2.png", "test/[ant]/3.png", "train/[ant]/notes.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sources.encoded(sources.picture(1)))
    words = ["data", "index", "quickstart", "--root", str(tmp_path / "runs"), "--set", "data.format=folder"]
    done = CliRunner().invoke(app, [*words, "--set", f"data.uri={tmp_path}/images"])
    assert done.exit_code == 0, done.output
    assert f"data.uri {tmp_path}/images: train/ trains, val/ validates; left out: test/\n" in done.output
    assert "not read: 1 .txt\n" in done.output
