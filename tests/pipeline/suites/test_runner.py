"""Running a suite: how many at once, who waits for whom, what a failure and a second call do. No Ray, and no training:
the processes are tiny scripts that leave what a run would leave.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.suites import Asked, InFile, Way, load_suite, run_suite, runner, runs_of
from pipeline.suites.runs import Run
from pipeline.workflow import find_stage
from pipeline.workflow.status import Node
from tests.pipeline.suites.user import record, written


class World:
    """Runs whose processes write a file for each stage, and end with an error if asked to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.made = folder, folder / "made"
        self.made.mkdir()
        self.failing: set[str] = set()
        self.waiting: dict[str, str] = {}  # what has to be in the log before a run makes its tokenizer
        self.begun: list[str] = []
        monkeypatch.setattr(runner, "_POLL_SECONDS", 0.02)
        monkeypatch.setattr(runner, "nodes_of", self.nodes)
        monkeypatch.setattr(runner, "recorded", lambda run: record(run, FD=1.0))
        monkeypatch.setattr(Run, "command", lambda run, root: self.command(run))
        started = runner._start

        def counted(run: Run, *rest: Any, **more: Any) -> Any:
            self.begun.append(run.label)
            return started(run, *rest, **more)

        monkeypatch.setattr(runner, "_start", counted)
        monkeypatch.setattr(sys, "executable", str(self.program()))

    def program(self) -> Path:
        """Takes the place of Python: makes the stages in order, a moment each."""
        path = self.folder / "program"
        path.write_text(
            "#!/bin/sh\n"
            'out=2; [ "$2" = deploy ] && { out=1; shift; echo submitted >&2; }\n'  # a job's output
            'shift 2; label="$1"; shift\n'
            f'echo "$label begins" >> {self.folder}/log\n'
            f'stages="{self.folder}/$label.stages"; waits="{self.folder}/$label.waits"\n'
            'for one in $(cat "$stages"); do\n'
            '  if [ -e "$waits" ] && [ "$one" = "$(sed -n 2p "$stages")" ]; then for i in $(seq 500); do\n'
            f'    grep -q "$(cat "$waits")" {self.folder}/log && break; sleep 0.02\n'
            "  done; fi\n"
            f"  sleep 0.05; touch {self.made}/$one; echo made $one >> {self.folder}/log\n"
            "done\n"
            f'if [ -e "{self.folder}/$label.fails" ]; then echo "error: the disk is full" >&$out; exit 1; fi\n'
            f'echo "$label ends" >> {self.folder}/log\n'
        )
        path.chmod(0o755)
        return path

    def command(self, run: Run) -> list[str]:
        label = run.label.replace(", ", "-").replace(" ", "")
        (self.folder / f"{label}.stages").write_text("\n".join(run.identities.values()))
        if run.label in self.failing:
            (self.folder / f"{label}.fails").touch()
        if run.label in self.waiting:
            (self.folder / f"{label}.waits").write_text(self.waiting[run.label])
        return [label]

    def nodes(self, run: Run) -> dict[str, Node]:
        return {
            name: Node(find_stage(name), identity, "cached" if (self.made / identity).exists() else "new", None, None)
            for name, identity in run.identities.items()
        }

    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    def shared(self, one: str, other: str) -> set[str]:
        """The stages that two runs have in common."""
        first, second = ((self.folder / f"{label}.stages").read_text().split() for label in (one, other))
        return set(first) & set(second)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., tuple[list[runner.Failure], list[str]]]:
    runs = runs_of(load_suite(written(tmp_path)), Asked("", 2, (), (), str(tmp_path / "runs")), fresh=True)

    def run(at_once: int = 1, way: Way = HERE) -> tuple[list[runner.Failure], list[str]]:
        said: list[str] = []
        results = InFile(tmp_path / "results.json")
        return run_suite(runs, results, way, tmp_path / "logs", at_once, said.append), said

    return run


HERE = Way()
ALL = ["none, seed 0", "fda, seed 0", "none, seed 1", "fda, seed 1"]


