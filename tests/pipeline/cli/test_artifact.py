"""artifact gc: what it deletes, and what a preset keeps."""

from pathlib import Path

import pytest

from pipeline.artifacts import all_manifests
from pipeline.cli.artifact import artifact_gc
from pipeline.config import Config, load_config
from pipeline.storage import open_storage
from pipeline.workflow import resolved
from tests.support.artifacts import artifact_writer, manifest, put


def trained(root: Path, *sets: str) -> str:
    """The name of a generator's artifact without files."""
    config: Config = resolved(load_config("quickstart", list(sets), str(root)), fresh=True)
    return put(config, manifest(config, "train-sit", artifact_writer(config, "train-sit"), {})).name


def test_what_a_preset_starts_from_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, start, other = (trained(tmp_path, f"sit.steps={steps}") for steps in (400, 7, 8))
    chosen = ["sit.steps=400", f"sit.start_from='{start.partition('/')[2]}'"]
    begun = trained(tmp_path, *chosen)
    artifact_gc(["quickstart"], chosen, str(tmp_path), yes=False)
    assert f"would delete: {other}" in capsys.readouterr().out
    artifact_gc(["quickstart"], chosen, str(tmp_path), yes=True)
    assert {one.name for one in all_manifests(open_storage(str(tmp_path)))} == {start, begun}
    assert own not in (start, begun)
