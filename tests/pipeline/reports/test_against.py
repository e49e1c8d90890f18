"""A report beside a registered version: what is better is said where more than the interval lies between the two."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from models.intervals import Interval
from pipeline.cli.app import app
from pipeline.errors import ContractError
from pipeline.reports import against, against_as_json, render_against
from pipeline.reports.against import section
from pipeline.tracking import INTERVAL_TAG, METRIC_TAG, input_tag
from tests.support.trainers import small_config

FD, PSNR, COUNT = "samples/frechet_distance/inception", "reconstruction/psnr", "samples/count"


def tags(metrics: dict[str, float], of: Interval | None = None) -> dict[str, str]:
    """Of a version that was measured with these images and this reference; `of` is the interval of FD."""
    return {
        input_tag("prepare"): "aa" * 32,
        input_tag("reference"): "bb" * 32,
        **{f"{METRIC_TAG}{key}": repr(value) for key, value in metrics.items()},
        **({f"{INTERVAL_TAG}{FD}": json.dumps(of)} if of else {}),
    }


HERE = {"prepare": "aa" * 32, "reference": "bb" * 32}


def report(metrics: dict[str, float], of: Interval | None = None) -> dict[str, Any]:
    return {"metrics": metrics, "intervals": {FD: of} if of else {}}


def test_each_metric_in_its_own_direction() -> None:
    theirs = tags({FD: 20.0, PSNR: 30.0, COUNT: 500.0, "reconstruction/ssim": 0.9}, of=(18.0, 22.0))
    found = against(
        report({FD: 16.0, PSNR: 29.0, COUNT: 600.0}, of=(15.0, 17.0)), HERE, "denoising-vae@champion", theirs
    )
    assert {row.key: row.verdict for row in found.rows} == {FD: "better", PSNR: "worse", COUNT: ""}
    assert found.notes == []
    assert against_as_json(found)["metrics"][FD] == {"value": 20.0, "verdict": "better"}
    assert against_as_json(found)["intervals"] == {FD: (18.0, 22.0)}


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 9), st.floats(0, 9))
def test_what_lies_within_the_interval_is_neither(ours: float, theirs: float, one: float, other: float) -> None:
    """The other way round the verdict is the opposite."""
    verdicts = {"better": "worse", "worse": "better", "equal": "equal", "within the interval": "within the interval"}
    version = tags({FD: theirs}, of=(theirs - other, theirs + other))
    (row,) = against(report({FD: ours}, of=(ours - one, ours + one)), HERE, "m@a", version).rows
    back = tags({FD: ours}, of=(ours - one, ours + one))
    (opposite,) = against(report({FD: theirs}, of=(theirs - other, theirs + other)), HERE, "m@a", back).rows
    assert opposite.verdict == verdicts[row.verdict]
    if abs(ours - theirs) > one + other:
        assert row.verdict == ("better" if ours < theirs else "worse")


def test_other_images_and_another_reference_are_said() -> None:
    version = {**tags({FD: 1.0}), input_tag("prepare"): "cc" * 32}
    del version[input_tag("reference")]
    (images, reference) = against(report({FD: 1.0}), HERE, "m@a", version).notes
    assert images == "m@a was measured with other images: prepare/cccccccccccc, here prepare/aaaaaaaaaaaa."
    assert reference == "m@a does not say which reference it was measured with."


def test_both_stand_on_the_screen_and_on_the_page() -> None:
    version = {**tags({FD: 20.0, PSNR: 30.0, COUNT: 9.0}, of=(18.0, 22.0)), input_tag("prepare"): "<b>" + "c" * 61}
    found = against(report({FD: 16.0, PSNR: 30.0, COUNT: 8.0}, of=(15.0, 17.0)), HERE, "m@champion", version)
    screen = io.StringIO()
    render_against(Console(file=screen, width=40), found, {FD: (15.0, 17.0)})
    lines = screen.getvalue().splitlines()
    assert lines[1:4] == [
        "against m@champion: 1 equal, 1 different",
        FD,
        "  16 (15 to 17) here, 20 (18 to 22) there: better",
    ]
    html = section(found, {FD: (15.0, 17.0)})
    assert "Against m@champion" in html
    assert "16 (15 to 17)" in html
    assert "<b>" not in html


def test_an_alias_that_no_version_has(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.tracking.aliased_tags", lambda *_: None)
    config = small_config(tmp_path)
    result = CliRunner().invoke(app, ["report", "quickstart", "--against", "best", "--root", config.root])
    assert isinstance(result.exception, ContractError)
    assert "no version of denoising-vae in MLflow at" in str(result.exception)
    assert "has the alias best" in str(result.exception)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_has_no_verdict_that_misleads(value: str) -> None:
    version = tags({FD: float(value)})
    (row,) = against(report({FD: 16.0}), HERE, "m@a", version).rows
    assert row.verdict == ("" if value == "nan" else "better")
