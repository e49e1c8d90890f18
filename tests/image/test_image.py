"""The image, built for real and run as the chart runs it: non-root, read-only root, no capabilities."""

import json
import re
import secrets
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.chart import CHART
from tests.support.containers import NAME, PROJECT, SEALED, Image, build, logs, podman, until

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]

_COPIED = ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
_PACKAGES = ("models", "pipeline", "deploy")
# As KubeRay starts a head and asks whether it lives.
_HEAD = "ray start --head --block --dashboard-host=0.0.0.0 --dashboard-agent-listen-port=52365 --num-cpus=2"
_PROBE = """
    wget --tries 1 -T 5 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success &&
    wget --tries 1 -T 5 -q -O- http://localhost:8265/api/gcs_healthz | grep success
"""
_WHERE = """
import os, ray
ray.init("auto", log_to_driver=False)
@ray.remote
def where():
    import deploy, pipeline
    return os.getcwd(), os.getuid(), pipeline.__file__, deploy.__file__
print(*ray.get(where.remote()))
"""
_COMPILE = """
import torch
block = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
x = torch.linspace(-1, 1, 16).reshape(2, 8)
torch.testing.assert_close(torch.compile(block)(x), block(x))
"""


def inspected(name: str) -> dict[str, Any]:
    return json.loads(podman("image", "inspect", name).stdout)[0]


def run(image: Image, *command: str) -> str:
    return podman("run", "--rm", "--timeout", "1800", *SEALED, image.name, *command).stdout


def test_it_says_which_commit_it_is(image: Image) -> None:
    config = inspected(image.name)["Config"]
    revision = config["Labels"]["org.opencontainers.image.revision"]
    assert f"DVAE_GIT_SHA={revision}" in config["Env"]
    assert re.fullmatch("[0-9a-f]{40}", revision)
    assert image.git_sha in (revision, None)


def test_it_is_not_root_and_cannot_change_its_code(image: Image) -> None:
    told = podman(
        "run", "--rm", image.name, "sh", "-c",
        "id -u; id -g; touch x && echo work; find / -xdev -writable ! -type l -path '*/venv/*' | head",
    )  # fmt: skip
    assert told.stdout.split() == ["10001", "10001", "work"]


def test_versions_are_those_of_the_constraints(image: Image) -> None:
    ask = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = {
        canonicalize_name(name): version for name, version in json.loads(run(image, "python", "-c", ask)).items()
    }
    lines = [line.strip() for line in (PROJECT / "constraints.txt").read_text().splitlines()]
    exact = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    # pip came with the base.
    assert {name: version for name, version in installed.items() if exact.get(name) != version}.keys() <= {
        "denoising-vae", "pip",
    }  # fmt: skip
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *extras["train"], *extras["server"]]]
    assert {canonicalize_name(each.name) for each in wanted} <= installed.keys()
    assert not {"pytest", "mypy", "moto"} & installed.keys()


def test_ray_is_the_version_that_the_chart_tells_kuberay(image: Image) -> None:
    version = yaml.safe_load((CHART / "values.yaml").read_text())["image"]["rayVersion"]
    assert run(image, "python", "-c", "import importlib.metadata as m; print(m.version('ray'))").strip() == version


