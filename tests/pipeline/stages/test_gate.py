"""The gate: which candidate becomes champion."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import GateConfig
from pipeline.stages.register import Champion, decide

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
