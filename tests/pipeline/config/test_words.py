"""What the config says of addresses and names that other servers would refuse, and how a config travels."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.limits import check_size
from deploy.submit import run_work
from pipeline.config import Config, fields_changed_here, load_config, sent_text
from pipeline.errors import ConfigError
from pipeline.tracking import tracking_uri

NO_NAMES = [
    "   ",
    ".",
    "..",
    "...",
    ". .",
    " a",
    "a ",
    "a/b",
    "a:b",
    "",
    "-",
    "_",
    "é",
    "a'b",
    'a"b',
    "..a",
    "a" * 257,
    "a\n",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_model_that_the_registry_would_refuse(name: str, tmp_path: Path) -> None:
    """At the end of a run, after all its work."""
    with pytest.raises(ConfigError, match=r"^register\.name: .* cannot name a model in MLflow's registry: use at most"):
        load_config("quickstart", [f"register.name={json.dumps(name)}"], str(tmp_path))


@given(st.text("ab1_. -/:é'\"\n", max_size=6))
def test_mlflow_takes_every_name_that_the_config_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_model_name

    try:
        Config.model_validate({"register": {"name": name}})
    except ValueError:
        return
    _validate_model_name(name)


@pytest.mark.parametrize("name", ["denoising-vae", "A model 2.0", "a..b", "x", "0", ".a_", "a" * 256])
def test_names_that_the_registry_takes(name: str) -> None:
    assert Config.model_validate({"register": {"name": name}}).register.name == name


@pytest.mark.parametrize("name", ["", " ", "x" * 257])
def test_an_experiment_has_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="experiment"):
        Config.model_validate({"tracking": {"experiment": name}})


ADDRESSES = {
    "127.0.0.1:5000": "has no scheme; write http://127.0.0.1:5000",
    "localhost:5000/prefix": "has no scheme; write http://localhost:5000/prefix",
    "mlflow.dvae.svc": "has no scheme; write http://mlflow.dvae.svc",
    "./mlruns": "is not an address of MLflow; write http(s)://HOST:PORT or sqlite:///PATH",
    "/srv/mlruns": "is not an address of MLflow; write http(s)://HOST:PORT",
    "postgresql://db/mlflow": "is not an address of MLflow; write http(s)://HOST:PORT",
    "http://h:5000/#/experiments/1?x=secret": "as that of a page of MLflow; write http://h:5000.",
    "https://h/mlflow/?token=secret": "as that of a page of MLflow; write https://h/mlflow.",
    "http:/h:5000": "is not an address of MLflow",
    "http://": "is not an address of MLflow",
    " http://h:5000": "is not an address of MLflow",
    "http://h:5000 ": "is not an address of MLflow",
    "sqlite:///": "is not an address of MLflow",
    "me:secret@mlflow:5000": "contains a user or password; use MLFLOW_TRACKING_USERNAME",
}


@pytest.mark.parametrize(("uri", "words"), ADDRESSES.items())
def test_what_is_no_address_of_mlflow(uri: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        load_config("quickstart", [f"tracking.uri={json.dumps(uri)}"], str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    what, _, hint = words.partition("; ")
    with pytest.raises(ConfigError, match=re.escape(what)) as known:
        tracking_uri(load_config("quickstart", [], str(tmp_path)))
    assert hint.lower() in str(known.value).lower()
    assert "secret" not in f"{refused.value}{known.value}"


QUICKSTART = load_config("quickstart", ["cluster.mirror=$HOME/`id`"], "s3://bucket/$root")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip))
def test_a_config_travels_in_a_variable_that_others_expand(text: str) -> None:
    """Ray and Kubernetes read $X, ${X} and $(X) in it; YAML would read line ends such as U+2028 as spaces."""
    tree = QUICKSTART.model_dump()
    sent = Config.model_validate({**tree, "tracking": {"experiment": text}})
    value = sent_text(sent)
    assert "$" not in value
    assert value.isascii()
    assert value.isprintable()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DVAE_SITE", raising=False)
        patch.setenv("DVAE_SENT_CONFIG", value)
        arrived = load_config("sent:quickstart")
        assert fields_changed_here(arrived) == []
    assert arrived == sent


@pytest.mark.parametrize("value", [None, "", "{", "[]", "3", "a: b"])
def test_what_is_no_config_that_was_sent(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVAE_SENT_CONFIG", raising=False)
    if value is not None:
        monkeypatch.setenv("DVAE_SENT_CONFIG", value)
    with pytest.raises(ConfigError, match=r"^DVAE_SENT_CONFIG.*\. Submit the job with `python -m deploy submit`"):
        load_config("sent:quickstart")


def test_a_config_too_large_for_a_job_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    """Linux starts no process with a longer variable, and the job would wait for ever."""
    files = ",".join(f"part-{number:06d}.tar" for number in range(9000))
    preset = tmp_path / "large.yaml"
    preset.write_text(json.dumps({"extends": "quickstart", "data": {"validation_uri": f"s3://b/{{{files}}}"}}))
    with pytest.raises(ConfigError) as refused:
        run_work(str(preset), None, None, "s3://bucket/root")
    assert re.fullmatch(
        r"the config is too large to be sent with a job: 14\d,\d{3} bytes, and 120,000 is what fits; "
        r"data\.validation_uri alone has 14\d,\d{3}\. Shorten data\.validation_uri: give a glob instead of a list\.",
        str(refused.value),
    ), str(refused.value)


def test_a_command_too_long_for_a_job_is_refused(tmp_path: Path) -> None:
    config = load_config("quickstart", [], str(tmp_path))
    check_size(config, "x" * 120_000, {}, {})
    with pytest.raises(ConfigError, match=r"command is too long: 120,001 bytes.* Set long values in a preset file"):
        check_size(config, "x" * 120_001, {}, {})
