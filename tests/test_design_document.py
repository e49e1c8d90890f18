"""The documents hold what the code is: docs/design.md its rooms, faces and recipes, all of them the paths they name."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import PROJECT
from tests.test_floors import ALL, PACKAGES, ROOMS, arrows, face, room_of_file

TEXT = (PROJECT / "docs" / "design.md").read_text()
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/design.md")
OURS = ("models/", "pipeline/", "deploy/", "tests/", "docs/", "helm/", "benchmarks/", "examples/", ".github/", ".ci/")
SPAN = re.compile(r"`([^`\n]+)`")


def spans(text: str) -> list[str]:
    """What stands between backticks."""
    return SPAN.findall(text)


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 2, heading
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def defined(path: Path) -> set[str]:
    """The names that a module gives at its top: functions, classes, variables."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


# --- the map ---


def test_the_table_has_every_room_in_its_order() -> None:
    assert [spans(row[0]) for row in table("The map")] == [[room] for room in ROOMS]


@pytest.mark.parametrize("row", table("The map"), ids=lambda row: row[0].strip("`"))
def test_faces_are_the_rooms_own(row: list[str]) -> None:
    (room,) = spans(row[0])
    given = face(room) if room in PACKAGES else defined(PROJECT / "pipeline" / f"{room}.py")
    assert set(spans(row[2])) <= given
    assert bool(spans(row[2])) == bool(given), "a room with a face shows some of it"


@pytest.mark.parametrize("row", table("The map"), ids=lambda row: row[0].strip("`"))
def test_imports_are_those_that_the_table_allows(row: list[str]) -> None:
    (room,), allowed = spans(row[0]), spans(row[3])
    above = ROOMS[: ROOMS.index(room)]
    assert [other for other in allowed if other not in above] == []
    used = {wanted for one, wanted in arrows() if one == room}
    assert used <= set(allowed), f"{room} imports what docs/design.md does not say; is it meant to?"


def test_the_picture_is_of_the_rooms_and_their_imports() -> None:
    (picture,) = re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)
    inside = picture.partition("subgraph pipeline\n")[2].partition("\n  end")[0]
    (ground,) = re.findall(r'base\["([^"]+)"\]', inside)
    drawn: set[tuple[str, str]] = set()
    for left, right in re.findall(r"^\s*(\w+) --> (.+)$", inside, re.MULTILINE):
        for one in right.split(" & "):
            drawn.update((left, room) for room in (ground.split(", ") if one == "base" else [one]))
    assert {room for pair in drawn for room in pair} == set(ROOMS)
    assert [(one, other) for one, other in drawn if ROOMS.index(one) < ROOMS.index(other)] == []
    reachable = set(drawn)
    while more := {(a, d) for a, b in reachable for c, d in reachable if b == c} - reachable:
        reachable |= more
    assert arrows() <= reachable, "an import is neither drawn nor follows from what is"


def test_the_rooms_that_use_the_paper() -> None:
    (said,) = [part for part in re.split(r"\n\n|(?<=\.) ", TEXT) if part.endswith("use `models` too.")]
    used = {
        room_of_file(found.path)
        for found in ALL
        if found.path.is_relative_to(PROJECT / "pipeline") and "models" in (found.module.split(".")[0], found.name)
    }
    assert {*spans(said)} - {"models"} == used


# --- what is named is there ---


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_are_there(name: str) -> None:
    """Paths between backticks from the project's root, links from where the document is."""
    text = (PROJECT / name).read_text()
    named = {span.split()[0].rstrip("/") for span in spans(text) if span.startswith(OURS)}
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link} - {""}
    assert named | links
    assert [path for path in sorted(named) if not list(PROJECT.glob(path))] == []
    assert [link for link in sorted(links) if not (PROJECT / name).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_names_beside_paths_are_defined_there(name: str) -> None:
    """`path` (`name`, `name`): each a function, class or variable of that module."""
    text = (PROJECT / name).read_text()
    for path, names in re.findall(r"`([\w/]+\.py)` \(((?:`\w+`(?:, )?)+)\)", text):
        assert set(spans(names)) <= defined(PROJECT / path), path


def test_recipes_name_what_is_to_be_opened() -> None:
    rows = table("Where do I find it")
    assert len(rows) >= 12
    assert [row[0] for row in rows if not spans(row[1])] == []


def test_benchmarks_are_run_as_modules() -> None:
    text = (PROJECT / "README.md").read_text()
    named = re.findall(r"python -m benchmarks\.([a-z_]+)", text)
    there = {path.stem for path in (PROJECT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}
    assert set(named) == {name for name in there if not name.endswith("_side")}  # a process of a benchmark


# --- the paper and the version, where several files say them ---


def test_the_paper_is_cited_alike() -> None:
    cited = (PROJECT / "CITATION.cff").read_text()
    readme = (PROJECT / "README.md").read_text()
    (title,) = re.findall(r'^  title: "([^"]+)"', cited, re.MULTILINE)
    (url,) = re.findall(r'^  url: "([^"]+)"', cited, re.MULTILINE)
    people = re.findall(r"\{family-names: (\w+), given-names: (\w+)\}", cited)
    assert title in readme
    assert url in readme
    assert " and ".join(f"{family}, {given}" for family, given in people) in " ".join(readme.split())


def test_the_version_is_cited() -> None:
    (version,) = re.findall(r'^version = "([^"]+)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"\nversion: {version}\n" in (PROJECT / "CITATION.cff").read_text()


# --- make ---


def test_make_help_lists_every_target() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    explained = re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    assert sorted(explained) == sorted(phony.split())
