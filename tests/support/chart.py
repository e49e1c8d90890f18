"""Rendering the chart: by Helm 4 (its library) and by a Helm 3 command, where there is one."""

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import PROJECT

CHART = PROJECT / "helm" / "denoising-vae"
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
GOOD = {"site": {"root": "s3://b/p"}, "auth": {"existingSecret": "t"}}  # the least that the chart takes
Object = dict[str, Any]


def values_of(case: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{case}-values.yaml").read_text())
    return values


@cache
def rendered(case: str) -> list[Object]:
    return render(values_of(case))


def render(values: dict[str, Any], name: str = "r", chart: Path = CHART) -> list[Object]:
    """Every object of a release in the namespace `n`, by Helm 4. helm_python.HelmError when it is refused."""
    return parsed(texts(values, name, chart))


def texts(values: dict[str, Any], name: str = "r", chart: Path = CHART) -> dict[str, str]:
    """The rendered files by their paths, by Helm 4."""
    from helm_python import Chart

    with Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name=name, namespace="n")
    return {path: text for path, text in files.items() if path.endswith(".yaml")}


def parsed(files: dict[str, str]) -> list[Object]:
    """By PyYAML's reader in C: the one in Python takes longer than Helm."""
    return [made for text in files.values() for made in yaml.load_all(text, yaml.CSafeLoader) if made]


def render_by_helm3(binary: str, values: dict[str, Any], folder: Path, name: str = "r", chart: Path = CHART) -> str:
    """All that Helm 3 renders, as one text; subprocess.CalledProcessError when it is refused."""
    file = folder / "values-of-the-test.yaml"
    file.write_text(json.dumps(values))  # which is YAML, too, and leaves no text without its quotes
    command = [
        binary,
        "template",
        name,
        str(chart),
        "--namespace",
        "n",
        "--kube-version",
        "1.34.0",
        "--values",
        str(file),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def helm3() -> str | None:
    """HELM3 in the environment, or a `helm` of version 3 on the path."""
    found = os.environ.get("HELM3") or shutil.which("helm")
    if found is None:
        return None
    told = subprocess.run([found, "version", "--short"], capture_output=True, text=True, check=True).stdout
    return found if told.startswith("v3") else None


def needed_helm3() -> str:
    found = helm3()
    if found is None:
        pytest.skip("there is no Helm 3: name one by HELM3")
    return found


def kinds(objects: list[Object], kind: str) -> list[Object]:
    return [made for made in objects if made["kind"] == kind]


def named(objects: list[Object], kind: str, ending: str) -> Object:
    (found,) = [made for made in kinds(objects, kind) if made["metadata"]["name"].endswith(ending)]
    return found


def pod_specs(objects: list[Object]) -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
    """Labels and spec of every pod that would run, by what makes it."""
    pods = {}
    for made in objects:
        where = f"{made['kind']} {made['metadata']['name']}"
        if made["kind"] == "Pod":
            pods[where] = (made["metadata"]["labels"], made["spec"])
        elif made["kind"] == "Deployment":
            pods[where] = _template(made["spec"]["template"])
        elif made["kind"] == "CronJob":
            pods[where] = _template(made["spec"]["jobTemplate"]["spec"]["template"])
        elif made["kind"] == "RayCluster":
            pods.update(_ray_pods(where, made["spec"]))
        elif made["kind"] == "ConfigMap" and "rayjob.yaml" in made["data"]:
            job = rayjob_in(made)
            pods["RayJob submitter"] = _template(job["spec"]["submitterPodTemplate"])
            pods.update(_ray_pods("RayJob", job["spec"]["rayClusterSpec"]))
    return pods


def rayjob_in(config_map: Object) -> Object:
    """The RayJob without work that the chart has ready for `deploy rayjob`."""
    made: Object = yaml.load(config_map["data"]["rayjob.yaml"], yaml.CSafeLoader)
    return made


def _ray_pods(where: str, spec: dict[str, Any]) -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
    pods = {f"{where} {group['groupName']}": _template(group["template"]) for group in spec["workerGroupSpecs"]}
    return {f"{where} head": _template(spec["headGroupSpec"]["template"]), **pods}


def _template(template: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    return template["metadata"]["labels"], template["spec"]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [*spec.get("initContainers", []), *spec["containers"]]
    return made
