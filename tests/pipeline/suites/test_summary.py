"""Means, intervals and orders, of numbers whose answers are known."""

import pytest
from scipy import stats

from pipeline.suites import Asked, load_suite, measured, runs_of
from pipeline.suites.summary import _T, Cell, lines_of, verdicts
from tests.pipeline.suites.user import record, written


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_the_interval_is_students(count):
    values = tuple(float(value**2) for value in range(count))
    low, high = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=stats.sem(values))
    cell = Cell(values, None)
    assert cell.half_width == pytest.approx((high - low) / 2, rel=1e-3)
    assert cell.mean == pytest.approx((high + low) / 2)


def test_the_table_of_quantiles():
    assert [round(stats.t.ppf(0.975, degrees), 3) for degrees in range(1, len(_T) + 1)] == list(_T)


def test_one_seed_has_no_interval():
    assert Cell((3.0,), None).half_width is None
    assert Cell((), 2.0).mean is None


def table(folder, fda, none):
    """The lines and the verdict for distances by seed."""
    suite = load_suite(written(folder))
    asked = Asked("", max(len(fda), len(none)), (), (), str(folder / "runs"))
    runs = runs_of(suite, asked, fresh=True)
    values = {"fda": fda, "none": none}
    records = {
        str(run.fingerprint): record(run, FD=values[run.row.name][run.seed], floor=1.0 + run.seed)
        for run in runs
        if run.seed < len(values[run.row.name])
    }
    lines = lines_of(suite, suite.rows, "", measured(runs, records))
    (verdict,) = verdicts(suite, lines)
    return lines, verdict


def test_ours_beside_the_paper(tmp_path):
    lines, _ = table(tmp_path, [10.0, 12.0], [20.0, 22.0])
    none, fda, theirs = lines
    assert (none.status, theirs.status) == ("run", "not run")
    assert [(cell.mean, cell.printed) for cell in fda.cells] == [(11.0, 14.34), (1.5, None)]
    assert [(cell.mean, cell.printed) for cell in theirs.cells] == [(None, 9.0), (None, None)]


def test_an_order_that_came_out(tmp_path):
    _, verdict = table(tmp_path, [10.0, 12.0], [20.0, 22.0])
    assert (verdict.reproduced, verdict.share) == (True, 1.0)


def test_an_order_that_holds_for_some_pairs_of_seeds(tmp_path):
    """Of 2 x 2 pairs 10 < 11, 10 < 22 and 21 < 22."""
    _, verdict = table(tmp_path, [10.0, 21.0], [11.0, 22.0])
    assert (verdict.reproduced, verdict.share) == (True, 0.75)


def test_an_order_that_did_not_come_out(tmp_path):
    _, verdict = table(tmp_path, [30.0, 31.0], [20.0, 22.0])
    assert (verdict.reproduced, verdict.share) == (False, 0.0)


def test_a_row_that_was_not_run_leaves_it_open(tmp_path):
    lines, verdict = table(tmp_path, [10.0], [])
    assert (verdict.reproduced, verdict.share) == (None, None)
    assert [line.status for line in lines] == ["not run", "run", "not run"]
    lines, _ = table(tmp_path, [10.0, 11.0], [20.0])
    assert lines[0].status == "1 of 2 seeds"
