import pytest
import torch
from torch import nn

from models.ema import EMA

MADE = torch.tensor(True)


def test_closed_form():
    model = nn.Linear(3, 2)
    start = model.weight.detach().clone()
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    for _ in range(5):
        ema.update(model, MADE)
    torch.testing.assert_close(ema.model.weight, start + 1 - 0.9**5)


def test_the_average_is_a_frozen_copy_in_eval_mode():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    ema = EMA(model, 0.9)
    assert not ema.model.training
    assert model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert ema.model[0].weight is not model[0].weight


def test_decay_0_follows_and_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, 0.0)
    with torch.no_grad():
        model.weight.fill_(3.0)
        assert model.running_mean is not None
        model.running_mean.fill_(5.0)
    ema.update(model, MADE)
    assert torch.equal(ema.model.weight, model.weight)
    assert ema.model.running_mean is not None
    assert torch.equal(ema.model.running_mean, model.running_mean)


def test_average_of_bf16_weights_is_fp32():
    model = nn.Linear(2, 2).bfloat16()
    ema = EMA(model, 0.999)
    with torch.no_grad():
        model.weight.add_(1.0)
    before = ema.model.weight.clone()
    ema.update(model, MADE)
    assert ema.model.weight.dtype == torch.float32
    assert bool((ema.model.weight != before).all())


def test_state_round_trip():
    ema = EMA(nn.Linear(3, 2), 0.5)
    other = EMA(nn.Linear(3, 2), 0.5)
    other.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    assert torch.equal(other.model.weight, ema.model.weight)
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay"):
            EMA(nn.Linear(1, 1), decay)
