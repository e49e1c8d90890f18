"""What is made of the chart's values.yaml: `python tests/chart/readme.py` writes both anew.

* README.md: its table of values, from the comments. What stands above the mark is written by hand. helm-docs would do
  likewise; this needs no program beside Python.
* defaults.json: the values by their paths, for the templates. Helm shows them no default where a value is null, or
  where `--reuse-values` brings the values of an older chart.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parents[2] / "helm" / "denoising-vae"
README = CHART / "README.md"
DEFAULTS = CHART / "defaults.json"
MARK = "<!-- Below this line, tests/chart/readme.py writes. -->\n"
Path_ = tuple[str, ...]


class Comments(NamedTuple):
    """What values.yaml says beside its values, by key."""

    descriptions: dict[Path_, str]  # comments that begin with "--"
    sections: dict[Path_, str]  # those that do not


class Row(NamedTuple):
    path: Path_
    value: Any
    description: str


def comments() -> Comments:
    found = Comments({}, {})
    path: list[tuple[int, str]] = []  # indentation and name of the keys that the line lies in
    words: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        comment, key = re.match(r" *# ?(.*)", line), re.match(r"( *)([A-Za-z][\w-]*):", line)
        if comment:
            words.append(comment[1])
        elif key:
            indent = len(key[1])
            path = [one for one in path if one[0] < indent] + [(indent, key[2])]
            if words:
                told, kind = " ".join(words), found.sections
                if told.startswith("-- "):
                    told, kind = told.removeprefix("-- "), found.descriptions
                kind[tuple(name for _, name in path)] = told
            words = []
        else:
            words = []
    return found


def values() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return made


def schema() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return made


def rows(value: Any, said: dict[Path_, str], path: Path_ = ()) -> list[Row]:
    """A row for what has a description, or else for each of its parts. A group may leave its words to groupDefaults."""
    description = said.get(path, "")
    if path[:1] == ("groups",) and not description:
        description = said.get(("groupDefaults", *path[2:]), "")
    if isinstance(value, dict) and value and not description:
        return [row for name, part in value.items() for row in rows(part, said, (*path, name))]
    return [Row(path, value, description)]


def made() -> str:
    """The whole README, as it has to be."""
    head, mark, _ = README.read_text().partition(MARK)
    assert mark, f"{README} has no mark"
    told = comments()
    whole = {name: value for name, value in values().items() if (name,) in told.descriptions}
    parts = ["## Values", _requirements(), _table(rows(whole, told.descriptions))]
    for name, value in values().items():
        if name not in whole:
            section = told.sections.get((name,))
            parts += [f"### {name}", *([section] if section else [])]
            parts.append(_table(rows({name: value}, told.descriptions)))
    return head + MARK + "\n" + "\n\n".join(parts) + "\n"


def _requirements() -> str:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    kuberay = chart["annotations"]["denoising-vae/kuberay"]
    return (
        f"Chart {chart['version']}, of the package {chart['appVersion']}. Kubernetes {chart['kubeVersion']}, "
        f"KubeRay {kuberay}."
    )


def _table(some: list[Row]) -> str:
    lines = ["| key | type | default | description |", "|---|---|---|---|"]
    for row in some:
        default = f"`{json.dumps(row.value)}`"
        cells = (f"`{'.'.join(row.path)}`", _type(row), default, row.description.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _type(row: Row) -> str:
    if row.value is None:  # only the schema knows
        told = schema_at(row.path)["type"]
        return " or ".join(told) if isinstance(told, list) else str(told)
    kinds = {bool: "boolean", int: "integer", str: "string", list: "list", dict: "object"}
    return kinds[type(row.value)]


def schema_at(path: Path_) -> dict[str, Any]:
    """The part of the schema that holds for a value."""
    whole = schema()
    here = whole
    for name in path:
        here = resolved(whole, here)["properties"][name]
    return resolved(whole, here)


def resolved(whole: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        part = whole["$defs"][part["$ref"].rpartition("/")[2]]
    return part


def defaults() -> str:
    """defaults.json, as it has to be."""
    return json.dumps(dict(by_path(values(), ())), indent=1) + "\n"


def by_path(value: Any, path: Path_) -> Iterator[tuple[str, Any]]:
    """Each value with its path, down to where the schema lets any key be: such a map is one value."""
    if path and schema_at(path).get("additionalProperties", True) is not False:
        yield ".".join(path), value
        return
    for name, part in value.items():
        yield from by_path(part, (*path, name))


if __name__ == "__main__":
    README.write_text(made())
    DEFAULTS.write_text(defaults())
