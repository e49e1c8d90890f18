"""The chart's README says what values.yaml, its schema and the templates say."""

import json
import re
from typing import Any

import yaml

from tests.chart import readme
from tests.support.chart import containers, kinds, pod_specs, render, rendered


def test_it_is_current():
    assert readme.README.read_text() == readme.made(), "run `python tests/chart/readme.py`"


def test_the_templates_know_the_defaults():
    assert readme.DEFAULTS.read_text() == readme.defaults(), "run `python tests/chart/readme.py`"


def test_every_value_has_a_description():
    rows = readme.rows(readme.values(), readme.comments().descriptions)
    assert len(rows) > 100
    assert not [".".join(row.path) for row in rows if not row.description]


def test_every_comment_is_about_a_value():
    told, values = readme.comments(), readme.values()
    for path in (*told.descriptions, *told.sections):
        here: Any = values
        for name in path:
            here = here[name]
    text = (readme.CHART / "values.yaml").read_text()
    assert len(told.descriptions) == len(re.findall(r"^ *# -- ", text, re.MULTILINE)), "one is beside no key"


def known_keys(part: dict[str, Any], path: readme.Path_ = ()) -> set[readme.Path_]:
    """Every key that the schema names, down to where any key may be."""
    part = readme.resolved(readme.schema(), part)
    properties = {} if isinstance(part.get("additionalProperties"), dict) else part.get("properties", {})
    return {path} | {key for name, inner in properties.items() for key in known_keys(inner, (*path, name))}


def given_keys(value: Any, known: set[readme.Path_], path: readme.Path_ = ()) -> set[readme.Path_]:
    if not isinstance(value, dict) or not any(key[:-1] == path for key in known if key):
        return {path}
    return {path} | {key for name, inner in value.items() for key in given_keys(inner, known, (*path, name))}


def test_schema_and_values_know_the_same_keys():
    known = known_keys(readme.schema()) - {("global",)}  # Helm's own, for charts within charts
    values = readme.values()
    groups = values.pop("groups")
    assert given_keys(values, known) | {("groups",)} == known
    of_a_group = {key[1:] for key in known if key[:1] == ("groupDefaults",)}
    for name, group in groups.items():
        assert given_keys(group, of_a_group) <= of_a_group, name


def test_every_secret_is_named_with_its_keys():
    """All that the templates refer to, with everything on."""
    head = readme.README.read_text().partition(readme.MARK)[0]
    secrets = head.partition("## Secrets")[2]
    used = {"auth_token"}  # KubeRay's own name for it
    for case in ("everything", "gpu-production"):
        for _, spec in pod_specs(rendered(case)).values():
            for container in containers(spec):
                sources = [one["valueFrom"]["secretKeyRef"] for one in container.get("env", []) if "valueFrom" in one]
                used |= {source["key"] for source in sources}
        (cluster,) = kinds(rendered(case), "RayCluster")
        used.add(cluster["spec"]["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["key"])
    assert len(used) == 10
    assert not [key for key in used if f"`{key}`" not in secrets]
    told = json.dumps(readme.values())
    for value in re.findall(r"^\| `([\w.]+)`", secrets, re.MULTILINE):
        assert f'"{value.rpartition(".")[2]}"' in told, value


def test_the_smallest_values_are_enough():
    (block,) = re.findall(r"```yaml\n(.*?)```", readme.README.read_text(), re.DOTALL)
    (cluster,) = kinds(render(yaml.safe_load(block)), "RayCluster")
    assert cluster["spec"]["authOptions"]["secretName"] == "ray-token"
