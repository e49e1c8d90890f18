"""GitHub's workflows, as far as they can be checked without GitHub: what they name is there, and nothing untrusted is
put into a shell."""

import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from tests.support import PROJECT
from tests.support.command_lines import parsed

FOLDER = PROJECT / ".github" / "workflows"
NAMES = sorted(path.name for path in FOLDER.glob("*.yaml"))
# Made by a step of the workflow itself, or on the runner.
MADE_THERE = ("build/", ".venv/bin/python", "dev/tcp", "dev/null")


def workflow(name: str) -> dict[Any, Any]:
    made: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text())
    return made


def jobs(name: str) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = workflow(name)["jobs"]
    return made


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in jobs(name).values() for step in job["steps"]]


def scripts(name: str) -> list[str]:
    return [step["run"] for step in steps(name) if "run" in step]


def commands(name: str) -> list[list[str]]:
    """The words of each line of each script, continuations joined. What is no plain command has words too."""
    found = []
    for script in scripts(name):
        for line in script.replace("\\\n", " ").splitlines():
            try:
                found.append(shlex.split(line, comments=True))
            except ValueError:  # a quotation over several lines
                continue
    return [words for words in found if words]


def test_all_are_here():
    assert NAMES == ["chart.yaml", "image.yaml", "kind.yaml", "retrain.yaml", "test.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_rights_are_named_and_few(name):
    made = workflow(name)
    assert made["permissions"]["contents"] == "read"
    granted = {}
    for rights in (made["permissions"], *(job.get("permissions", {}) for job in jobs(name).values())):
        granted.update({what: right for what, right in rights.items() if right == "write"})
    allowed = {"image.yaml": {"packages"}, "retrain.yaml": {"id-token"}}
    assert set(granted) == allowed.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_no_expression_is_put_into_a_shell(name):
    """What stands in ${{ }} is pasted into the script before bash reads it: it has to come by the environment."""
    for script in scripts(name):
        assert "${{" not in script
    for step in steps(name):
        assert "script" not in step.get("with", {})


@pytest.mark.parametrize("name", NAMES)
def test_secrets_are_given_to_single_steps(name):
    text = (FOLDER / name).read_text()
    in_steps = sum(str(step.get("env", {})).count("secrets.") for step in steps(name))
    assert text.count("${{ secrets.") == in_steps


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_of_a_version(name):
    """A tag of a major version or newer digits, or the SHA of a commit: never a branch, whose code moves."""
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert [one for one in used if one.startswith("actions/checkout@")]
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", one), one


@pytest.mark.parametrize("name", NAMES)
def test_jobs_end_and_say_so(name):
    for job in jobs(name).values():
        assert 0 < job["timeout-minutes"] < 360
    assert workflow(name)["concurrency"]["group"]
    assert workflow(name)["defaults"] == {"run": {"shell": "bash"}}, "else a pipe hides a failure"


def test_a_retraining_is_not_cut_for_another():
    made = workflow("retrain.yaml")
    assert made["concurrency"] == {"group": "retrain", "cancel-in-progress": False}
    assert set(made[True]) == {"push", "schedule", "workflow_dispatch"}  # YAML reads `on` as true


@pytest.mark.parametrize("name", NAMES)
def test_scripts_are_bash(name):
    assert scripts(name)
    for script in scripts(name):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_files_that_are_named_exist():
    checked = set()
    for name in NAMES:
        for words in commands(name):
            for word in words:
                path = word.partition("=")[2] if word.startswith("--") else word
                if not re.fullmatch(r"(\.?[A-Za-z0-9_*-]+/)+[A-Za-z0-9_.*/-]*", path) or path.startswith(MADE_THERE):
                    continue
                if (PROJECT / path.split("/")[0]).exists():
                    assert list(PROJECT.glob(path)), f"{name}: {path} is not there"
                    checked.add(path)
    assert {"helm/denoising-vae", "tests/chart", "tests/image"} <= checked
    assert ".ci/kubernetes-binaries" in checked


def test_targets_of_make_exist():
    makefile = (PROJECT / "Makefile").read_text().replace("$(INSTALLED)", ".venv/.installed")
    targets = [words[1] for name in NAMES for words in commands(name) if words[0] == "make"]
    assert "test" in targets
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_markers_of_pytest_exist():
    told = (PROJECT / "pyproject.toml").read_text()
    for name in NAMES:
        for words in commands(name):
            if "pytest" in words:
                for expression in [words[i + 1] for i, word in enumerate(words) if word == "-m" and i > 1]:
                    for marker in set(re.findall(r"\w+", expression)) - {"and", "not", "or", "pytest"}:
                        assert f'"{marker}: ' in told, marker


def test_our_commands_are_known(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:8265")  # as the workflow sets it
    found = []
    for name in NAMES:
        for words in commands(name):
            if words[:2] == ["exec", "python"]:
                words = words[1:]
            if words[:2] == ["python", "-m"] and words[2] in ("deploy", "pipeline"):
                end = next((i for i, word in enumerate(words) if word in ("|", "&", ";", ">")), len(words))
                given = [word for word in words[2:end] if word != "${options[@]}"]
                found.append(parsed(given).info_name)
    assert found == ["deploy retrain"]


@pytest.mark.parametrize(
    ("champion", "options"), [("", []), ("true", ["--from-champion"]), ("70", ["--from-champion", "--steps", "70"])]
)
def test_the_options_of_retraining(champion: str, options: list[str]) -> None:
    (script,) = [text for text in scripts("retrain.yaml") if "deploy retrain" in text]
    given = {"PRESET": "cifar10", "ROOT": "s3://b/r", "MLFLOW_TRACKING_URI": "http://m", "SETS": "seed=2 sit.steps=9",
             "FROM_CHAMPION": champion, "ENDPOINT": "", "KEY": ""}  # fmt: skip
    said = subprocess.run(
        ["bash", "-eu", "-c", script.replace("exec python", "echo")], env=given, text=True, capture_output=True
    )
    assert said.stdout.split()[-4 - len(options) :] == ["--set", "seed=2", "--set", "sit.steps=9", *options]


def test_kind_runs_the_clusters_tests_on_the_images_that_it_loads():
    text, given = "\n".join(scripts("kind.yaml")), jobs("kind.yaml")["kind"]["env"]
    assert "export DVAE_CLUSTER_HOST" in text
    assert "pytest -m cluster" in text
    for image in (given["DVAE_CLUSTER_IMAGE"], given["DVAE_CLUSTER_NEXT_IMAGE"]):
        assert f"--tag {image} " in text
        assert re.search(rf"docker save .*{image}\b", text)
