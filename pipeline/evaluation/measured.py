"""Metrics with their intervals, on the way from tasks to an artifact. No torch: drivers use it."""

from dataclasses import dataclass, field
from typing import Any

from models.intervals import Interval, normal_interval, share_interval

MANIFOLD = 10_000  # images of a reference whose features are kept, as in ADM's: for KID, precision and recall
ANALYZED = 256  # images at most of which `analyze` draws and measures the latents
REMOVALS = 10  # shares of their frequencies that it removes in turn: Figure 1(c)


@dataclass
class Measured:
    """Metrics by key, their 95% intervals, and lines on how to read them, each once."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, key: str, value: float, interval: Interval) -> None:
        self.metrics[key], self.intervals[key] = value, interval

    def add_estimate(self, key: str, value: float, error: float) -> None:
        """With its standard error."""
        self.add(key, value, normal_interval(value, error))

    def add_share(self, key: str, share: float, count: int) -> None:
        self.add(key, share, share_interval(share, count))

    def note(self, line: str | None) -> None:
        """None: there is nothing to say."""
        if line is not None and line not in self.notes:
            self.notes.append(line)

    def update(self, record: dict[str, Any]) -> None:
        """Take over what a task has measured (`record`)."""
        self.metrics |= record["metrics"]
        self.intervals |= record["intervals"]
        for line in record.get("notes", ()):  # a task that an earlier version has done left none
            self.note(line)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"metrics": self.metrics, "intervals": self.intervals, "notes": self.notes}
