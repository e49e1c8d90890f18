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
VERDICT = (
    "An order is reproduced, or is not, where neighbours differ by more than the 95% interval of their difference (a "
    "t-interval over seeds, in pairs; of one seed, over its images). Otherwise it cannot be told."
)
IMAGE_INTERVAL = "of one seed ± 95% interval over the images of its run, which holds no other seeds"


@dataclass(frozen=True)
class Cell:
    """One number of one row: ours over seeds, beside the paper's."""

    values: tuple[float, ...]
    """One for each seed that was run, in the order of seeds."""
    printed: float | str | None
    images: Interval | None = None
    """Of a single value: its 95% interval over the images of that run, where one is known."""
    seeds: tuple[int, ...] = ()
    """Of the values; none for a closed form, which is the same for every seed."""

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def interval(self) -> Interval | None:
        """The 95% t-interval of the mean over seeds; of one seed, its interval over images."""
        if len(self.values) < 2:
            return self.images
        mean, half = statistics.fmean(self.values), _half_width(self.values)
        return mean - half, mean + half

    @property
    def half_width(self) -> float | None:
        interval = self.interval
        return (interval[1] - interval[0]) / 2 if interval is not None else None


def _half_width(values: Sequence[float]) -> float:
    """Of the 95% t-interval of their mean. Two values at least."""
    count = len(values)
    quantile = _T[count - 2] if count - 2 < len(_T) else _T_LARGE
    return quantile * statistics.stdev(values) / math.sqrt(count)


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
    ahead: float | None
    """By how much `better` is the better one in the mean, negative where it is the worse; None if one was not run."""
    half_width: float | None
    """Of the 95% interval of `ahead`; None where nothing is known of it."""

    @property
    def outcome(self) -> "Outcome":
        if self.ahead is None:
            return "open"
        if self.half_width is None or abs(self.ahead) <= self.half_width:
            return "cannot be told"
        return "reproduced" if self.ahead > 0 else "not reproduced"


Outcome = Literal["reproduced", "cannot be told", "not reproduced", "open"]


@dataclass(frozen=True)
class Verdict:
    """A claimed order, and what came out."""

    claim: Claim
    pairs: tuple[Pair, ...]

    @property
    def outcome(self) -> Outcome:
        """Open unless every row of it was run; not reproduced if two neighbours are the other way round beyond the
        interval of their difference; reproduced if all are this way round beyond it; else it cannot be told.
        """
        outcomes = {pair.outcome for pair in self.pairs}
        decided: tuple[Outcome, ...] = ("open", "not reproduced", "cannot be told")
        return next((outcome for outcome in decided if outcome in outcomes), "reproduced")

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
    interval = found[0][2] if len(found) == 1 else None
    images = (interval[0] / unit, interval[1] / unit) if interval is not None else None
    seeds = tuple(seed for seed, _, _ in found if seed is not None)
    return Cell(tuple(value / unit for _, value, _ in found), printed, images, seeds)


def _numbers(
    column: Column, scale: str, own: Sequence[Measured]
) -> Iterator[tuple[int | None, float, Interval | None]]:
    """Each seed that was run, the column's number, and its interval over images if it has one; a closed form is the
    same for every seed, has none, and needs no run.
    """
    key = column.key(scale)
    if key is None:
        return
    if key in _SIZES:
        if own:
            yield None, _SIZES[key](own[0].run.config), None
        return
    for run, record in own:
        name = recorded_key(column, scale, run.config)
        if name is not None and record is not None and name in record.metrics:
            yield run.seed, record.metrics[name], record.intervals.get(name)


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
    cells = {name: line.cells[index] for name, line in lines.items()}
    return Verdict(claim, tuple(_pair(better, worse, cells, lower) for better, worse in pairwise(claim.rows)))


def _pair(better: str, worse: str, cells: dict[str, Cell], lower: bool) -> Pair:
    """Two neighbours of a claim on a number of which `lower` ones are better, or higher ones."""
    nothing = Cell((), None)
    first, second = cells.get(better, nothing), cells.get(worse, nothing)
    gains = [other - one if lower else one - other for one in first.values for other in second.values]
    difference, half_width = _difference(second, first) if lower else _difference(first, second)
    return Pair(better, worse, sum(gain > 0 for gain in gains), len(gains), difference, half_width)


def _difference(one: Cell, other: Cell) -> tuple[float | None, float | None]:
    """By how much the mean of one is the higher, and the half width of the difference's 95% interval.

    Rows of a seed have the order of their images and most often the tokenizer in common, so that seeds are taken in
    pairs. Where fewer than two are common, the intervals of both count; two closed forms have none and need none.
    """
    if one.mean is None or other.mean is None:
        return None, None
    if not one.seeds and not other.seeds:
        return one.mean - other.mean, 0.0
    ours, theirs = (dict(zip(cell.seeds, cell.values, strict=True)) for cell in (one, other))
    paired = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(paired) > 1:
        return statistics.fmean(paired), _half_width(paired)
    if one.interval is None or other.interval is None:
        return one.mean - other.mean, None
    return one.mean - other.mean, half_width_of_difference(one.interval, other.interval)
