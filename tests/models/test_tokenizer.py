import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from models.reconstruction import LossWeights, reconstruction_terms
from models.tokenizers.vit import DiagonalGaussian, Tokenizer, _patches, rotary_table
from tests.support.full_size import assert_a_step_does_what_its_gradient_says

SMALL = {"image_size": 16, "patch_size": 4, "latent_dim": 3, "width": 16, "depth": 2, "heads": 2, "hidden": 24}


def tokenizer(seed=0, **changes):
    torch.manual_seed(seed)
    return Tokenizer(**{**SMALL, **changes})


def images(batch=2, size=16):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes_and_dtypes():
    model, x = tokenizer(), images()
    assert (model.grid, model.latent_shape) == (4, (3, 4, 4))
    posterior = model.encode(x)
    assert posterior.mean_BDhw.shape == posterior.logvar_BDhw.shape == (2, 3, 4, 4)
    assert model.decode(posterior.mean_BDhw).shape == x.shape
    assert model.decode(torch.zeros(1, 3, 2, 3)).shape == (1, 3, 8, 12)


def test_forward_is_encode_sample_transform_decode():
    model, x, noise = tokenizer(), images(), torch.randn(2, 3, 4, 4)
    reconstruction, posterior = model(x, noise, lambda z: 0.5 * z)
    expected = posterior.mean_BDhw + (0.5 * posterior.logvar_BDhw).exp() * noise
    torch.testing.assert_close(reconstruction, model.decode(0.5 * expected))


def test_an_image_does_not_depend_on_its_batch():
    model, x = tokenizer(), images(4)
    alone = model.decode(model.encode(x[1:2]).mean_BDhw)
    torch.testing.assert_close(model.decode(model.encode(x).mean_BDhw)[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_latents_do_not_depend_on_the_batch(batch):
    """As they are stored, in fp16: but for the last place, which float sums in another order could move."""
    model, x = tokenizer(), images(8)
    torch.nn.init.normal_(model.moments_head.weight)
    with torch.inference_mode():
        parts = torch.cat([model.encode(part).mean_BDhw for part in torch.split(x, batch)])
        whole = model.encode(x).mean_BDhw
    assert whole.std() > 0.1
    torch.testing.assert_close(parts.half(), whole.half(), rtol=2**-10, atol=2**-14)


def test_kl_is_that_of_torch_distributions_summed():
    mean, logvar = torch.randn(2, 5, 3, 4, 4).unbind(0)
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Independent(Normal(mean, (0.5 * logvar).exp()), 3), Independent(prior, 3))
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected)
    assert DiagonalGaussian(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)).kl().item() == 0


def test_logvar_is_clamped():
    model = tokenizer()
    torch.nn.init.constant_(model.moments_head.bias, 1000.0)
    assert model.encode(images()).logvar_BDhw.max() == 20
    torch.nn.init.constant_(model.moments_head.bias, -1000.0)
    assert model.encode(images()).logvar_BDhw.min() == -30


def test_moments_and_image_are_fp32_under_bf16_autocast():
    model, x = tokenizer(), images()
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, posterior = model(x, torch.randn(2, 3, 4, 4), lambda z: z)
        kl = posterior.kl()
    assert {reconstruction.dtype, kl.dtype, *(part.dtype for part in posterior)} == {torch.float32}


@pytest.mark.parametrize(("h", "w"), [(4, 4), (3, 5), (1, 1)])
def test_rope_turns_by_the_share_of_the_way_across(h, w):
    cos, sin = rotary_table(h, w, 16).view(h, w, 2, 16).unbind(2)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(h, w, 16))
    assert torch.equal(cos[0, 0], torch.ones(16)), "the first cell is at 0"
    assert torch.equal(cos[:, :1, :8].expand(h, w, 8), cos[..., :8]), "half of the channels turn by the row alone"
    assert torch.equal(cos[:1, :, 8:].expand(h, w, 8), cos[..., 8:]), "the others by the column"
    if h > 1:
        slowest = 2 * torch.pi * 7e-4
        torch.testing.assert_close(sin[-1, 0, 3], torch.tensor(slowest).sin())
        torch.testing.assert_close(cos[-1, 0, 0], torch.ones(()), atol=1e-5, rtol=0)  # seven whole turns


@pytest.mark.parametrize("changes", [{"patch_size": 5}, {"heads": 3}, {"width": 12, "heads": 2}])
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(ValueError, match=r"the factor 5 does not divide|width"):
        tokenizer(**changes)


def test_a_training_step_is_the_same_bit_for_bit():
    def gradients():
        model = tokenizer()
        reconstruction, posterior = model(images(), torch.ones(2, 3, 4, 4), lambda z: z)
        (reconstruction.square().mean() + posterior.kl().mean()).backward()
        return [p.grad for p in model.parameters()]

    first, second = gradients(), gradients()
    assert all(a is not None and torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_one_training_step_at_full_size():
    torch.manual_seed(0)
    model = Tokenizer(image_size=256, patch_size=16, latent_dim=32, width=768, depth=12, heads=12, hidden=2048)
    x = images(1, 256)

    def loss_of(model):
        reconstruction, posterior = model(x, torch.zeros(1, *model.latent_shape), lambda z: z)
        return reconstruction_terms(reconstruction, x, posterior, weights=LossWeights())["total"]

    assert_a_step_does_what_its_gradient_says(model, loss_of, 1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_are_those_of_pixel_unshuffle(layout):
    x = images(3).to(memory_format=layout)
    expected = torch.nn.functional.pixel_unshuffle(x, 4).flatten(2).transpose(1, 2)
    assert torch.equal(_patches(x, 4), expected)
