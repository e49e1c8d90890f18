"""The learning rate by step, and the random numbers by key."""

from pathlib import Path

import pytest
import torch

from models.schedule import learning_rate
from pipeline.training.optimizer import generator
from pipeline.training.world import World
from tests.support.trainers import make_trainee, ranks_of


def test_learning_rate() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.25, "cosine") for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 25, 2 / 25, 3 / 25])
    assert max(rates) == 1.0
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] < 1e-3
    assert learning_rate(99, 100, 1.0, 0.0, "constant") == learning_rate(0, 100, 1.0, 0.0, "constant") == 1.0


def test_the_discriminator_follows_the_tokenizers_schedule(tmp_path: Path) -> None:
    """Each with its own peak; D from its start on, at the rate of that moment."""
    made = ranks_of(tmp_path, "train-tokenizer", 1, None, "tokenizer.learning_rate=4e-3")
    trainee, own = make_trainee(made, World.alone()), made.job.config.tokenizer
    start = int(own.discriminator_start * own.steps)
    batches = trainee.batches(start, start + 3)
    for step, batch in enumerate(batches, start):
        trainee.step(batch, step)
        share = learning_rate(step, own.steps, 1.0, own.warmup, own.decay)
        assert {group["lr"] for group in trainee.optimizer.param_groups} == {4e-3 * share}
        of_d = {group["lr"] for group in trainee.discriminator_optimizer.param_groups}
        assert of_d == {own.discriminator_learning_rate * share}
    batches.close()


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
