"""Progress output while stages run: bars on a terminal, a line every few seconds in a log.

Only output; no decisions are made here. Colours and bars come from rich.
"""

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 5.0
_NAME_WIDTH = 19


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def own_console() -> Console:
    """A console on a copy of stdout, which still prints while the process's output is redirected."""
    if sys.__stdout__ is None or sys.stdout is not sys.__stdout__:
        return Console()  # the output is captured
    return Console(file=os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1))


class Rate:
    """Units per second since the first report."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def update(self, done: int) -> float | None:
        now = time.monotonic()
        if self._first is None or done < self._first[1]:
            self._first = (now, done)
        began, start = self._first
        return (done - start) / (now - began) if now - began > 1.0 and done > start else None


class Display:
    """Shows one stage after the other: `begin`, any number of `progress`, then `end`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage, self._last, self._rate = "", 0.0, Rate()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def begin(self, stage: str) -> None:
        self._stage, self._last, self._rate = stage, time.monotonic(), Rate()
        if self._bars:
            self._task = self._bars.add_task(f"  {stage:<{_NAME_WIDTH}}", total=None, note="starting")

    def progress(self, done: int, total: int, unit: str = "", **values: float) -> None:
        """Show that `done` of `total` units are finished, and some values."""
        rate = self._rate.update(done)
        numbers = [f"{rate:.3g} {unit}/s" if rate else unit, *(f"{name} {value:.4g}" for name, value in values.items())]
        note = "  ".join(numbers)
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._last > _LINE_SECONDS and not self.console.is_terminal:
            self._last = time.monotonic()
            left = f"  {duration((total - done) / rate)} left" if rate and done < total else ""
            self.say(f"  {self._stage:<{_NAME_WIDTH}} {done}/{total} {note}{left}")

    def end(self, stage: str, mark: str, text: str) -> None:
        if self._bars and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self.say(f"{mark} {stage:<{_NAME_WIDTH}} {text}")
