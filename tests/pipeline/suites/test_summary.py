"""Means, intervals and orders, of numbers whose answers are known."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from pipeline.suites import Asked, load_suite, measured, runs_of
from pipeline.suites.schema import Claim
from pipeline.suites.summary import _T, Cell, Pair, Verdict, _pair, lines_of, verdicts
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


FD = "samples/frechet_distance/efficientnet_lite0"


def table(folder, fda, none, half=None):
    """The lines and the verdict for distances by seed; `half`: of their intervals over images."""
    suite = load_suite(written(folder))
    asked = Asked("", max(len(fda), len(none)), (), (), str(folder / "runs"))
    runs = runs_of(suite, asked, fresh=True)
    values = {"fda": fda, "none": none}
    records = {
        str(run.fingerprint): record(run, FD=values[run.row.name][run.seed], floor=1.0 + run.seed)
        for run in runs
        if run.seed < len(values[run.row.name])
    }
    if half is not None:
        records = {
            key: one.model_copy(update={"intervals": {FD: (one.metrics[FD] - half, one.metrics[FD] + half)}})
            for key, one in records.items()
        }
    lines = lines_of(suite, suite.rows, "", measured(runs, records))
    (verdict,) = verdicts(suite, lines)
    return lines, verdict


def test_ours_beside_the_paper(tmp_path):
    lines, _ = table(tmp_path, [10.0, 12.0], [20.0, 22.0])
    none, fda, theirs = lines
    assert (none.status, theirs.status) == ("run", "printed only")
    assert [(cell.mean, cell.printed) for cell in fda.cells] == [(11.0, 14.34), (1.5, None)]
    assert [(cell.mean, cell.printed) for cell in theirs.cells] == [(None, 9.0), (None, None)]


@pytest.mark.parametrize(
    ("fda", "none", "outcome", "share"),
    [
        ([10.0, 12.0], [20.0, 22.0], "reproduced", 1.0),
        ([30.0, 31.0], [20.0, 21.0], "not reproduced", 0.0),
        ([10.0, 21.0], [11.0, 22.0], "reproduced", 0.75),  # of 2 x 2 pairs 10 < 11, 10 < 22 and 21 < 22
        ([10.0, 10.5], [12.0, 11.5], "cannot be told", 1.0),
        ([12.0, 11.5], [10.0, 10.5], "cannot be told", 0.0),
    ],
)
def test_whether_an_order_came_out(tmp_path, fda, none, outcome, share):
    _, verdict = table(tmp_path, fda, none)
    assert (verdict.outcome, verdict.share) == (outcome, share)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=6),
    st.sampled_from(["lower", "higher"]),
)
def test_the_interval_of_a_difference_is_that_of_the_paired_t_test(pairs, better_is):
    """And the outcome that of the test at 5%, whichever way round better is."""
    one, other = zip(*pairs, strict=True)
    seeds = tuple(range(len(pairs)))
    found = _pair(
        "a", "b", {"a": Cell(one, None, seeds=seeds), "b": Cell(other, None, seeds=seeds)}, better_is == "lower"
    )
    sign = -1 if better_is == "lower" else 1
    differences = [sign * (a - b) for a, b in pairs]
    assume(max(differences) - min(differences) > 1e-6)
    low, high = stats.ttest_rel([sign * a for a in one], [sign * b for b in other]).confidence_interval(0.95)
    assert found.ahead == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-3)
    assume(min(abs(low), abs(high)) > 1e-2 * (high - low))
    expected = "reproduced" if low > 0 else "not reproduced" if high < 0 else "cannot be told"
    assert found.outcome == expected


@pytest.mark.parametrize(("half", "outcome"), [(None, "cannot be told"), (1.0, "reproduced"), (1.5, "cannot be told")])
def test_an_order_of_one_seed_that_its_images_cannot_tell(tmp_path, half, outcome):
    """The rows differ by 2, and the half width of their difference is the root of 2 times `half`: 1.41 or 2.12."""
    _, verdict = table(tmp_path, [10.0], [12.0], half)
    assert (verdict.outcome, verdict.share) == (outcome, 1.0)
    other_way_round = {"reproduced": "not reproduced"}.get(outcome, outcome)
    assert table(tmp_path, [12.0], [10.0], half)[1].outcome == other_way_round


def test_of_several_seeds_their_images_do_not_count(tmp_path):
    assert table(tmp_path, [10.0, 10.1], [12.0, 12.1], 100.0)[1].outcome == "reproduced"


def test_a_single_seed_beside_several(tmp_path):
    """10 within 100, of its images, and 12.05 within 0.64, of its seeds."""
    assert table(tmp_path, [10.0], [12.0, 12.1], 100.0)[1].outcome == "cannot be told"
    assert table(tmp_path, [10.0], [12.0, 12.1], 1.0)[1].outcome == "reproduced"


def test_one_pair_that_is_wrong_undoes_an_order_and_one_that_is_close_leaves_it_open_to_doubt():
    def of(*outcomes):
        ahead = {"reproduced": 2.0, "not reproduced": -2.0, "cannot be told": 0.5, "open": None}
        pairs = tuple(Pair("a", "b", 1, 1, ahead[outcome], 1.0) for outcome in outcomes)
        return Verdict(Claim(column="FD", rows=("a", "b", "c")), pairs).outcome

    assert of("reproduced", "reproduced") == "reproduced"
    assert of("reproduced", "cannot be told") == "cannot be told"
    assert of("cannot be told", "not reproduced") == "not reproduced"
    assert of("not reproduced", "open") == "open"


def test_closed_forms_need_no_interval():
    cells = {"a": Cell((3.0,), None), "b": Cell((4.0,), None)}
    assert _pair("a", "b", cells, lower=True).outcome == "reproduced"
    assert _pair("a", "b", cells, lower=False).outcome == "not reproduced"
    assert _pair("a", "a", cells, lower=True).outcome == "cannot be told"


def test_who_has_not_run_yet_is_told_from_who_is_not_to_be_run(tmp_path):
    """Table 2 on digits has one row of ours; others are printed, are for another scale, or have public weights."""
    asked = Asked("digits", 1, (), (), str(tmp_path))
    for suite, expected in (
        (load_suite("table2"), {"ours": "not run yet", "maetok": "printed only", "sd-vae": "not at this scale"}),
        (load_suite("table3"), {"ours": "not run yet", "va-vae": "printed only", "repa": "by command"}),
    ):
        lines = lines_of(suite, suite.rows, "digits", measured(runs_of(suite, asked, fresh=True), {}))
        assert {line.row.name: line.status for line in lines if line.row.name in expected} == expected


def test_a_row_that_was_not_run_leaves_it_open(tmp_path):
    lines, verdict = table(tmp_path, [10.0], [])
    assert (verdict.outcome, verdict.share) == ("open", None)
    assert [line.status for line in lines] == ["not run yet", "run", "printed only"]
    lines, _ = table(tmp_path, [10.0, 11.0], [20.0])
    assert lines[0].status == "1 of 2 seeds"
