"""The house's three floors: imports run down only, and what must be light stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "ray", "mlflow")


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def imported(path: Path) -> Iterator[str]:
    """The full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imported(path)
        if name.partition(".")[0] in forbidden
    ]


def test_models_know_nothing_of_the_world():
    assert not violations(modules("models"), {"ray", "mlflow", "pyarrow", "boto3", "botocore", "pipeline", "deploy"})


def test_the_pipeline_does_not_know_who_deploys_it():
    assert not violations(modules("pipeline"), {"deploy"})


def test_the_registered_model_needs_no_pipeline():
    """MLflow ships this one file and `models`."""
    assert not violations([ROOT / "pipeline" / "registered_model.py"], {"pipeline", "deploy", "ray"})


def loaded(code: str, *names: str) -> list[str]:
    """Which of the modules `names` a fresh interpreter has loaded after running `code`."""
    ending = f"\nimport sys; print('LOADED', *[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + ending], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1].split()[1:]


def test_importing_all_of_deploy_stays_light():
    code = (
        "import deploy, importlib, pkgutil\n"
        "for module in pkgutil.walk_packages(deploy.__path__, 'deploy.'): importlib.import_module(module.name)"
    )
    assert loaded(code, *HEAVY) == []


@pytest.mark.parametrize("module", ["models", "models.sizes", "pipeline.config", "pipeline.graph", "pipeline.__main__"])
def test_light_modules_stay_light(module):
    assert loaded(f"import {module}", *HEAVY) == []


@pytest.mark.parametrize(
    "command", [["plan", "quickstart"], ["plan", "imagenet-f16d32", "--json"], ["config", "schema"]]
)
def test_planning_stays_light(tmp_path, command):
    root = ["--root", str(tmp_path)]
    code = (
        f"import runpy, sys\nsys.argv = ['pipeline', *{command + root!r}]\n"
        "try:\n    runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded(code, *HEAVY) == []
    assert not list(tmp_path.iterdir()), "a plan starts nothing and leaves nothing"
