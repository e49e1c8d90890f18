"""A fingerprint moves exactly when it should: not by a move of code, not by an upgrade, not by where and how fast."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.config import Config, SitConfig, load_config, preset_names
from pipeline.config.fields import added_field
from pipeline.config.schema import GateConfig, RegisterConfig
from pipeline.errors import ConfigError
from pipeline.weights import resolve_weights
from pipeline.workflow.fingerprints import counted_config, stage_fingerprints
from pipeline.workflow.graph import NAMES, STAGES, find_stage, stages_until
from tests.pipeline.config.test_config import LEAVES
from tests.support.weights import record_all

GOLDEN = json.loads(Path(__file__).with_name("golden_fingerprints.json").read_text())


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("quickstart", ["data.revision=abc"])


def test_the_catalogue_names_fields_that_exist():
    sections = {name.partition(".")[0] for name in LEAVES}
    for stage in STAGES:
        for field in (*stage.fields, *stage.without, *stage.uncounted):
            assert field in sections or any(leaf == field or leaf.startswith(f"{field}.") for leaf in LEAVES), field
        for field in stage.without:
            assert field.partition(".")[0] in stage.fields, f"{stage.name} does not count {field} anyway"


def test_a_stage_comes_after_its_inputs():
    for stage in STAGES:
        assert set(stage.inputs) <= {earlier.name for earlier in stages_until(stage.name)} - {stage.name}
    assert NAMES[-1] == "register"
    with pytest.raises(ConfigError, match="unknown stage 'train-everything'"):
        find_stage("train-everything")


def other(value: Any) -> Any:
    """Another value, of the same type where that is easy. Nothing here need make sense: only the digest is asked."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, tuple) and "self" in value:
        return ("self", "efficientnet_lite0")
    if isinstance(value, tuple):
        return (*value[:-1], value[-1] + 1) if value else (0.5,)
    return "changed"


def changed(section: BaseModel, name: str) -> BaseModel:
    """A copy with the field of that dotted name changed, unvalidated."""
    head, _, rest = name.partition(".")
    current = getattr(section, head)
    return section.model_copy(update={head: changed(current, rest) if rest else other(current)})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("data.image_size", "train-tokenizer"),
        ("data.validation_share", "prepare"),
        ("data.shuffle", "train-tokenizer"),
        ("tokenizer.learning_rate", "train-tokenizer"),
        ("encode.precision", "encode"),
        ("sit.learning_rate", "train-sit"),
        ("sample.guidance", "sample"),
        ("register.gate.margin", "register"),
    ],
)
def test_what_comes_before_a_changed_field_is_kept(config, name, first):
    before, after = stage_fingerprints(config), stage_fingerprints(changed(config, name))  # type: ignore[arg-type]
    earlier = list(before)[: list(before).index(first)]
    assert all(before[stage] == after[stage] for stage in earlier)
    assert before[first] != after[first]
    assert before["register"] != after["register"]


def test_without_a_revision_nothing_is_known():
    assert set(stage_fingerprints(load_config("quickstart")).values()) == {None}


def test_fingerprints_are_the_same_on_every_machine(config, tmp_path):
    elsewhere = load_config("quickstart", ["data.revision=abc", "cluster.workers=2"], root=str(tmp_path))
    assert stage_fingerprints(elsewhere) == stage_fingerprints(config)
    assert all(len(fingerprint or "") == 64 for fingerprint in stage_fingerprints(config).values())


def test_counted_config_is_json_by_dotted_name(config):
    counted = counted_config(find_stage("train-sit"), config)
    assert counted["sit.level"] == 2
    assert "sit.checkpoint_every" not in counted
    assert json.loads(json.dumps(counted)) == counted


@pytest.mark.parametrize("preset", preset_names())
def test_fingerprints_are_those_of_before(preset, tmp_path):
    """Of every preset at a fixed revision. Whoever changes what a stage makes changes these, and CHANGELOG says so."""
    source = [] if preset == "quickstart" else ["data.uri=s3://bucket/images"]
    config = resolve_weights(
        load_config(preset, [f"data.revision={'ab' * 32}", f"weights={record_all(tmp_path)}", *source])
    )
    known = config.data.model_copy(update={"classes": config.data.classes or 10})
    assert stage_fingerprints(config.model_copy(update={"data": known})) == GOLDEN[preset]


# --- a field that comes after a release ---


class LaterSit(SitConfig):
    """As a later version may have it."""

    stride: int = added_field("0.2.0", 1, "Latent cells from token to token.", ge=1)
    decays: tuple[float, ...] = added_field("0.2.0", (), "More averages.")


class LaterGate(GateConfig):
    """A field that lies deeper."""

    strictness: str = added_field("0.2.0", "plain", "How the margin is taken.")


class LaterRegister(RegisterConfig):
    gate: LaterGate = LaterGate()


class LaterConfig(Config):
    sit: LaterSit = LaterSit()
    register: LaterRegister = LaterRegister()  # type: ignore[assignment]


def later(config: Config, **sit: Any) -> LaterConfig:
    tree = config.model_dump(mode="json")
    tree["sit"] |= sit
    return LaterConfig.model_validate(tree)


def test_an_upgrade_costs_no_training(config):
    """New fields that do as before are not counted, wherever they lie."""
    assert stage_fingerprints(later(config)) == stage_fingerprints(config)
    assert "sit.stride" not in counted_config(find_stage("train-sit"), later(config))


@pytest.mark.parametrize("changed_field", [{"stride": 2}, {"decays": [0.9]}])
def test_a_new_field_counts_once_it_is_used(config, changed_field):
    before, after = stage_fingerprints(config), stage_fingerprints(later(config, **changed_field))
    assert [stage for stage in NAMES if before.get(stage) != after.get(stage)] == [
        "train-sit", "sample", "evaluate-samples", "register",
    ]  # fmt: skip


def test_a_new_field_of_the_gate_counts_once_it_is_used(config):
    tree = config.model_dump(mode="json")
    tree["register"]["gate"]["strictness"] = "interval"
    before, after = stage_fingerprints(config), stage_fingerprints(LaterConfig.model_validate(tree))
    assert [stage for stage in NAMES if before.get(stage) != after.get(stage)] == ["register"]
