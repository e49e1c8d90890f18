"""A clipped step of AdamW: what it computes, and that a skipped one changes nothing, by the host or in the kernel."""

import math

import pytest
import torch
from torch import nn

from models.ema import EMA
from models.optimizer import adamw, clip_gradient, step_if
from models.tokenizers.vit import Tokenizer


def network() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(5, 3)


def give_gradients(model: nn.Module, scale: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=source)


def step(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.Tensor:
    made = clip_gradient(list(model.parameters()), 1.0)
    step_if(made, optimizer)
    return made


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    held = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *held)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_skipped_step_leaves_everything_as_it_was(fused: bool, scale: float) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=fused)
    parameters, ema = list(model.parameters()), EMA(model, 0.9)
    for seed in range(3):
        give_gradients(model, 1.0, seed)
        assert step(optimizer, model)
    before, averages = state_of(model, optimizer), [p.clone() for p in ema.model.parameters()]
    give_gradients(model, scale, 9)
    made = step(optimizer, model)
    ema.update(model, made)
    assert not made
    assert all(torch.equal(a, b) for a, b in zip(state_of(model, optimizer), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), averages, strict=True))
    assert all(parameter.grad is None for parameter in parameters)
    give_gradients(model, 1.0, 4)
    assert step(optimizer, model)
    assert not torch.equal(state_of(model, optimizer)[0], before[0])


def test_a_step_that_is_made_is_that_of_the_optimizer() -> None:
    ours, plain = network(), network()
    optimizers = [torch.optim.AdamW(model.parameters(), 0.1, fused=True) for model in (ours, plain)]
    for seed in range(4):
        for model in (ours, plain):
            give_gradients(model, 3.0, seed)
        step(optimizers[0], ours)
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizers[1].step()
    assert all(
        torch.equal(a, b) for a, b in zip(state_of(ours, optimizers[0]), state_of(plain, optimizers[1]), strict=True)
    )


def test_what_decays_is_what_decays_in_detok() -> None:
    """Matrices and kernels, but no gain, bias, table of positions or embedding."""
    model = Tokenizer(image_size=8, patch_size=4, latent_dim=2, width=8, depth=1, heads=2, hidden=12)
    model.pixel_conv.weight.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = adamw(model, 0.1, (0.9, 0.95), 0.01).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    block = {f"{half}_blocks.0.{layer}.weight" for half in ("encoder", "decoder")
             for layer in ("qkv", "attention_out", "mlp_in", "mlp_out")}  # fmt: skip
    assert {names[id(p)] for p in decayed["params"]} == {*block, "moments_head.weight", "pixel_head.weight"}
    trained = {name for name in names.values() if name != "pixel_conv.weight"}
    assert {names[id(p)] for group in (decayed, others) for p in group["params"]} == trained
