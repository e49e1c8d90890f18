"""Ray's dashboard ends and comes back while a log is followed; the head and the job know nothing of it."""

import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest

from deploy.jobs import Dashboard
from deploy.submit import Work, submit
from tests.support.groups import Group
from tests.support.ray_head import Head, running_head

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def processes(head: Head, part: str) -> list[psutil.Process]:
    """The head's, with this in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if part in " ".join(process.cmdline()) and process.environ().get("RAY_TMPDIR") == head.scratch:
                found.append(process)
        except psutil.Error:
            continue
    return found


class Restart:
    """Ends the dashboard when the first line of the log has come, and starts it again two seconds later."""

    def __init__(self, head: Head, folder: Path) -> None:
        self.printed = list[str]()
        (self._dashboard,) = processes(head, "dashboard/dashboard.py")
        self._command, self._environment = self._dashboard.cmdline(), self._dashboard.environ()
        self._log = folder / "dashboard.log"
        self.again: Group | None = None
        self._begun = threading.Event()

    def __call__(self, piece: str) -> None:
        self.printed.append(piece)
        if "line " in piece and not self._begun.is_set():
            self._begun.set()
            for process in [*self._dashboard.children(recursive=True), self._dashboard]:
                process.kill()
            threading.Timer(2, self._start).start()

    def _start(self) -> None:
        self.again = Group(self._command, self._log, self._environment)


def test_submit_goes_on(tmp_path: Path) -> None:
    said = list[str]()
    work = Work("restart-0123456789ab", "for n in $(seq 60); do echo line $n; sleep 0.4; done; exit 7", {}, {})
    with running_head(tmp_path, {}) as head:
        for process in processes(head, str(Path(sys.executable).with_name("ray"))):
            process.suspend()  # `ray start --block` would end the head with its dashboard
        restart = Restart(head, tmp_path)
        try:
            assert submit(Dashboard(head.address, head.token), work, 1, said.append, restart) == 7
        finally:
            if restart.again is not None:
                restart.again.end(signal.SIGKILL)
    lines = [line for line in "".join(restart.printed).splitlines(keepends=True) if line.startswith("line ")]
    assert lines == [f"line {number}\n" for number in range(1, 61)]
    assert said[0].startswith("submitted restart-0123456789ab-1 to ")
    assert said[1:] == [f"no answer from {head.address}: retrying for up to 600 s"]