def test_one_after_the_other(world, go):
    failures, said = go()
    assert failures == []
    assert world.begun == ALL
    assert [line.split()[1] for line in world.log() if "seed" in line] == ["begins", "ends"] * 4
    assert said[0].startswith("0 of 4 runs are recorded in ")


def test_what_is_recorded_is_not_run_again(world, go):
    go()
    world.begun.clear()
    for made in world.made.iterdir():
        made.unlink()  # another machine, which has the results and no artifacts
    failures, said = go()
    assert (failures, world.begun) == ([], [])
    assert said[0].startswith("4 of 4 runs are recorded")


def test_what_is_made_and_not_recorded_is_recorded(world, go, tmp_path):
    go()
    (tmp_path / "results.json").unlink()
    world.begun.clear()
    assert go()[0] == []
    assert world.begun == []
    assert len(InFile(tmp_path / "results.json").read()) == 4


def test_at_most_so_many_at_once_and_none_at_what_another_makes(world, go):
    """Two rows of a seed share a tokenizer: the second begins when its latents are there, not beside it. Two seeds
    share images and reference: the second begins when the images are there, and waits for the reference itself.
    """
    world.waiting = {"none, seed 0": "none-seed1 begins"}
    failures, _ = go(at_once=4)
    assert failures == []
    assert sorted(world.begun) == sorted(ALL)
    log = world.log()
    prepared, tokenizer, *_ = (world.folder / "none-seed0.stages").read_text().split()
    assert log.index(f"made {prepared}") < log.index("none-seed1 begins") < log.index(f"made {tokenizer}")
    assert len(world.shared("none-seed0", "none-seed1")) == 2, "images and reference"
    for seed in ("seed0", "seed1"):
        shared = world.shared(f"none-{seed}", f"fda-{seed}")
        assert len(shared) >= 3, "source, tokenizer, latents"
        assert max(log.index(f"made {stage}") for stage in shared) < log.index(f"fda-{seed} begins")
    assert len(list((world.folder / "logs").glob("*.log"))) == 4


def test_a_run_that_fails_stops_no_other(world, go, tmp_path):
    world.failing.add("none, seed 0")
    failures, said = go()
    assert [(one.run.label, one.line) for one in failures] == [("none, seed 0", "the disk is full")]
    assert world.begun == ALL
    assert any("the disk is full" in line and "python -m pipeline" in line for line in said)
    assert len(InFile(tmp_path / "results.json").read()) == 3


def test_of_a_job_on_a_cluster_its_own_error_is_told(world, go):
    """Which it has printed; on stderr the command that follows it says more, and no error."""
    world.failing.add("none, seed 0")
    failures, said = go(way=Way("s3://b/p", ("deploy", "submit"), ("--attempts", "3"), shown=False))
    assert [(one.run.label, one.line) for one in failures] == [("none, seed 0", "the disk is full")]
    (told,) = [line for line in said if "the disk is full" in line]
    assert "python -m deploy submit none-seed0 --attempts 3" in told
    assert sorted(path.name for path in (world.folder / "logs").iterdir())[:2] == ["fda-0.err", "fda-0.log"]


def test_the_same_command_does_what_failed(world, go, tmp_path):
    world.failing.add("none, seed 0")
    go()
    world.failing.clear()
    (tmp_path / "none-seed0.fails").unlink()
    next(iter(world.made.iterdir())).unlink()
    world.begun.clear()
    assert go()[0] == []
    assert set(world.begun) <= {"none, seed 0"}
    assert len(InFile(tmp_path / "results.json").read()) == 4


def test_no_process_outlives_an_interrupt(world, go, monkeypatch):
    """It is asked to end, and waited for."""
    processes = []
    started = runner._start

    def interrupted(run: Run, *rest: Any, **more: Any) -> Any:
        one = started(run, *rest, **more)
        processes.append(one.process)
        return one

    class Slept:
        """The clock of this module alone: it is interrupted in front of the first look at the processes."""

        @staticmethod
        def sleep(_: float) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_start", interrupted)
    monkeypatch.setattr(runner, "time", Slept)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert processes
    assert all(process.poll() is not None for process in processes)
