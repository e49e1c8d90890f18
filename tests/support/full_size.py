"""What the full-size tests share: one training step, held against what the gradient says it must do."""

import pytest
import torch


def assert_a_step_does_what_its_gradient_says(model, loss_of, step_size):
    """One small SGD step must lower the loss by step_size * |gradient|^2, and every parameter must have a gradient.

    The step has to be small: at full size a first AdamW step of 1e-4, without warm-up, overshoots and raises the loss.
    """
    before = loss_of(model)
    before.backward()
    parameters = list(model.parameters())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
    expected = step_size * sum(p.grad.double().square().sum().item() for p in parameters)
    torch.optim.SGD(parameters, lr=step_size).step()
    with torch.no_grad():
        assert before.item() - loss_of(model).item() == pytest.approx(expected, rel=0.1)
