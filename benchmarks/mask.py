"""Which reading of Eq. 3's mask fits the paper, and what do the other regularizers do to the same latents?

Run: python -m benchmarks.mask --root FOLDER --data FOLDER [--rows NAME ...]
`--data` holds cifar10-train.parquet and cifar10-test.parquet. Each row and seed is a run of `mask.yaml` up to
`analyze`. After each run results/mask.json has its metrics, by the fingerprint of its last artifact: a run that is
recorded is not run again, on whatever machine and below whatever root, and one that was killed goes on, so the same
command resumes the study. `--table` prints what there is as Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import RESULTS, save
from pipeline.config import Config, load_config
from pipeline.console import Display, own_console
from pipeline.workflow import artifacts_of, resolved, stage_fingerprints, survey

HERE = Path(__file__).parent
PRESET = str(HERE / "mask.yaml")
COLUMNS = {
    **{
        f"reconstruction/psnr{suffix}": f"PSNR {level}"
        for level, suffix in enumerate(("", "_level1", "_level2", "_level3"))
    },
    "latent/high_frequency_share": "energy of the upper half",
    "latent/uniform_off_dc": "uniform image off DC",
    **{
        f"reconstruction/frechet_distance/efficientnet_lite0{suffix}": f"distance {level}"
        for level, suffix in enumerate(("", "_level1", "_level2", "_level3"))
    },
}


class Row(NamedTuple):
    """A line of the table: fields of the tokenizer, and the number of seeds."""

    fields: dict[str, Any]
    seeds: int = 2

    def sets(self, seed: int) -> list[str]:
        return [f"seed={seed}", *(f"tokenizer.{name}={value}" for name, value in self.fields.items())]


def _gain(keep: float, **fields: Any) -> dict[str, Any]:
    return {"regularizer": "spectral", "mask": "gain", "keep": keep, **fields}


ROWS = {
    "none": Row({"regularizer": "none"}),
    "remove": Row({"regularizer": "spectral", "mask": "remove"}),
    "gain, keep .25": Row(_gain(0.25)),
    "gain, keep .5": Row(_gain(0.5)),
    "gain, keep .75": Row(_gain(0.75)),
    "square": Row({"regularizer": "spectral", "mask": "square"}, 1),
    "dct": Row({"regularizer": "spectral", "mask": "dct"}, 1),
    "none, d = 4": Row({"regularizer": "none", "latent_dim": 4}, 1),
    "gain, keep .25, d = 4": Row(_gain(0.25, latent_dim=4), 1),
    "gain, keep .5, d = 4": Row(_gain(0.5, latent_dim=4), 1),
    "equivariance": Row({"regularizer": "equivariance"}),
    "scale": Row({"regularizer": "scale"}),
    "matching": Row({"regularizer": "matching"}),
}


def config_of(row: Row, seed: int, root: str, data: Path) -> tuple[Config, list[str]]:
    """The resolved config of one run, and the overrides that lead to it."""
    sources = {"uri": data / "cifar10-train.parquet", "validation_uri": data / "cifar10-test.parquet"}
    sets = [*row.sets(seed), *(f"data.{name}={path.resolve().as_uri()}" for name, path in sources.items())]
    return load_config(PRESET, sets, root), sets


def run(row: Row, seed: int, root: str, data: Path) -> None:
    _, sets = config_of(row, seed, root, data)
    command = [sys.executable, "-m", "pipeline", "run", PRESET, "--until", "analyze", "--root", root]
    subprocess.run([*command, *(part for one in sets for part in ("--set", one))], check=True, cwd=HERE.parent)


def measured(config: Config) -> dict[str, float]:
    """The metrics of a finished run, by `COLUMNS`."""
    artifacts = artifacts_of(survey(config))
    found = {**artifacts["evaluate-tokenizer"].metrics, **artifacts["analyze"].metrics}
    return {key: float(found[key]) for key in COLUMNS}


def recorded() -> dict[str, dict[str, Any]]:
    """What results/mask.json has: by the fingerprint of a run's `analyze`, its row, seed and metrics."""
    path = RESULTS / "mask.json"
    runs: dict[str, dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else {}
    return runs


def complete(name: str, seed: int, root: str, data: Path) -> None:
    """Run one row with one seed and record its metrics, unless they are recorded."""
    with Display(own_console()) as display:
        config = resolved(config_of(ROWS[name], seed, root, data)[0], fresh=True, display=display)
    fingerprint = stage_fingerprints(config)["analyze"]
    assert fingerprint is not None  # the source is resolved
    if fingerprint in recorded():
        return
    run(ROWS[name], seed, root, data)
    one = {"row": name, "seed": seed, "metrics": measured(config)}
    save("mask", {"runs": {**recorded(), fingerprint: one}})  # read anew: others may have finished beside it


def table(runs: Collection[dict[str, Any]]) -> Iterator[str]:
    """Markdown: the mean over seeds, and half of their range where there are several."""
    yield f"| trained with | seeds | {' | '.join(COLUMNS.values())} |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name in ROWS:
        found = [one["metrics"] for one in runs if one["row"] == name]
        if found:
            cells = [_cell(key, [one[key] for one in found]) for key in COLUMNS]
            yield f"| {name} | {len(found)} | {' | '.join(cells)} |"


def _cell(key: str, values: list[float]) -> str:
    digits = 4 if key.startswith("latent/") else 2
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="the artifacts' root")
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10's Parquet files")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="only these")
    parser.add_argument("--table", action="store_true", help="print the recorded results as Markdown; run nothing")
    given = parser.parse_args()
    if given.table:
        print("\n".join(table(recorded().values())))
        return
    for seed in range(max(row.seeds for row in ROWS.values())):
        for name in given.rows:
            if seed < ROWS[name].seeds:
                complete(name, seed, given.root, given.data)


if __name__ == "__main__":
    main()
