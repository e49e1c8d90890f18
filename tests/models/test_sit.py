import math

import pytest
import torch

from models.paths import PATHS, diffusion_loss_B, interpolate, target
from models.sit import SIT_SIZES, SiT, _sincos_time
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


def test_time_enters_as_in_sit():
    """DiT's sinusoids, cosines first, of t itself; `time_scale` stretches it, as early artifacts of ours had it."""
    t = torch.tensor([0.0, 0.3, 1.0])
    frequency = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    expected = torch.cat([torch.cos(t[:, None] * frequency), torch.sin(t[:, None] * frequency)], 1)
    torch.testing.assert_close(_sincos_time(t, 1.0), expected)
    torch.testing.assert_close(_sincos_time(t / 1000, 1000.0), expected, atol=1e-5, rtol=1e-5)
    z, _, label = inputs()
    state = sit().state_dict()
    models = [sit(time_scale=scale) for scale in (1.0, 1000.0)]
    for model in models:
        model.load_state_dict(state)
    torch.testing.assert_close(models[0](z, t, label), models[1](z, t / 1000, label), atol=1e-4, rtol=1e-4)


def test_keys_of_earlier_weights_are_known():
    """Of artifacts and checkpoints from when the final layer was `last`, of the module itself and inside another."""
    model = sit(1)
    old = {key.replace("final_layer", "last").replace("final_modulation", "last_modulation"): value
           for key, value in model.state_dict().items()}  # fmt: skip
    assert {"last.weight", "last.bias", "last_modulation.weight", "last_modulation.bias"} < set(old)
    fresh = sit(2)
    fresh.load_state_dict(old)
    assert torch.equal(fresh(*inputs()), model(*inputs()))
    inside = torch.nn.ModuleDict({"sit": sit(3)})
    inside.load_state_dict({f"sit.{key}": value for key, value in old.items()})
    assert torch.equal(inside["sit"](*inputs()), model(*inputs()))


def test_qk_norm_makes_attention_blind_to_the_size_of_queries_and_keys():
    plain, normed = sit(), sit(qk_norm=True)
    for model, changes in ((plain, True), (normed, False)):
        before = model(*inputs())
        with torch.no_grad():
            for block in model.blocks:
                block.qkv.weight[:32] *= 3  # of queries and keys
                block.qkv.bias[:32] *= 3
        assert torch.allclose(before, model(*inputs()), atol=1e-3) != changes
    with torch.autocast("cpu", torch.bfloat16):
        assert normed(*inputs()).isfinite().all()


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
    t, label, path = torch.tensor([0.5]), torch.tensor([3]), PATHS["linear"]

    def loss_of(model):
        return diffusion_loss_B(
            model(interpolate(path, z, noise, t), t, label), target(path, z, noise, t, "velocity")
        ).mean()

    assert_a_step_does_what_its_gradient_says(model, loss_of, 1e-3)
