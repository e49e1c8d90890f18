"""Losses by step and throughput of a training, and rank 0's reports of both to outbox, gauges and driver."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.cluster import publish
from pipeline.tracking import Outbox, metric_event
from pipeline.training.job import Loop
from pipeline.training.trainee import Batches

_FLUSH_SECONDS = 2.0


class History:
    """The log lines with mean losses since the previous line, and the number of skipped steps.

    Means are unweighted, over the steps that were not skipped; a term counts only in the steps that have it.
    """

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.skipped = 0
        self.in_a_row = 0

    def add(self, losses: dict[str, float]) -> None:
        if not math.isfinite(losses["loss"]):
            self.skipped += 1
            self.in_a_row += 1
            return
        self.in_a_row = 0
        for name, value in losses.items():
            if math.isfinite(value):  # NaN for a bin of t without samples
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def close_line(self, step: int) -> dict[str, float]:
        """The line for the steps since the last one; `step` counts from 1. The loss is NaN if all were skipped."""
        line: dict[str, float] = {"step": step}
        line.update({name: total / self.counts[name] for name, total in self.sums.items()})
        line.setdefault("loss", math.nan)
        line["skipped"] = self.skipped
        self.lines.append(line)
        self.sums, self.counts = {}, {}
        return line

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def text(self) -> str:
        """JSON lines; a non-finite loss is null."""
        finite = (
            {name: value if math.isfinite(value) else None for name, value in line.items()} for line in self.lines
        )
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in finite)


class Meter:
    """Throughput since the last line: examples/s, seconds per step, share of time waiting for data, MFU."""

    def __init__(self, loop: Loop, batches: "Batches[Any]", flops_per_step: float) -> None:
        self.loop, self.batches, self.flops = loop, batches, flops_per_step
        self.began, self.steps, self.waited = time.monotonic(), 0, batches.waited

    def read(self) -> dict[str, float]:
        seconds = max(1e-9, time.monotonic() - self.began)
        values = {
            "images_per_second": self.steps * self.loop.batch_size / seconds,
            "step_seconds": seconds / max(1, self.steps),
            "data_wait_share": (self.batches.waited - self.waited) / seconds,
            "mfu": self.steps * self.flops / seconds / self.loop.peak_flops,
        }
        self.began, self.steps, self.waited = time.monotonic(), 0, self.batches.waited
        return values


class Reporter:
    """Rank 0's reports: log lines and measurements to outbox and gauges, the current step to the driver's bar."""

    def __init__(self, loop: Loop, earlier: list[dict[str, float]]) -> None:
        """`earlier`: the lines from before a resume. They are posted again, since the previous attempt may have died
        before posting some; steps that MLflow already has are skipped.
        """
        self.loop = loop
        self.outbox = Outbox(loop.storage, loop.outbox)
        self._events = [self._event(line, {}) for line in earlier]
        self._last = 0.0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="reporter")
        self._unwritten: list[dict[str, Any]] = []  # events of a failed write, for the next one

    def line(self, line: dict[str, float], measured: dict[str, float]) -> None:
        publish(self.loop.stage, {**line, **measured})
        self._events.append(self._event(line, measured))
        if time.monotonic() - self._last > _FLUSH_SECONDS:
            self.flush(line)

    def _event(self, line: dict[str, float], measured: dict[str, float]) -> dict[str, Any]:
        losses = {name: value for name, value in line.items() if name != "step" and math.isfinite(value)}
        values = {f"{self.loop.name}/{name}": value for name, value in {**losses, **measured}.items()}
        return metric_event(values, int(line["step"]))

    def flush(self, line: dict[str, float]) -> None:
        """Write the pending events in the background; a failed write is repeated with the next one."""
        self._last = time.monotonic()
        events, self._events = self._events, []
        self._writer.submit(self._write, events, line)

    def _write(self, events: list[dict[str, Any]], line: dict[str, float]) -> None:
        self._unwritten += events
        if self._unwritten:
            self.outbox.post(*self._unwritten)
            self._unwritten = []
        shown = {name: value for name, value in line.items() if math.isfinite(value)}
        self.loop.storage.write(f"{self.loop.work}/progress.json", json.dumps(shown).encode())

    def close(self, line: dict[str, float]) -> None:
        """Write all pending events; `line` is the last line. Raises the error of the write."""
        self._writer.shutdown(wait=True)
        self._write(self._events, line)
