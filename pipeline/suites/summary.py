"""What came out of a suite, in numbers: means and intervals over seeds, and whether the paper's order came out.

No text is laid out here.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from models import sizes
from models.intervals import Interval, half_width_of_difference
from pipeline.config import Config
from pipeline.suites.measures import recorded_key
from pipeline.suites.results import Measured
from pipeline.suites.schema import Claim, Column, Row, Suite
from pipeline.workflow import sit_sizes

# Student's t for 95%, two-sided, with 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_LARGE = 2.131  # from there on the interval is a little too wide
INTERVAL = "mean ± 95% t-interval over seeds"
IMAGE_INTERVAL = "of one seed ± 95% interval over the images of its run, which holds no other seeds"


@dataclass(frozen=True)
class Cell:
    """One number of one row: ours over seeds, beside the paper's."""

    values: tuple[float, ...]
    """One for each seed that was run, in the order of seeds."""
    printed: float | str | None
    images: Interval | None = None
    """Of a single value: its 95% interval over the images of that run, where one is known."""

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def interval(self) -> Interval | None:
        """The 95% t-interval of the mean over seeds; of one seed, its interval over images."""
        count = len(self.values)
        if count < 2:
            return self.images
        quantile = _T[count - 2] if count - 2 < len(_T) else _T_LARGE
        mean, half = statistics.fmean(self.values), quantile * statistics.stdev(self.values) / math.sqrt(count)
        return mean - half, mean + half

    @property
    def half_width(self) -> float | None:
        interval = self.interval
        return (interval[1] - interval[0]) / 2 if interval is not None else None


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    row: Row
    status: str
    """`run`, `n of m seeds`, `not run yet`, or its standing where nothing is to be run."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Pair:
    """Two rows that follow each other in a claimed order."""

    better: str
    worse: str
    agree: int
    pairs: int
    """Of seeds: each of the one row with each of the other."""
    close: bool
    """Of two rows one of which has one seed: whether they differ by less than the interval of their difference."""


Outcome = Literal["reproduced", "within the interval", "not reproduced", "open"]


@dataclass(frozen=True)
class Verdict:
    """A claimed order, and what came out."""

    claim: Claim
    pairs: tuple[Pair, ...]
    outcome: Outcome
    """Whether the means are in this order, and whether neighbours are close; open unless every row of it was run."""

    @property
    def share(self) -> float | None:
        """Of all pairs of seeds, those that agree; None without any."""
        total = sum(pair.pairs for pair in self.pairs)
        return sum(pair.agree for pair in self.pairs) / total if total else None


def lines_of(suite: Suite, rows: Sequence[Row], scale: str, found: Sequence[Measured]) -> list[Line]:
    """The table's rows."""
    lines = []
    for row in rows:
        own = [one for one in found if one.run.row.name == row.name]
        cells = tuple(_cell(column, scale, own, row.printed.get(column.name)) for column in suite.columns)
        lines.append(Line(row, _status(row, own), cells))
    return lines


def _status(row: Row, own: Sequence[Measured]) -> str:
    done = sum(one.record is not None for one in own)
    if not own:
        return row.standing
    if done == len(own):
        return "run"
    return f"{done} of {len(own)} seeds" if done else "not run yet"


def _cell(column: Column, scale: str, own: Sequence[Measured], printed: float | str | None) -> Cell:
    found, unit = [*_numbers(column, scale, own)], column.unit
    interval = found[0][1] if len(found) == 1 else None
    images = (interval[0] / unit, interval[1] / unit) if interval is not None else None
    return Cell(tuple(value / unit for value, _ in found), printed, images)


def _numbers(column: Column, scale: str, own: Sequence[Measured]) -> Iterator[tuple[float, Interval | None]]:
    """The column's number of each seed that was run, with its interval over images if it has one; a closed form is the
    same for every seed, and needs no run.
    """
    key = column.key(scale)
    if key is None:
        return
    if key in _SIZES:
        if own:
            yield _SIZES[key](own[0].run.config), None
        return
    for run, record in own:
        name = recorded_key(column, scale, run.config)
        if name is not None and record is not None and name in record.metrics:
            yield record.metrics[name], record.intervals.get(name)


def _tokenizer(config: Config) -> sizes.TokenizerSizes:
    return sizes.tokenizer_sizes(config.tokenizer.kind, config.tokenizer_network)


_SIZES: dict[str, Callable[[Config], float]] = {
    "size/tokenizer_gflops": lambda config: _tokenizer(config).gflops,
    "size/tokenizer_parameters": lambda config: _tokenizer(config).parameters,
    "size/sit_parameters": lambda config: sit_sizes(config)["parameters"],
}


def verdicts(suite: Suite, lines: Sequence[Line]) -> list[Verdict]:
    """Each claim against the table. Rows that are not in the table, or were not run, leave it open."""
    return [_verdict(claim, suite, {line.row.name: line for line in lines}) for claim in suite.order]


def _verdict(claim: Claim, suite: Suite, lines: dict[str, Line]) -> Verdict:
    index = [column.name for column in suite.columns].index(claim.column)
    lower = suite.columns[index].better_is == "lower"

    def cell(name: str) -> Cell:
        return lines[name].cells[index] if name in lines else Cell((), None)

    def is_better(one: float, other: float) -> bool:
        return one < other if lower else one > other

    pairs = []
    for better, worse in pairwise(claim.rows):
        first, second = cell(better), cell(worse)
        both = [(one, other) for one in first.values for other in second.values]
        agree = sum(is_better(*pair) for pair in both)
        pairs.append(Pair(better, worse, agree, len(both), _are_close(first, second)))
    means = [mean for name in claim.rows if (mean := cell(name).mean) is not None]
    outcome: Outcome
    if len(means) < len(claim.rows):
        outcome = "open"
    elif not all(is_better(*two) for two in pairwise(means)):
        outcome = "not reproduced"
    else:
        outcome = "within the interval" if any(pair.close for pair in pairs) else "reproduced"
    return Verdict(claim, tuple(pairs), outcome)


def _are_close(one: Cell, other: Cell) -> bool:
    """Whether one seed's interval over images cannot tell them apart; of several seeds, the pairs say more."""
    if min(len(one.values), len(other.values)) != 1 or one.interval is None or other.interval is None:
        return False
    difference = statistics.fmean(one.values) - statistics.fmean(other.values)
    return abs(difference) < half_width_of_difference(one.interval, other.interval)
