"""Gradient accumulation and recomputed activations: another memory, the same training up to the order of float sums."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from models.choices import RegularizerKind
from pipeline.metrics import find_metric
from pipeline.training.accumulation import accumulate
from pipeline.training.world import World
from tests.support.trainers import (
    Dies,
    Ranks,
    final_state,
    history,
    make_trainee,
    ranks_of,
    run_ranks,
    same_bits,
    same_state,
)  # fmt: skip

STAGES = ["train-tokenizer", "train-sit"]
PER_SAMPLE = "tokenizer.level_per_sample=true"  # draws that are cut with the rows


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_parts_train_the_same_model(tmp_path: Path, stage: str, world: int) -> None:
    """24 steps, across the start of D at 6, which doubles a rounding every few steps."""
    whole = ranks_of(tmp_path / "whole", stage, 1, None, PER_SAMPLE)
    parts = ranks_of(tmp_path / "parts", stage, world, None, PER_SAMPLE, "cluster.accumulate=3")
    for made in (whole, parts):
        run_ranks(made)
    for a, b in zip(history(whole), history(parts), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=5e-3, abs=1e-5), (a["step"], name)


@pytest.mark.parametrize("stage", [pytest.param("train-tokenizer", marks=pytest.mark.slow), "train-sit"])
def test_parts_resume_to_the_same_bits(tmp_path: Path, stage: str) -> None:
    """In the phase with the discriminator, with a perceptual term."""
    sets = ("cluster.accumulate=2", "cluster.checkpoint_activations=true", "tokenizer.perceptual=efficientnet_lite0")
    still = ranks_of(tmp_path / "still", stage, 1, None, *sets)
    run_ranks(still)
    cut = ranks_of(tmp_path / "cut", stage, 1, 15, *sets)
    with pytest.raises(Dies):
        run_ranks(cut)
    again = Ranks(cut.job, 1)
    run_ranks(again)
    assert same_state(final_state(again), final_state(still))
    if stage == "train-tokenizer":
        assert all("perceptual" in row for row in history(again))


TERM_OF = {"scale": "scale", "spectrum_prior": "spectrum"}
QUICK = ("scale", 1)  # which decodes twice and has a term of its own
CASES = [(kind, 1) for kind in sorted(set(get_args(RegularizerKind)) - {"spectral"})]
CASES += [("equivariance", 2), ("scale", 2)]  # latents of several sizes, and two reconstructions


@pytest.mark.parametrize(
    ("kind", "world"), [pytest.param(*case, marks=() if case == QUICK else pytest.mark.slow) for case in CASES]
)
def test_every_regularizer_in_parts_trains_the_same_model_and_resumes(tmp_path: Path, kind: str, world: int) -> None:
    """10 steps: D starts at 3, the tokenizer meets it at 5, the kill is in front of 7.

    Adam's first steps divide a gradient by itself: what is but rounding in D grows to a thousandth of its logits.
    """
    sets = (f"tokenizer.regularizer={kind}", "tokenizer.steps=10")
    memory = (*sets, "cluster.accumulate=2", "cluster.checkpoint_activations=true")
    whole = ranks_of(tmp_path / "whole", "train-tokenizer", 1, None, *sets)
    parts = ranks_of(tmp_path / "parts", "train-tokenizer", world, None, *memory)
    cut = ranks_of(tmp_path / "cut", "train-tokenizer", world, 7, *memory)
    run_ranks(whole)
    run_ranks(parts)
    with pytest.raises(Dies) if world == 1 else nullcontext():
        run_ranks(cut)
    again = Ranks(cut.job, world)
    run_ranks(again)
    assert same_state(final_state(again), final_state(parts))
    for a, b in zip(history(whole), history(parts), strict=True):
        assert a.keys() == b.keys()
        assert a.keys() & set(TERM_OF.values()) == ({TERM_OF[kind]} if kind in TERM_OF else set())
        for name in a:
            assert name == "step" or find_metric(f"tokenizer/{name}"), name
            of_d = name in ("adversarial", "discriminator")
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=3e-3 if of_d else 1e-5), (a["step"], name)


def noting(sizes: list[int]) -> Callable[[Tensor], Tensor]:
    def pack(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    return pack


@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_activations_change_no_bit(tmp_path: Path, stage: str) -> None:
    losses, weights, kept = [], [], []
    for recomputes in ("false", "true"):
        made = ranks_of(tmp_path / recomputes, stage, 1, None, f"cluster.checkpoint_activations={recomputes}")
        trainee = make_trainee(made, World.alone())
        batches, sizes = trainee.batches(12, 15), list[int]()
        with torch.autograd.graph.saved_tensors_hooks(noting(sizes), lambda x: x):
            for step, batch in enumerate(batches, 12):
                losses.append(trainee.step(batch, step)["loss"])
        batches.close()
        weights.append(trainee.ema.state_dict())
        kept.append(sum(sizes))
    assert torch.equal(torch.stack(losses[:3]), torch.stack(losses[3:]))
    assert all(same_bits(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert kept[1] < kept[0]


def test_losses_of_parts_are_those_of_the_whole() -> None:
    """Means of scalars, sums of pairs; and the gradient of the mean."""
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 1), torch.randn(12, 3)

    def losses_of(rows: slice) -> dict[str, Tensor]:
        values = layer(x[rows]).square()
        return {"loss": values.mean(), "large": torch.stack([values.detach().sum(), (values > 1).sum()])}

    found = {}
    for parts in (1, 4):
        losses = accumulate(layer, 12, parts, losses_of)
        assert layer.weight.grad is not None
        found[parts] = {**losses, "gradient": layer.weight.grad.clone()}
        layer.zero_grad()
    for name, value in found[1].items():
        torch.testing.assert_close(found[4][name], value)
        assert not value.requires_grad
