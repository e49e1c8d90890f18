"""What is kept of a finished run: it outlives the artifacts, in one JSON file."""

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
