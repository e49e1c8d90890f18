"""Losses by step and throughput of a training, and rank 0's reports of both to outbox, gauges and driver."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from pipeline.cluster import publish
from pipeline.tracking import Outbox, metric_event
from pipeline.training.job import Loop
from pipeline.training.trainee import Batches

_FLUSH_SECONDS = 2.0


class History:
    """The log lines with mean losses since the previous line, and the number of skipped steps.

    Means are unweighted, over the steps that were not skipped; a term counts only in the steps that have it. Sums and
    counts stay on the device until `close_line` reads them, so that no step waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.lines: list[dict[str, float]] = []
        self._names: list[str] = []  # of the terms in this line, sorted
        self._totals = torch.zeros(2, 0, dtype=torch.float64, device=device)  # sum and count of each term
        # Skipped steps: in all, in a row up to now, and the most in a row since the last line.
        self._skips = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, means: dict[str, Tensor]) -> None:
        """Add a step's losses, fp64 scalars on the device. The step was skipped if "loss" is not finite."""
        if missing := means.keys() - set(self._names):
            self._insert(missing)
        nothing = self._totals.new_full((), math.nan)
        values_N = torch.stack([means.get(name, nothing) for name in self._names])
        made = torch.isfinite(means["loss"])
        counted_N = torch.isfinite(values_N) & made  # NaN for a bin of t without samples
        self._totals += torch.stack([torch.where(counted_N, values_N, 0.0), counted_N.double()])
        skipped, in_a_row, most = self._skips.unbind()
        in_a_row = torch.where(made, 0.0, in_a_row + 1)
        self._skips = torch.stack([skipped + (~made).double(), in_a_row, torch.maximum(most, in_a_row)])

    def _insert(self, missing: set[str]) -> None:
        """Make room for terms that no earlier step of this line had."""
        total_of = dict(zip(self._names, self._totals.unbind(1), strict=True))
        self._names = sorted(total_of.keys() | missing)
        self._totals = torch.stack([total_of.get(name, self._totals.new_zeros(2)) for name in self._names], 1)

    def open_line(self, step: int) -> tuple[dict[str, float], int]:
        """The line for the steps since the last one, and the most steps in a row that were skipped in them.

        `step` counts from 1. The loss is NaN if all were skipped. This reads from the device, and so waits for it. The
        line stays open: a longer training goes on with it.
        """
        read = torch.cat([self._totals.flatten(), self._skips]).tolist()
        terms = len(self._names)
        line: dict[str, float] = {"step": step}
        for name, total, count in zip(self._names, read[:terms], read[terms : 2 * terms], strict=True):
            if count:
                line[name] = total / count
        line.setdefault("loss", math.nan)
        line["skipped"] = int(read[-3])
        return line, int(read[-1])

    def close_line(self, step: int) -> tuple[dict[str, float], int]:
        """As `open_line`, and a new line begins."""
        line, most = self.open_line(step)
        self.lines.append(line)
        self._names, self._totals = [], self._totals.new_zeros(2, 0)
        self._skips = torch.stack([*self._skips[:2], self._skips[1]])
        return line, most

    def lines_until(self, step: int) -> list[dict[str, float]]:
        """All lines, the last one up to this step if it is open."""
        return [*self.lines, self.open_line(step)[0]] if self._names else self.lines

    def text(self, step: int) -> str:
        """`lines_until` as JSON lines; a non-finite loss is null."""
        finite = (
            {name: value if math.isfinite(value) else None for name, value in line.items()}
            for line in self.lines_until(step)
        )
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in finite)

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines, "names": self._names, "totals": self._totals, "skips": self._skips}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self._totals.device
        self.lines, self._names = state["lines"], state["names"]
        self._totals, self._skips = state["totals"].to(device), state["skips"].to(device)


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
