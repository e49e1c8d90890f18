import pytest
import torch

from models.paths import diffusion_loss_B, interpolate, target
from models.sit import SIT_SIZES, SiT
from tests.support.full_size import assert_a_step_does_what_its_gradient_says
from tests.support.small_sit import inputs, sit


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_fresh_sit_gives_zero_and_its_blocks_are_the_identity(patch_size):
    model = sit(trained=False, patch_size=patch_size)
    z, t, label = inputs()
    velocity, features = model(z, t, label, 3)
    assert torch.equal(velocity, torch.zeros_like(z))
    assert torch.equal(features, model.features(z, t, label, 1))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_shapes(patch_size):
    model = sit(patch_size=patch_size)
    z, t, label = inputs()
    assert model(z, t, label).shape == z.shape
    assert model(z, t, label, 2)[1].shape == (3, 16 // patch_size**2, 16)
    assert model.null_label == 5


def test_features_stop_at_their_block_and_match_forward():
    model = sit()
    z, t, label = inputs()
    model.blocks[2].register_forward_hook(lambda *_: pytest.fail("a block beyond was run"))
    early = model.features(z, t, label, 2)
    model.blocks[2]._forward_hooks.clear()
    velocity, features = model(z, t, label, 2)
    assert torch.equal(features, early)
    assert torch.equal(velocity, model(z, t, label))


def test_time_label_and_position_matter():
    model = sit()
    z, t, label = inputs()
    base = model(z, t, label)
    assert not torch.allclose(base, model(z, t / 2, label))
    assert not torch.allclose(base, model(z, t, (label + 1) % 6))
    assert not torch.allclose(base.flip(3), model(z.flip(3), t, label))


def test_a_sample_does_not_depend_on_its_batch():
    model = sit()
    z, t, label = inputs()
    torch.testing.assert_close(model(z, t, label)[1:2], model(z[1:2], t[1:2], label[1:2]), atol=1e-5, rtol=1e-5)


def test_positions_are_frozen_and_distinct():
    model = sit()
    assert "positions" not in model.state_dict()
    assert not model.positions.requires_grad
    assert torch.cdist(model.positions[0], model.positions[0]).fill_diagonal_(1).min() > 0.1


@pytest.mark.parametrize("block", [0, 4])
def test_a_block_that_is_not_there_is_refused(block):
    model = sit()
    for call in (model, model.features):
        with pytest.raises(ValueError, match="blocks 1 to 3"):
            call(*inputs(), block)


@pytest.mark.parametrize("changes", [{"patch_size": 3}, {"heads": 3}, {"width": 18}])
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(ValueError, match=r"patch_size|width"):
        sit(**changes)


def test_gradients_are_the_same_bit_for_bit_and_fp32_out_of_bf16():
    def gradients():
        model = sit()
        model(*inputs()).square().mean().backward()
        return [p.grad for p in model.parameters()]

    first, second = gradients(), gradients()
    assert all(a is not None and torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert sit()(*inputs()).dtype == torch.float32


@pytest.mark.slow
def test_one_training_step_at_full_size():
    torch.manual_seed(0)
    width, depth, heads = SIT_SIZES["XL"]
    model = SiT(grid=16, latent_dim=32, classes=1000, width=width, depth=depth, heads=heads)
    z, noise = torch.randn(2, 1, 32, 16, 16).unbind(0)
    t, label = torch.tensor([0.5]), torch.tensor([3])

    def loss_of(model):
        return diffusion_loss_B(model(interpolate(z, noise, t), t, label), target(z, noise, "velocity")).mean()

    assert_a_step_does_what_its_gradient_says(model, loss_of, 1e-3)
