"""A value that is null, or that the values of an older chart do not have, is the chart's own."""

import copy
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError

from tests.chart import readme
from tests.support.chart import (
    CASES,
    CHART,
    GOOD,
    Object,
    kinds,
    named,
    needed_helm3,
    parsed,
    pod_specs,
    render,
    render_by_helm3,
    rendered,
    texts,
    values_of,
)

FORMER = Path(__file__).with_name("former-values.yaml")
Keys = tuple[str, ...]
NEEDED = {("site", "root"): "site.root: set", ("auth", "existingSecret"): "auth.existingSecret: set"}


def sections(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, list[str]]]:
    """Each section of values.yaml with its keys; the values of a section have no keys that the chart knows."""
    if path:
        yield path, list(value)
    for name, part in value.items():
        where = (*path, name)
        if readme.schema_at(where).get("additionalProperties", True) is False:
            yield from sections(part, where)


def everything() -> dict[str, Any]:
    return copy.deepcopy(values_of("everything"))


def at(values: dict[str, Any], path: Keys) -> dict[str, Any]:
    here = values
    for name in path:
        here = here.setdefault(name, {})
    return here


def with_nulls(path: Keys, keys: list[str]) -> dict[str, Any]:
    values = everything()
    at(values, path).update(dict.fromkeys(keys))
    return values


def without(path: Keys, keys: list[str]) -> dict[str, Any]:
    values = everything()
    for key in keys:
        at(values, path).pop(key, None)
    return values


def outcome(values: dict[str, Any]) -> Any:
    return _outcome(json.dumps(values))


@cache
def _outcome(values: str) -> Any:
    try:
        return texts(json.loads(values))
    except HelmError as refusal:
        return str(refusal)


ALL = dict(sections(readme.values()))


@pytest.mark.parametrize("top", sorted({path[0] for path in ALL}))
def test_null_for_a_section_or_for_each_of_its_values_is_as_if_it_were_not_there(top):
    own = [path for path in ALL if path[0] == top]
    for path in own:
        for folder, keys in ((path[:-1], [path[-1]]), (path, ALL[path])):
            assert outcome(with_nulls(folder, keys)) == outcome(without(folder, keys)), (folder, keys)
    assert own


@pytest.mark.parametrize("group", ["cpu", "gpu-sit"])
def test_and_inside_of_a_group(group):
    """What this group has of its own in the chart comes back; else it is what every group has."""
    default = texts(everything())
    within = sorted({path[1:] for path in ALL if path[0] == "groupDefaults"})
    given = [(("groups", group), readme.values()["groupDefaults"].keys())]
    given += [(("groups", group, *path), ALL[("groupDefaults", *path)]) for path in within if path]
    for folder, keys in given:
        assert texts(with_nulls(folder, list(keys))) == default, folder
        if len(folder) > 2:
            assert texts(with_nulls(folder[:-1], [folder[-1]])) == default, folder


def test_all_at_once_on_both_helms(tmp_path):
    values: dict[str, Any] = dict.fromkeys(readme.values()) | copy.deepcopy(GOOD)
    objects = render(values)
    assert objects == render(GOOD)
    assert len(objects) > 20
    third = render_by_helm3(needed_helm3(), values, tmp_path)
    assert third == render_by_helm3(needed_helm3(), GOOD, tmp_path)


@pytest.mark.parametrize(("path", "word"), NEEDED.items())
def test_what_is_needed_is_still_asked_for(path, word):
    for length in (1, 2):
        values = copy.deepcopy(GOOD)
        at(values, path[: length - 1])[path[length - 1]] = None
        with pytest.raises(HelmError, match=word):
            render(values)


def test_null_takes_a_group_or_a_label_out():
    """As everywhere in Helm, where the keys are the user's own."""
    here: dict[str, Any] = {
        "groups": {"gpu-sit": None, "extra": None},
        "stagePools": {"train-sit": "gpu-tokenizer"},
        "networkPolicy": {"operatorNamespaceSelector": {"kubernetes.io/metadata.name": None}},
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "s3": {"env": {"NOT_HERE": None}},
    }
    objects = render({**GOOD, **here})
    (cluster,) = kinds(objects, "RayCluster")
    assert [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]] == [
        "cpu",
        "gpu-batch",
        "gpu-tokenizer",
    ]
    door = named(objects, "NetworkPolicy", "vae-to-dashboard")["spec"]["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {}}} in door
    for _, spec in pod_specs(objects).values():
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(spec["securityContext"])


def test_null_in_a_config_of_the_pipeline_is_a_value():
    """Such as no limit on encoders, or a preset without LPIPS."""
    values = everything()
    values["site"]["extra"] = {"cluster": {"encode_actors": None}}
    values["retrain"]["config"] = {"extends": "cifar10", "tokenizer": {"lpips": None}}
    objects = render(values)
    site = yaml.safe_load(named(objects, "ConfigMap", "-site")["data"]["site.yaml"])
    assert site["cluster"]["encode_actors"] is None
    preset = yaml.safe_load(named(objects, "ConfigMap", "-retrain")["data"]["retrain.yaml"])
    assert preset["tokenizer"] == {"lpips": None}


@pytest.mark.parametrize(
    "extra",
    [
        {"cluster": None},
        {"tracking": None, "data": None},
        {"cluster": {"device": None, "pools": None}},
    ],
)
def test_but_a_section_of_it_is_left_out(extra):
    """Which has only comments below it, for instance. The pipeline takes none, so every pod would end with an error."""
    assert texts({**GOOD, "site": {**GOOD["site"], "extra": extra}}) == texts(GOOD)
    preset = {"extends": "cifar10", "sit": {"steps": 10}}
    retrain = {"enabled": True, "config": preset}
    with_null = {"enabled": True, "config": {**preset, "tokenizer": None}}
    assert texts({**GOOD, "retrain": with_null}) == texts({**GOOD, "retrain": retrain})


# --- helm upgrade --reuse-values ---


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart of today with the values of the former one, as `--reuse-values` has it: Helm puts these in the place of
    values.yaml, and validates and renders by what is new."""
    chart = tmp_path_factory.mktemp("upgraded") / "denoising-vae"
    shutil.copytree(CHART, chart)
    shutil.copy(FORMER, chart / "values.yaml")
    return chart


def unchanged(objects: list[Object]) -> list[Object]:
    return [one for one in objects if one["kind"] != "ConfigMap"]


@pytest.mark.parametrize("case", CASES)
def test_values_of_the_former_chart_are_enough(case, upgraded):
    objects = parsed(texts(values_of(case), chart=upgraded))
    assert unchanged(objects) == unchanged(rendered(case))
    for where, (_, spec) in pod_specs(objects).items():
        assert spec["securityContext"]["runAsUser"] == 10001, where


def test_and_to_helm_3(upgraded, tmp_path):
    values = values_of("everything")
    text = render_by_helm3(needed_helm3(), values, tmp_path, chart=upgraded)
    assert text == render_by_helm3(needed_helm3(), values, tmp_path)


def test_the_former_values_lack_something():
    """Else these tests say nothing."""
    former = yaml.safe_load(FORMER.read_text())
    assert not {"commonLabels", "podSecurityContext", "securityContext"} & set(former)
    assert "podLabels" not in former["head"]
