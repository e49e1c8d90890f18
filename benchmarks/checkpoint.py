"""How long does a checkpoint stop the training, when is it stored, how much memory does it take beside the state? And
restoring it? On a local disk and on S3 (a Ceph gateway on this machine), this code against an earlier commit.

Run: python -m benchmarks.checkpoint [--gigabytes 1 4] [--to disk s3] [--before COMMIT] [--rounds 3].
Each save and load is a process of its own. Seconds are medians; memory is the largest of all rounds: the peak of the
anonymous pages (RssAnon) less what there was before and what stays, as a multiple of the state. The page cache, which
mapped files are part of, is not counted. S3 needs Ceph's packages, and room on the disk of the temporary folder.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.common import alternate, save
from pipeline.storage.uri import open_storage

_SIDE = Path(__file__).with_name("checkpoint_side.py")
_HERE = Path(__file__).parents[1]
_POLL_SECONDS = 0.005

Row = dict[str, float]


class _Peak:
    """The largest RssAnon of a process since the last `take`, in bytes."""

    def __init__(self, pid: int) -> None:
        self._status, self._peak, self._stop = Path(f"/proc/{pid}/status"), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._peak = max(self._peak, self.now())

    def now(self) -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", self._status.read_text())
        return int(found[1]) * 1024 if found else 0

    def take(self) -> int:
        peak, self._peak = max(self._peak, self.now()), 0
        return peak

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def run_side(tree: Path, mode: str, uri: str, state_bytes: int, environment: dict[str, str]) -> list[Row]:
    """A row for each part that the side measures, with `memory`: bytes beside the state, over the state's bytes."""
    command = [sys.executable, str(_SIDE), mode, uri, str(state_bytes)]
    process = subprocess.Popen(
        command, cwd=tree, env={**os.environ, **environment, "PYTHONPATH": str(tree)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    rows, before, peak = list[Row](), 0, None
    for line in process.stdout:
        peak = peak or _Peak(process.pid)
        row: Row = json.loads(line)
        if row:
            row["memory"] = (peak.take() - before - row.pop("kept_bytes", 0)) / row["state_bytes"]
            rows.append(row)
        else:
            before = peak.now()
            peak.take()
        if row and (mode == "load" or len(rows) == 2):
            peak.close()  # before the process ends
        process.stdin.write("\n")
        process.stdin.flush()
    if process.wait():
        raise RuntimeError(f"{mode} with the code in {tree} failed with exit code {process.returncode}")
    return rows


@dataclass(frozen=True)
class Place:
    """Where checkpoints are stored, and the environment to reach it."""

    uri: str
    environment: dict[str, str]


def measure(places: dict[str, Place], trees: dict[str, Path], gigabytes: list[float], rounds: int) -> dict[str, Row]:
    """A row for each size, place and tree."""
    rows = dict[str, Row]()
    for size in gigabytes:
        for where, place in places.items():
            found: dict[str, list[Row]] = {name: [] for name in trees}
            sides: dict[str, Callable[[], float]] = {
                name: partial(_one_round, tree, place, int(size * 1e9), found[name]) for name, tree in trees.items()
            }
            alternate(sides, rounds)
            for name, measured in found.items():
                rows[f"{size:g} GB, {where}, {name}"] = {
                    key: (max if "memory" in key else statistics.median)(row[key] for row in measured)
                    for key in measured[0]
                }
    return rows


def _one_round(tree: Path, place: Place, state_bytes: int, rows: list[Row]) -> float:
    """Save twice and load once; appends a row."""
    first, second = run_side(tree, "save", place.uri, state_bytes, place.environment)
    (loaded,) = run_side(tree, "load", place.uri, state_bytes, place.environment)
    with _acting_as(place.environment):
        open_storage(place.uri).delete_folder("checkpoints")
    row = {
        "save_blocked_first": first["blocked"], "save_blocked": second["blocked"], "save_whole": second["whole"],
        "save_memory": max(first["memory"], second["memory"]), "load_whole": loaded["whole"],
        "load_memory": loaded["memory"],
    }  # fmt: skip
    rows.append(row)
    print(f"{tree} {place.uri}", "  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    return row["save_whole"]


@contextmanager
def _acting_as(environment: dict[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit of this repository."""
    subprocess.run(
        ["git", "worktree", "add", "--detach", str(folder), commit], cwd=_HERE, check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=_HERE, check=True)


@contextmanager
def opened_places(names: list[str], folder: Path) -> Iterator[dict[str, Place]]:
    with ExitStack() as stack:
        places = {"disk": Place((folder / "root").as_uri(), {})} if "disk" in names else {}
        if "s3" in names:
            from tests.support.ceph import make_bucket, running_ceph

            ceph = stack.enter_context(running_ceph(on_disk=True))
            user = ceph.add_user("benchmark")
            make_bucket(user, "tests")
            places["s3"] = Place("s3://tests/root", {**user, "XDG_CACHE_HOME": str(folder / "cache")})
        yield places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--to", nargs="+", choices=["disk", "s3"], default=["disk", "s3"])
    parser.add_argument("--before", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = {"now": _HERE}
        if options.before:
            trees = {"before": stack.enter_context(worktree(options.before, folder / "before")), **trees}
        places = stack.enter_context(opened_places(options.to, folder))
        rows = measure(places, trees, options.gigabytes, options.rounds)
    for name, row in rows.items():
        print(f"{name:<24}", "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    print(save("checkpoint", {"before": options.before, "rounds": options.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
