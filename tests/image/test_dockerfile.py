"""What can be said of Dockerfile and .dockerignore without building anything."""

import re
import tomllib

from tests.support import PROJECT
from tests.support.chart import pod_specs, rendered

Stage = list[tuple[str, str]]  # instructions and their arguments


def stages() -> dict[str, Stage]:
    """The stages by name, the last one as `final`; what stands before the first is `""`."""
    text = "\n".join(line for line in (PROJECT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    found: dict[str, Stage] = {"": []}
    name = ""
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "final"
            found[name] = []
        found[name].append((word, rest.strip()))
    return found


def copied(stage: Stage) -> list[str]:
    """What a stage takes from the files of the project."""
    sources = [rest.split()[:-1] for word, rest in stage if word in ("COPY", "ADD") and "--from=" not in rest]
    return [source for each in sources for source in each]


def test_the_builder_is_given_what_is_copied_and_nothing_else() -> None:
    first, *rules = [
        line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*"
    let_through = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert let_through == {source for stage in stages().values() for source in copied(stage)}
    assert all((PROJECT / name).exists() for name in let_through)


def test_every_package_is_copied() -> None:
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert {name.rstrip("*") for name in packages["include"]} <= set(copied(stages()["code"]))


def test_code_moves_no_layer_of_packages() -> None:
    found = stages()
    assert found["final"][0] == ("FROM", "packages")
    below = [found[name] for name in ("system", "requirements", "packages")]
    assert {source for stage in below for source in copied(stage)} == {"pyproject.toml", "constraints.txt"}
    assert copied(found["packages"]) == copied(found["final"]) == []


def test_base_is_a_version_that_the_constraints_are_for() -> None:
    (base,) = [rest.removeprefix("BASE=") for word, rest in stages()[""] if word == "ARG"]
    (python,) = re.findall(r"Python (\d+\.\d+)", (PROJECT / "constraints.txt").read_text())
    assert re.search(rf":{re.escape(python)}-slim-\w+$", base)  # never `latest`


def test_user_is_the_chart_s_and_a_number() -> None:
    (user,) = [rest for word, rest in stages()["final"] if word == "USER"]
    contexts = [spec["securityContext"] for _, spec in pod_specs(rendered("everything")).values()]
    assert {f"{context['runAsUser']}:{context['runAsGroup']}" for context in contexts} == {user}
    assert re.fullmatch(r"\d+:\d+", user)
