"""Runs a suite: each run is a process, which works here or follows a job on a cluster; at most so many at once, none
while another makes what it needs first, or trains what it needs at all.

Killed, the same command goes on: what is recorded is not run again, and stages resume by their fingerprints. A run that
fails stops no other. Runs that share a reference, but no tokenizer, train side by side, and who comes second to the
reference waits for it.
"""

import ctypes
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.markup import escape

from pipeline.artifacts import artifact_path
from pipeline.console import Display, own_console
from pipeline.errors import ContractError
from pipeline.storage import open_storage
from pipeline.suites.planning import nodes_of
from pipeline.suites.results import Record, Results, measured, record_of
from pipeline.suites.runs import Run
from pipeline.workflow import SECTIONS, Runner, artifacts_of

_POLL_SECONDS = 2.0
_ROOM_SECONDS = 30.0  # for a process that was asked to end: it saves a checkpoint
_ERROR = "error: "  # begins the line by which a command tells why it ended


@dataclass(frozen=True)
class Way:
    """How runs are made, and where their artifacts lie."""

    root: str | None = None
    """As the command line has it."""
    program: tuple[str, ...] = ("pipeline",)
    """What follows `python -m`, in front of `run` and its arguments."""
    options: tuple[str, ...] = ()
    """What follows these."""
    shown: bool = True
    """Whether a run that has no other beside it writes to this screen, and not to a log."""

    def command(self, run: Run) -> list[str]:
        """What follows `python -m`."""
        return [*self.program, *run.command(self.root), *self.options]

    def command_line(self, run: Run) -> str:
        """For a person who repeats it."""
        return shlex.join(["python", "-m", *self.command(run)])


@dataclass
class Failure:
    """A run that ended with an error."""

    run: Run
    line: str
    """The last line that tells of an error."""


@dataclass
class _Started:
    """A process at work on a run. What it prints is in `printed`, its stderr last, or on this screen."""

    run: Run
    process: subprocess.Popen[bytes]
    printed: list[Path]
    open_files: list[IO[bytes]] = field(default_factory=list)

    def close(self) -> None:
        for file in self.open_files:
            file.close()

    def last_line(self) -> str:
        """Of an error, of whichever file. A job's error is in what was printed of it, not on stderr."""
        printed = "\n".join(path.read_text(errors="replace") for path in self.printed)
        lines = [line for line in printed.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(_ERROR)] or lines
        return told[-1].removeprefix(_ERROR) if told else f"it ended with code {self.process.returncode}"


def run_suite(
    runs: Sequence[Run],
    results: Results,
    way: Way,
    logs: Path,
    at_once: int,
    say: Callable[[str], None],
) -> list[Failure]:
    """Make what is missing, and record each run as it ends; returns those that failed.

    Args:
        runs: with sources that are listed, so that their fingerprints are known.
        way: how each is made.
        logs: a folder for what the processes print.
        at_once: of them at a time, at most.
        say: is told a line at a time, in rich's markup.
    """
    for one in measured([*runs], results.read()):
        if one.record is None and not _unmade(one.run):  # by another suite, or before the last call was killed
            results.add(one.run.identities[one.run.until], recorded(one.run))
    waiting = [one.run for one in measured([*runs], results.read()) if one.record is None]
    say(f"{len(runs) - len(waiting)} of {len(runs)} runs are recorded in {escape(results.place)}")
    failures: list[Failure] = []
    working: list[_Started] = []
    logs.mkdir(parents=True, exist_ok=True)
    with _ended(working):
        while waiting or working:
            for started in [one for one in working if one.process.poll() is not None]:
                working.remove(started)
                failure = _finish(started, results)
                failures += [failure] if failure else []
                say(_told(started.run, failure, way))
            while len(working) < at_once and (run := _next(waiting, [one.run for one in working])) is not None:
                waiting.remove(run)
                say(f"[bold]{escape(run.label)}[/]  {escape(run.preset)}")
                working.append(_start(run, way, logs, shown=way.shown and at_once == 1))
            if working:
                time.sleep(_POLL_SECONDS)
    return failures


def _told(run: Run, failure: Failure | None, way: Way) -> str:
    if failure is None:
        return f"[green]✓[/] {escape(run.label)}"
    return f"[red]failed[/] {escape(run.label)}: {escape(failure.line)}\n  {escape(way.command_line(run))}"


def _next(waiting: Sequence[Run], working: Sequence[Run]) -> Run | None:
    """The first run with work of its own beside the others'. Beside none, simply the first."""
    if not working:
        return waiting[0] if waiting else None
    taken = {run.identities[name] for run in working for name in _unmade(run)}

    def has_work(run: Run) -> bool:
        names = _unmade(run)
        needed = {run.identities[name] for name in names if name == names[0] or name in SECTIONS}
        return not taken & needed and not _goes_on(run, working)

    return next((run for run in waiting if has_work(run)), None)


def _unmade(run: Run) -> list[str]:
    """Its stages without a current artifact, in order."""
    return [name for name, node in nodes_of(run).items() if node.status != "cached"]


def _goes_on(run: Run, working: Sequence[Run]) -> bool:
    """Whether one of these trains a shorter generator, which this run may go on from."""
    return any(
        other.config.sit.steps < run.config.sit.steps
        and other.config.sit.keep_state
        and other.seed == run.seed
        and other.identities["train-tokenizer"] == run.identities["train-tokenizer"]
        for other in working
    )


def _end_with_parent() -> None:
    """In a new process: it is asked to end when this one is killed, or it would hold its lease and train on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _start(run: Run, way: Way, logs: Path, shown: bool) -> _Started:
    name = f"{run.row.name}-{run.seed}".replace("/", "-").replace(" ", "-")
    printed = [logs / f"{name}.{ending}" for ending in (("err",) if shown else ("log", "err"))]
    files: list[IO[bytes]] = [path.open("wb") for path in printed]
    assert run.fingerprint is not None  # the source is resolved
    command = [sys.executable, "-m", *way.command(run), "--wait", "--expect", run.fingerprint]
    process = subprocess.Popen(  # one thread, and nothing but a system call
        command,
        stdout=None if shown else files[0],
        stderr=files[-1],
        stdin=subprocess.DEVNULL,
        preexec_fn=_end_with_parent,
    )
    return _Started(run, process, printed, files)


def _finish(started: _Started, results: Results) -> Failure | None:
    """Record a run that has ended well; else its failure."""
    started.close()
    if started.process.returncode != 0:
        return Failure(started.run, started.last_line())
    fingerprint = started.run.fingerprint
    assert fingerprint is not None
    try:
        results.add(fingerprint, recorded(started.run))
    except ContractError as error:  # its artifact is gone, or was replaced
        return Failure(started.run, str(error))
    return None


def recorded(run: Run) -> Record:
    """What is kept of a run whose artifacts are there. ContractError if one is not."""
    made = artifacts_of([*nodes_of(run).values()])
    for stage in run.identities:
        if stage not in made:
            place = artifact_path(stage, run.identities[stage])
            raise ContractError(f"{place} is not at {open_storage(run.config.root).root}", "Run again.")
    return record_of(run, made, Runner(run.config, Display(own_console()), run.preset).key)


@contextmanager
def _ended(working: list[_Started]) -> Iterator[None]:
    """End the processes that are still at work if this one is interrupted; they go on by the same command."""
    try:
        yield
    finally:
        for started in working:
            started.process.terminate()
        for started in working:
            try:
                started.process.wait(_ROOM_SECONDS)
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()
            started.close()
