import pytest
import torch
import torch.nn.functional as F

from models.alignment import (
    ALIGNMENTS,
    AlignedSiT,
    Student,
    alignment_loss_B,
    alignment_weight_B,
    feature_loss_B,
)
from models.ema import EMA
from models.paths import PATHS, interpolate
from tests.support.small_sit import inputs, sit

LINEAR = PATHS["linear"]
LOSSES = ["cosine", "l2", "smooth_l1"]


@pytest.mark.parametrize("loss", LOSSES)
def test_fda_is_zero_when_student_and_teacher_see_the_same(loss):
    alignment = ALIGNMENTS["fda"](2, 2, loss=loss, head="none")
    model = AlignedSiT(sit(), alignment)
    z, _, label = inputs()
    zero = torch.zeros(3)
    _, projected = model(z, zero, label)
    t = torch.full((3,), 0.7)
    value = alignment_loss_B(
        alignment, LINEAR, model.sit, projected, Student(z, z, torch.randn_like(z), t, label, torch.rand(3))
    )
    torch.testing.assert_close(value, torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_sra_is_zero_without_the_teachers_head_start(loss):
    alignment = ALIGNMENTS["sra"](2, 2, loss=loss, head="none")
    model = AlignedSiT(sit(), alignment)
    z, t, label = inputs()
    noise = torch.randn_like(z)
    _, projected = model(interpolate(LINEAR, z, noise, t), t, label)
    same = alignment_loss_B(alignment, LINEAR, model.sit, projected, Student(z, z * 9, noise, t, label, torch.zeros(3)))
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0)
    ahead = alignment_loss_B(alignment, LINEAR, model.sit, projected, Student(z, z * 9, noise, t, label, torch.ones(3)))
    assert (ahead > 0).all()


def test_fda_is_equation_7_and_8():
    alignment = ALIGNMENTS["fda"](1, 3, loss="l2", head="none", weight=0.4)
    model, teacher = AlignedSiT(sit(0), alignment), sit(1)
    z_lo, t, label = inputs()
    z_hi, noise = z_lo * 0.5, torch.randn_like(z_lo)
    zt = interpolate(LINEAR, z_lo, noise, t)
    _, projected = model(zt, t, label)
    value = alignment_loss_B(alignment, LINEAR, teacher, projected, Student(z_lo, z_hi, noise, t, label, torch.rand(3)))
    student, target = model.sit.features(zt, t, label, 1), teacher.features(z_hi, torch.zeros(3), label, 3)
    torch.testing.assert_close(value, 0.8 * t * (student - target).square().mean((1, 2)))


def test_the_teacher_gets_no_gradient_and_the_student_does():
    alignment = ALIGNMENTS["fda"](2, 3)
    model = AlignedSiT(sit(0), alignment)
    ema = EMA(model.sit, 0.9)
    z, t, label = inputs()
    velocity, projected = model(z, t, label)
    value = alignment_loss_B(alignment, LINEAR, ema.model, projected, Student(z, z, z, t, label, t))
    (value.mean() + velocity.square().mean()).backward()
    assert all(p.grad is None for p in ema.model.parameters())
    assert all(p.grad is not None for p in model.parameters())  # DDP finds no unused parameter


def test_cosine_runs_over_the_feature_axis():
    a, b = torch.randn(2, 3, 5, 8).unbind(0)
    expected = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).mean(1)
    torch.testing.assert_close(feature_loss_B(a, b, "cosine"), expected)
    torch.testing.assert_close(feature_loss_B(a * torch.rand(3, 5, 1), b, "cosine"), expected)  # norms do not count
    smooth = F.smooth_l1_loss(a, b, beta=0.05, reduction="none").mean((1, 2))
    torch.testing.assert_close(feature_loss_B(a, b, "smooth_l1"), smooth)
    assert feature_loss_B(a.bfloat16(), b.bfloat16(), "l2").dtype == torch.float32


@pytest.mark.parametrize("schedule", ["linear", "constant", "step", "low_noise"])
def test_lambda_has_mean_lambda0(schedule):
    alignment = ALIGNMENTS["fda"](1, 1, weight=0.25, schedule=schedule)
    t = (torch.arange(1000) + 0.5) / 1000
    weight = alignment_weight_B(alignment, t)
    assert weight.mean().item() == pytest.approx(0.25, rel=1e-4)
    early, late = weight[t > 0.5].mean(), weight[t < 0.5].mean()
    assert (early > late) == (schedule in ("linear", "step"))
    assert (early < late) == (schedule == "low_noise")


def test_levels():
    g = torch.Generator().manual_seed(0)
    assert ALIGNMENTS["fda"]().draw_levels(g) == (2, 3)
    assert ALIGNMENTS["sra"](levels=(2, 3), random_levels=True).draw_levels(g) == (2, 2)
    drawn = {ALIGNMENTS["fda"](random_levels=True).draw_levels(g) for _ in range(200)}
    assert drawn == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


def test_none_is_plain_sit():
    alignment = ALIGNMENTS["none"]()
    model = AlignedSiT(sit(), alignment)
    z, t, label = inputs()
    velocity, projected = model(z, t, label)
    assert projected is None
    assert torch.equal(velocity, model.sit(z, t, label))
    assert len(list(model.parameters())) == len(list(model.sit.parameters()))
    with pytest.raises(ValueError, match="none"):
        alignment_loss_B(alignment, LINEAR, model.sit, z, Student(z, z, z, t, label, t))


def test_impossible_alignments_are_refused():
    for levels in ((3, 3), (3, 2), (2, 4), (-1, 2)):
        with pytest.raises(ValueError, match="levels"):
            ALIGNMENTS["fda"](levels=levels)
    with pytest.raises(ValueError, match="from 1"):
        ALIGNMENTS["sra"](0, 3)
    with pytest.raises(ValueError, match="SiT of 3"):
        AlignedSiT(sit(), ALIGNMENTS["fda"](2, 4))