def test_the_code_is_all_there_and_nothing_is_left_of_its_making(image: Image) -> None:
    site = run(image, "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    names = " -o ".join(f"-path '{site}/{name}/*'" for name in _PACKAGES)
    baked = run(image, "sh", "-c", rf"find {site} \( {names} \) -type f ! -name '*.pyc'").split()
    kept = [path for name in _PACKAGES for path in (PROJECT / name).rglob("*") if path.suffix in (".py", ".yaml")]
    assert {path.removeprefix(f"{site}/") for path in baked} == {str(path.relative_to(PROJECT)) for path in kept}
    left = "ls -A /code /source /requirements /root /tmp /work /run/secrets /etc/pip.conf /var/lib/apt/lists 2>&1"
    found = podman("run", "--rm", "--user", "0", image.name, "sh", "-c", f"{left}; find / -xdev -name .git", ok=False)
    for name in ("/code", "/source", "/requirements", "/etc/pip.conf"):
        assert f"cannot access '{name}'" in found.stdout
    files = [line for line in found.stdout.splitlines() if line and not line.startswith(("/", "ls: "))]
    assert set(files) <= {".bashrc", ".profile"}  # root's, from the base


def test_a_change_of_code_leaves_the_packages_where_they_are(image: Image, tmp_path: Path) -> None:
    if image.git_sha is None:
        pytest.skip("DVAE_IMAGE is set: nothing is built")
    source = tmp_path / "source"
    source.mkdir()
    for name in _COPIED:
        shutil.copy(PROJECT / name, source)
    for name in _PACKAGES:
        shutil.copytree(PROJECT / name, source / name)
    (source / "pyproject.toml").write_text((source / "pyproject.toml").read_text() + "\n[tool.other]\n")
    (source / "models" / "added.py").write_text('WORD = "new"\n')
    name, before = f"{NAME}-changed", inspected(NAME)["RootFS"]["Layers"]
    try:
        build(name, source, "1" * 40, tmp_path)
        after = inspected(name)["RootFS"]["Layers"]
        assert len(after) == len(before)
        assert [old == new for old, new in zip(before, after, strict=True)] == [True] * (len(before) - 2) + [False] * 2
        assert podman("run", "--rm", name, "python", "-c", "import models.added as a; print(a.WORD)").stdout == "new\n"
        # The same code at another commit is another image: Podman 4 would not see that by itself.
        build(name, source, "2" * 40, tmp_path)
        assert "DVAE_GIT_SHA=" + "2" * 40 in inspected(name)["Config"]["Env"]
    finally:
        podman("rmi", name, ok=False)


def test_blocks_are_compiled_in_it(image: Image) -> None:
    run(image, "python", "-c", _COMPILE)


def test_quickstart_without_network(image: Image) -> None:
    told = run(
        image, "sh", "-ec",
        """
        python -m pipeline run quickstart --root /tmp/runs >&2
        echo "[$(python -m pipeline report quickstart --root /tmp/runs --json),"
        echo "$(cat /tmp/runs/register/*/manifest.json)]"
        """,
    )  # fmt: skip
    report, manifest = json.loads(told)
    assert {stage["status"] for stage in report["stages"].values()} == {"cached"}
    assert report["metrics"]["samples/class_accuracy"] > 0.9
    assert manifest["git_sha"] == inspected(image.name)["Config"]["Labels"]["org.opencontainers.image.revision"]


@pytest.fixture
def head(image: Image, tmp_path: Path) -> Iterator[str]:
    """A Ray head in a sealed container, with token authentication and a site file; its name."""
    (tmp_path / "site.yaml").write_text("root: /tmp/runs\n")
    token = ["-e", "RAY_AUTH_MODE=token", "-e", f"RAY_AUTH_TOKEN={secrets.token_hex(32)}"]
    site = ["-v", f"{tmp_path / 'site.yaml'}:/etc/dvae/site.yaml:ro", "-e", "DVAE_SITE=/etc/dvae/site.yaml"]
    name = f"dvae-head-{secrets.token_hex(4)}"
    start = f"{_HEAD} --object-store-memory={200 * 1024**2}"
    # `-l`: the shell of KubeRay's older versions.
    podman("run", "--detach", "--name", name, *SEALED, *token, *site, image.name, "bash", "-lc", "--", start)
    try:
        until(lambda: podman("exec", name, "bash", "-c", _PROBE, ok=False).returncode == 0, 120, lambda: logs(name))
        yield name
    finally:
        podman("rm", "--force", "--time", "5", name)


def test_ray_runs_in_it_and_takes_jobs(head: str) -> None:
    def at_head(*command: str, more: tuple[str, ...] = (), ok: bool = True) -> subprocess.CompletedProcess[str]:
        return podman("exec", "--workdir", "/", *more, head, *command, ok=ok)

    address = ("--address", "http://127.0.0.1:8265")
    stage = ("stage", "prepare", "quickstart")
    # Ray's own command uploads nothing: the pipeline is in the image.
    first = at_head("ray", "job", "submit", *address, "--", "python", "-m", "pipeline", *stage)
    assert "✓ prepare" in first.stdout
    ours = at_head("python", "-m", "deploy", "submit", *stage, *address)
    assert "prepare" in ours.stdout
    assert "cached" in ours.stdout
    refused = at_head("python", "-m", "deploy", "submit", *stage, *address, more=("-e", "RAY_AUTH_TOKEN=x"), ok=False)
    assert refused.returncode == 77
    folder, user, *modules = at_head("python", "-c", _WHERE).stdout.split()
    assert (folder, user) == ("/work", "10001")
    assert all(module.startswith("/opt/venv/") for module in modules)
    drained = at_head("python", "-m", "deploy", "drain", "--seconds", "5")
    assert "draining" in drained.stderr
    assert "raylet.out" in at_head("find", "/tmp/runs/.logs", "-type", "f").stdout
