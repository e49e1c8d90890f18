"""The gate: which candidate becomes champion."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import GateConfig
from pipeline.stages.register_gate import Champion, decide

metric = st.floats(-1e6, 1e6)


@given(metric, metric, st.floats(0, 10), st.sampled_from(["lower", "higher"]))
def test_the_gate_never_promotes_what_is_worse(value, other, margin, direction):
    gate = GateConfig(metric="samples/m", direction=direction, margin=margin)
    promoted, reason = decide(gate, value, Champion("7", other))
    better = value > other if direction == "higher" else value < other
    assert not promoted or better
    assert promoted or not better or "margin" in reason
    assert decide(gate, value, None)[0]


@given(metric, metric, st.sampled_from(["lower", "higher"]))
def test_the_minimum_holds_for_every_champion(value, minimum, direction):
    gate = GateConfig(metric="samples/m", direction=direction, minimum=minimum)
    good = value >= minimum if direction == "higher" else value <= minimum
    assert decide(gate, value, None)[0] == good
    assert good or not decide(gate, value, Champion("7", value - 1 if direction == "higher" else value + 1))[0]


def test_margins_of_decimal_fractions_are_met_exactly():
    gate = GateConfig(metric="samples/m", direction="higher", margin=0.05)
    assert decide(gate, 0.95, Champion("1", 0.90))[0]  # in binary the difference is a little less than 0.05


def test_nothing_is_promoted_by_a_number_that_is_none_or_against_one_unknown():
    gate = GateConfig(metric="samples/m", direction="higher")
    assert not decide(gate, float("nan"), None)[0]
    promoted, reason = decide(gate, 1.0, Champion("4", None))
    assert not promoted
    assert "champion version 4 has no value of samples/m" in reason


def test_a_candidate_within_the_interval_is_not_promoted():
    gate = GateConfig(metric="samples/m", direction="lower", margin="interval")
    champion = Champion("4", 20.0, interval=(18.5, 21.5))
    promoted, reason = decide(gate, 18.1, champion, (17.1, 19.1))  # the half widths are 1.5 and 1: together 1.80
    assert promoted
    assert "by 1.9, more than the interval of the difference, 1.8" in reason
    promoted, reason = decide(gate, 18.3, champion, (17.3, 19.3))
    assert not promoted
    assert "samples/m 18.3 beats 20 of champion version 4 by 1.7, not by more than the interval" in reason
    assert not decide(gate, 21, champion, (20, 22))[0]
    assert decide(gate, 18.0, None, (17, 19))[0]


def test_a_champion_of_before_has_the_candidates_interval():
    gate = GateConfig(metric="samples/m", direction="higher", margin="interval")
    assert decide(gate, 0.95, Champion("4", 0.92), (0.93, 0.97))[0]
    assert not decide(gate, 0.94, Champion("4", 0.92), (0.92, 0.96))[0]
    promoted, reason = decide(gate, 0.95, Champion("4", 0.92), None)
    assert not promoted
    assert "it has no interval" in reason


@given(metric, metric, st.sampled_from([0.0, 1.0, "interval"]))
def test_another_reference_is_said_and_decides_nothing(value, other, margin):
    gate = GateConfig(metric="samples/precision/inception", direction="higher", margin=margin)
    interval, ours = (value - 1, value + 1), "a" * 64
    decisions = [
        decide(gate, value, Champion("7", other, None, interval, theirs), interval, ours)
        for theirs in (None, ours, "b" * 64)
    ]
    assert len({promoted for promoted, _ in decisions}) == 1
    assert ["measured against another reference" in reason for _, reason in decisions] == [False, False, True]
    assert "aaaaaaaaaaaa" in decisions[2][1]
    assert "bbbbbbbbbbbb" in decisions[2][1]


def test_what_is_not_measured_against_a_reference_says_nothing_of_it():
    for name in ("reconstruction/psnr", "samples/class_accuracy", "samples/inception_score"):
        gate = GateConfig(metric=name, direction="higher")
        assert "reference" not in decide(gate, 2.0, Champion("7", 1.0, reference="b" * 64), None, "a" * 64)[1]
