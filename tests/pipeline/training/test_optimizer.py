"""The learning rate by step, and the random numbers by key."""

import pytest
import torch

from pipeline.training.optimizer import generator, learning_rate


def test_learning_rate() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.25, "cosine") for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 25, 2 / 25, 3 / 25])
    assert max(rates) == 1.0
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] < 1e-3
    assert learning_rate(99, 100, 1.0, 0.0, "constant") == learning_rate(0, 100, 1.0, 0.0, "constant") == 1.0


def test_randomness_is_keyed() -> None:
    cpu = torch.device("cpu")
    draws = {
        torch.rand(1, generator=generator(*key, cpu)).item()
        for key in [(0, 0, "t"), (0, 1, "t"), (1, 0, "t"), (0, 0, "noise")]
    }
    assert len(draws) == 4
    assert torch.equal(
        torch.rand(5, generator=generator(3, 4, "t", cpu)), torch.rand(5, generator=generator(3, 4, "t", cpu))
    )
