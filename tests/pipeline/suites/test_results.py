"""What is kept of a finished run: it outlives the artifacts, in one JSON file."""

import json
from pathlib import Path

from pipeline.suites import Asked, InFile, load_suite, runs_of
from pipeline.suites.results import record_of
from tests.pipeline.suites.test_figures import node


def test_a_curve_outlives_the_artifacts(tmp_path: Path) -> None:
    """Steps to an equal distance can be told from the file alone."""
    run = runs_of(load_suite("figure3"), Asked("digits", 1, (), (), str(tmp_path / "runs")), fresh=True)[0]
    details = {"curves": {"efficientnet_lite0": [[10, 90.5], [20, 80.25]]}}
    made = {}
    for stage in run.identities:
        manifest = node(run, stage, {}, details if stage == "convergence" else {}).manifest
        assert manifest is not None
        made[stage] = manifest
    results = InFile(tmp_path / "results.json")
    results.add("ab", record_of(run, made, "key"))
    assert results.read()["ab"].curves == {"efficientnet_lite0": [(10, 90.5), (20, 80.25)]}
    assert results.read()["ab"].row == run.row.name


def test_intervals_and_notes_outlive_the_artifacts(tmp_path: Path) -> None:
    """What a distance was measured against, and how far it may be off by its images alone."""
    run = runs_of(load_suite("table5"), Asked("digits", 1, (), (), str(tmp_path / "runs")), fresh=True)[0]
    key = "samples/frechet_distance/efficientnet_lite0"
    details = {"intervals": {key: [2.0, 4.0]}, "reference": "90 images", "notes": ["500 images are few"]}
    made = {}
    for stage in run.identities:
        manifest = node(run, stage, {}, details if stage == "evaluate-samples" else {}).manifest
        assert manifest is not None
        made[stage] = manifest
    results = InFile(tmp_path / "results.json")
    results.add("ab", record_of(run, made, "key"))
    kept = results.read()["ab"]
    assert kept.intervals == {key: (2.0, 4.0)}
    assert kept.notes == {"evaluate-samples": ["the reference of the distances is 90 images.", "500 images are few."]}


def test_a_file_written_before_there_were_intervals_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    before = {"row": "none", "seed": 0, "metrics": {"data/rows": 9.0}, "stages": {}, "device_seconds": {}}
    path.write_text(json.dumps({"runs": {"ab": before}}))
    record = InFile(path).read()["ab"]
    assert (record.metrics, record.intervals, record.notes) == ({"data/rows": 9.0}, {}, {})
