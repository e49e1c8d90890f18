"""A user's suite, as small as can be, for tests: two rows on one tokenizer, and a row that is printed only."""

from pathlib import Path

import yaml

from pipeline.suites.results import Record
from pipeline.suites.runs import Run

TREE = {
    "title": "Does alignment help?",
    "until": "evaluate-samples",
    "rows": [
        {"name": "none", "preset": "quickstart", "set": {"sit.alignment": "none"}, "baseline": True,
         "printed": {"FD": 17.65}},
        {"name": "fda", "preset": "quickstart", "set": {"sit.alignment": "fda"}, "printed": {"FD": 14.34}},
        {"name": "theirs", "printed": {"FD": 9.0}, "note": "from <their> paper"},
    ],
    "columns": [
        {"name": "FD", "metric": "samples/frechet_distance/efficientnet_lite0"},
        {"name": "floor", "metric": "reconstruction/frechet_distance/efficientnet_lite0", "at_level": True},
    ],
    "order": [{"column": "FD", "rows": ["fda", "none"], "place": "Section 1"}],
    "equal": ["data", "tokenizer"],
}  # fmt: skip


def written(folder: Path, **changes: object) -> str:
    """The path of the suite's file, with these keys changed or added."""
    path = folder / "mysweep.yaml"
    path.write_text(yaml.safe_dump({**TREE, **changes}))
    return str(path)


def record(run: Run, **metrics: float) -> Record:
    """What such a run could have measured; `FD` and `floor` by their columns."""
    keys = {
        "FD": "samples/frechet_distance/efficientnet_lite0",
        "floor": "reconstruction/frechet_distance/efficientnet_lite0_level2",
    }
    return Record(
        row=run.row.name,
        seed=run.seed,
        metrics={keys.get(name, name): value for name, value in metrics.items()},
        stages=dict(run.identities),
        device_seconds=dict.fromkeys(run.identities, 360.0),
        mlflow=f"{run.row.name}-key",
    )
