"""When two trainings of different lengths have the same learning rates."""

from hypothesis import given
from hypothesis import strategies as st

from models.schedule import learning_rate, same_rates

shares = st.sampled_from([0.0, 0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 1.0])


@given(st.integers(1, 60), st.integers(1, 60), shares, shares)
def test_same_rates_are_those_of_every_step(steps: int, shorter: int, warmup: float, shorter_warmup: float) -> None:
    if shorter > steps:
        return

    def rates(length: int, share: float) -> list[float]:
        return [learning_rate(step, length, 3e-4, share, "constant") for step in range(shorter)]

    said = same_rates(3e-4, steps, warmup, shorter, shorter_warmup)
    assert said == (rates(steps, warmup) == rates(shorter, shorter_warmup))


def test_the_same_number_of_steps_of_warm_up_is_the_same_rate() -> None:
    """A share of a longer training is more steps."""
    assert same_rates(1e-4, 800, 0.125, 400, 0.25)
    assert not same_rates(1e-4, 800, 0.25, 400, 0.25)
    assert same_rates(1e-4, 800, 0.0, 400, 0.0)
