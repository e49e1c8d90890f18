"""`--class 0-9,207,cat`: every way to write labels leads back to them, in order; and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.labels import labels_of
from pipeline.errors import ConfigError

CLASSES = 40
WORDS = st.text("abcxyz -", min_size=1, max_size=6).map(str.strip).filter(lambda word: word.strip("-0123456789 ") != "")


def written(labels: list[int], ranged: list[bool]) -> str:
    """The labels as numbers, and as ranges where they rise by 1 and `ranged` says so."""
    runs: list[list[int]] = []
    for label, joins in zip(labels, ranged, strict=True):
        if runs and joins and label == runs[-1][-1] + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@given(st.data())
def test_numbers_and_ranges_are_their_labels_in_order(data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=6))
    labels = list(dict.fromkeys(label for start in starts for label in range(start, min(start + 4, CLASSES))))
    ranged = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    text = written(labels, ranged)
    assert labels_of(text, [], CLASSES) == labels
    assert labels_of(text.replace(",", " , "), [], CLASSES) == labels


@given(st.lists(WORDS, min_size=1, max_size=8, unique=True), st.data())
def test_names_are_their_labels_in_order(names: list[str], data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1, unique=True))
    assert labels_of(",".join(names[label] for label in asked), names, len(names)) == asked


@pytest.mark.parametrize(
    ("text", "names", "labels"),
    [
        ("tench, Tinca tinca", ["tench, Tinca tinca", "tench", "Tinca tinca"], [0]),  # the longest name first
        ("tench,0", ["tench, Tinca tinca", "tench"], [1, 0]),
        ("1-3", ["0", "1-3"], [1]),  # a name that looks like a range
        ("2-4", ["1", "2", "3", "4"], [1, 2, 3]),  # of folders named by numbers, these
        ("02-04", ["01", "02", "03", "04"], [1, 2, 3]),
        ("5-5", [], [5]),
    ],
)
def test_a_name_goes_before_a_list_and_a_range(text: str, names: list[str], labels: list[int]) -> None:
    assert labels_of(text, names, max(len(names), 10)) == labels


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("3,1-4", [], "--class 3,1-4: class 3 is asked for twice"),
        ("cat,1", ["ant", "cat"], "class 'cat' is asked for twice"),
        ("9-0", [], "--class 9-0: the range ends before it begins. Write 0-9"),
        ("0-10", [], "--class 10 is out of range. Choose a class from 0 to 9"),
        ("0-99999999999", [], "--class 10 is out of range"),  # without counting so far
        ("1-3", ["1", "3", "5"], "--class 2: there is no class of this name"),
        ("1,,2", [], "with nothing between commas"),
        ("", [], "with nothing between commas"),
        ("1,-1", [], "--class -1"),
    ],
)
def test_what_is_refused(text: str, names: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        labels_of(text, names, max(len(names), 10))
    assert said in str(refusal.value)
