"""What a person sees: lines that say something new, a rate and a time left that are those of now."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from pipeline import console
from pipeline.console import Display, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock.monotonic)
    return clock


class Log:
    """A display without a terminal."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.display = Display(Console(file=self.file, width=200))
        self.display.begin("train-sit")

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def seconds(clock: Clock, duration: float, every: float = 0.5) -> Iterator[float]:
    """The polls of the driver."""
    end = clock.now + duration
    while clock.now < end:
        clock.now += every
        yield clock.now


def test_a_line_is_written_when_something_has_changed(clock: Clock) -> None:
    log = Log()
    for _ in seconds(clock, 60):
        log.display.progress(10, 300, unit="steps", loss=1.0)
    assert len(log.lines) == 1
    assert "train-sit" in log.lines[0]
    assert "10/300 steps  loss 1" in log.lines[0]
    log.display.progress(11, 300, unit="steps")
    assert len(log.lines) == 2


def test_a_change_is_written_even_if_it_is_the_last_for_long(clock: Clock) -> None:
    log = Log()
    clock.now += 6
    log.display.progress(10, 300, unit="steps")
    for _ in seconds(clock, 60):
        log.display.progress(20, 300, unit="steps")
    assert [line.split()[1] for line in log.lines] == ["10/300", "20/300"]


def test_lines_are_seconds_apart(clock: Clock) -> None:
    log = Log()
    for step, _ in enumerate(seconds(clock, 60), 1):
        log.display.progress(step, 300, unit="steps")
    assert 10 <= len(log.lines) <= 12


def test_the_rate_is_that_of_the_last_minute(clock: Clock) -> None:
    rate, done, found = Rate(), 0, None
    for _ in seconds(clock, 600, every=1):
        done += 1
        found = rate.update(done)
    assert found == pytest.approx(1, rel=0.05)
    for _ in seconds(clock, 70, every=1):
        done += 10
        found = rate.update(done)
    assert found == pytest.approx(10, rel=0.05)


def test_a_slow_start_is_soon_forgotten(clock: Clock) -> None:
    """A worker needs 25 s until its first task of 3 s is done, as imports take their time: 300 s remain, not 2,500."""
    rate = Rate()
    assert rate.update(0) is None
    clock.now += 25
    found = rate.update(1)
    assert found == pytest.approx(1 / 25)
    assert rate.remaining(found, 99) is None, "this would be 41 minutes"
    for done in range(2, 7):
        clock.now += 3
        found = rate.update(done)
    assert found == pytest.approx(1 / 3)
    assert rate.remaining(found, 94) == pytest.approx(3 * 94)


@pytest.mark.parametrize("start_up", [25, 70, 600])
def test_no_time_left_is_told_from_a_start_up(clock: Clock, start_up: int) -> None:
    """However long it takes, as where nodes are added first: 4,000 at 32 a second are 2 minutes, not 5 or 40 hours."""
    rate, told = Rate(), list[float]()
    rate.update(0)
    clock.now += start_up
    for done in range(16, 4000, 16):
        left = rate.remaining(rate.update(done), 4000 - done)
        told += [left] if left is not None else []
        clock.now += 0.5
    assert len(told) > 200
    assert told[0] == pytest.approx(115, rel=0.1)


def test_time_left_of_a_few_slow_units_is_told_after_the_first(clock: Clock) -> None:
    rate = Rate()
    rate.update(0)
    clock.now += 900
    assert rate.remaining(rate.update(1), 2) is None
    clock.now += 61
    assert rate.remaining(rate.update(1), 2) == pytest.approx(2 * 961)


def test_a_rate_falls_while_nothing_is_done(clock: Clock) -> None:
    rate = Rate()
    for done in range(4):
        clock.now += 90
        rate.update(done)
    assert rate.update(3) == pytest.approx(1 / 90)
    clock.now += 270
    found = rate.update(3)
    assert found == pytest.approx(1 / 360)
    assert rate.remaining(found, 10) == pytest.approx(3600)


def test_going_on_from_a_checkpoint_starts_the_rate_again(clock: Clock) -> None:
    rate = Rate()
    for done in range(0, 100, 10):
        clock.now += 10
        rate.update(done)
    assert rate.update(50) is None
    clock.now += 20
    assert rate.update(60) == pytest.approx(0.5)


def test_another_activity_is_counted_by_itself(clock: Clock) -> None:
    log = Log()
    for rows in (2000, 12_000, 50_000):
        clock.now += 6
        log.display.progress(rows, 50_000, unit="images", activity="mirroring")
    clock.now += 6
    log.display.progress(10, 300, unit="steps")
    assert [" ".join(line.split()[1:4]) for line in log.lines[:3]] == [
        "mirroring images 2,000/50,000", "mirroring images 12,000/50,000", "mirroring images 50,000/50,000",
    ]  # fmt: skip
    assert log.lines[3].split() == ["train-sit", "10/300", "steps"], "the steps have no rate yet"


@pytest.mark.parametrize(
    ("each", "shown"),
    [(1, "0.167 images/s"), (100, "16.7 images/s"), (6000, "1,000 images/s"), (75_000, "12,500 images/s")],
)
def test_a_rate_is_written_as_people_do(clock: Clock, each: int, shown: str) -> None:
    log = Log()
    for number in range(3):
        clock.now += 6
        log.display.progress(number * each, 10 * each, unit="images")
    assert f"  {shown}" in log.lines[-1]


def test_a_terminal_shows_the_same_note(clock: Clock) -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=150, force_terminal=True)) as display:
        display.begin("train-sit")
        display.progress(12_000, 50_000, unit="images", activity="mirroring")
    assert "mirroring images 12,000/50,000" in file.getvalue()
