"""Progress output while stages run: bars on a terminal, a line every few seconds in a log.

Only output; no decisions are made here. Colours and bars come from rich.
"""

import os
import sys
import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_LINE_SECONDS = 5.0
_RATE_SECONDS = 60.0  # the rate is that of the last minute
_START_SECONDS = 10.0  # of progress after which the time before the first progress no longer counts
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
    """Units per second over the last minute, or since the last change but one if that is longer.

    The time until the first progress (a start-up) counts only until there is a rate without it.
    """

    def __init__(self) -> None:
        self._changes: deque[tuple[float, int]] = deque()  # when the number was first seen
        self._started = False  # the oldest change is progress, not the start

    def update(self, done: int) -> float | None:
        """The rate when `done` units are finished; None if unknown. A lower number than before starts again."""
        now, changes = time.monotonic(), self._changes
        if not changes or done < changes[-1][1]:
            changes.clear()
            self._started = False
        if not changes or done > changes[-1][1]:
            changes.append((now, done))
        while len(changes) > 2 and changes[1][0] <= now - (_RATE_SECONDS if self._started else _START_SECONDS):
            changes.popleft()
            self._started = True
        began, start = changes[0]
        return (done - start) / (now - began) if now - began > 1.0 and done > start else None

    def remaining(self, rate: float | None, units: int) -> float | None:
        """Seconds for `units` more; None while the rate is mostly that of a start-up, which may take minutes.

        Where nothing follows the first progress within a minute, units are slow, and the start-up counts less.
        """
        lasting = len(self._changes) > 1 and time.monotonic() - self._changes[1][0] > _RATE_SECONDS
        return units / rate if rate and units > 0 and (self._started or lasting) else None


def _rate_text(rate: float) -> str:
    """Three digits, without an exponent."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


class Display:
    """Shows one stage after the other: `begin`, any number of `progress`, then `end`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage, self._last, self._rate = "", 0.0, Rate()
        self._activity: str | None = None
        self._written: tuple[str, int] | None = None  # activity and units done in the last line

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(30),
                TextColumn("{task.fields[note]}"),
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
        self._activity = self._written = None
        if self._bars:
            self._task = self._bars.add_task(f"  {stage:<{_NAME_WIDTH}}", total=None, note="starting")

    def progress(self, done: int, total: int, unit: str = "", activity: str = "", **values: float) -> None:
        """Show that `done` of `total` units are finished, and some values.

        `activity`: what is done to the units if it is not the stage's own work. Without a terminal, a line is written
        when something has changed, and not more often than every few seconds.
        """
        if activity != self._activity:
            self._activity, self._rate = activity, Rate()
        rate = self._rate.update(done)
        note = self._note(done, total, unit, activity, rate, values)
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, note=note)
        elif not self.console.is_terminal and self._line_is_due(activity, done):
            self._last, self._written = time.monotonic(), (activity, done)
            self.say(f"  {self._stage:<{_NAME_WIDTH}} {note}")

    def _note(
        self, done: int, total: int, unit: str, activity: str, rate: float | None, values: dict[str, float]
    ) -> str:
        counted = f"{activity} {unit} {done:,}/{total:,}" if activity else f"{done}/{total} {unit if not rate else ''}"
        parts = [counted.rstrip(), *([f"{_rate_text(rate)} {unit}/s"] if rate else [])]
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        left = self._rate.remaining(rate, total - done)
        return "  ".join([*parts, *([f"{duration(left)} left"] if left else [])])

    def _line_is_due(self, activity: str, done: int) -> bool:
        return (activity, done) != self._written and time.monotonic() - self._last > _LINE_SECONDS

    def end(self, stage: str, mark: str, text: str) -> None:
        if self._bars and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self.say(f"{mark} {stage:<{_NAME_WIDTH}} {text}")
