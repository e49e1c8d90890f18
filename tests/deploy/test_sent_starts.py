"""What a submitted training starts from is settled on this side, whatever an alias says later."""

import json
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from deploy.submit import Work, run_work, stage_work
from pipeline.config import SENT_VARIABLE, load_config
from pipeline.workflow import resolved, starts
from tests.support.artifacts import artifact_writer, config_at, manifest, put

# Digits that YAML would read as a number, written without quotes.
FIRST, LATER = "1" * 64, "b" * 64


def of_stage(preset: str, sets: list[str], root: str) -> Work:
    return stage_work("train-sit", preset, sets, root)


def of_run(preset: str, sets: list[str], root: str) -> Work:
    return run_work(preset, None, sets, root)


@pytest.mark.parametrize("submitted", [of_stage, of_run])
@pytest.mark.parametrize("sets", [["sit.start_from=models:/m@champion"], []])
def test_a_job_is_sent_the_fingerprint_and_not_the_alias(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    submitted: Callable[[str, list[str], str], Work],
    sets: list[str],
) -> None:
    """By its preset or by --set; also when the alias has moved before the job reads it."""
    monkeypatch.delenv("DVAE_SITE", raising=False)
    champion = FIRST
    monkeypatch.setattr(starts, "aliased_tags", lambda *_: {"dvae.input.train-sit": champion})
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: quickstart\nsit: {start_from: 'models:/m@champion'}\n")
    work = submitted("quickstart" if sets else str(mine), sets, str(tmp_path))
    assert json.loads(work.variables[SENT_VARIABLE])["sit"]["start_from"] == FIRST
    champion = LATER
    assert there(work, monkeypatch) == FIRST


def test_digits_are_sent_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_at(tmp_path, "quickstart", "sit.steps=7")
    made = put(config, manifest(config, "train-sit", artifact_writer(config, "train-sit"), {}))
    start = made.fingerprint
    work = of_run("quickstart", [f"sit.start_from='{start[:10]}'"], str(tmp_path))
    assert json.loads(work.variables[SENT_VARIABLE])["sit"]["start_from"] == start
    put(config, made.model_copy(update={"fingerprint": start[:10] + "0" * 54}))
    assert there(work, monkeypatch) == start


def there(work: Work, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the training starts from by the job's own words and variables."""
    words = shlex.split(work.entrypoint)
    preset = next(word for word in words if word.startswith("sent:"))
    sets = [after for word, after in pairwise(words) if word == "--set"]
    monkeypatch.setenv(SENT_VARIABLE, work.variables[SENT_VARIABLE])
    return resolved(load_config(preset, sets, words[words.index("--root") + 1]), fresh=False).sit.start_from
