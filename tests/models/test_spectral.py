import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.choices import LEVELS
from models.sizes import filter_bytes
from models.spectral import (
    ATTENUATION,
    ImageBlur,
    LatentFilter,
    high_frequency_share,
    level_sums,
    masked,
    radial_spectrum,
    removal_masks,
    removed_energy,
    uniform_artifact,
)

MASKS = ["gain", "remove", "square", "dct"]


def latent(seed=0, batch=3, dim=4, grid=8):
    return torch.randn(batch, dim, grid, grid, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mask", MASKS)
def test_level_0_is_the_identity_bit_for_bit(mask):
    z = latent()
    filtered = LatentFilter(8, mask)
    assert torch.equal(filtered(z, 0), z)
    assert torch.equal(filtered(z, torch.zeros(3, dtype=torch.long)), z)
    assert torch.equal(filtered.matrices[0], torch.eye(64))


@settings(max_examples=20)
@given(st.sampled_from(MASKS), st.integers(1, 3), st.floats(-3, 3), st.integers(0, 1000))
def test_linear(mask, level, scale, seed):
    s = LatentFilter(8, mask)
    a, b = latent(seed), latent(seed + 1)
    torch.testing.assert_close(s(a + scale * b, level), s(a, level) + scale * s(b, level), atol=1e-5, rtol=1e-5)


@settings(max_examples=20)
@given(st.integers(3, 17), st.floats(0.2, 0.9), st.integers(1, 3))
def test_gain_is_the_fft_formulation_and_real(grid, keep, level):
    z = latent(grid=grid).double()
    k = torch.fft.fftfreq(grid, dtype=torch.float64) * grid
    radius = (k[:, None] ** 2 + k[None, :] ** 2).sqrt()
    cutoff = -1.0
    for shell in radius.flatten().sort().values:
        if (radius <= shell + 1e-9).double().mean() <= keep + 1e-12:
            cutoff = float(shell)
    mask = torch.where(radius <= cutoff + 1e-9, 1.0, 1.0 - ATTENUATION[level])
    expected = torch.fft.ifft2(mask * torch.fft.fft2(z))
    assert expected.imag.abs().max() < 1e-12
    torch.testing.assert_close(LatentFilter(grid, "gain", keep)(z, level), expected.real, atol=1e-5, rtol=1e-5)


def test_remove_is_the_fft_formulation_with_the_known_shares():
    s = LatentFilter(16, "remove")
    shares = [float(torch.linalg.matrix_rank(matrix)) / 256 for matrix in s.matrices]
    assert [round(share, 3) for share in shares] == [1.0, 0.723, 0.473, 0.238]
    z = latent(grid=16)
    for level in range(LEVELS):
        torch.testing.assert_close(s(s(z, level), level), s(z, level), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("level", range(LEVELS))
def test_dc_passes_and_energy_never_grows(mask, level):
    z = latent()
    s = LatentFilter(8, mask)
    torch.testing.assert_close(s(z, level).mean((2, 3)), z.mean((2, 3)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(s(torch.ones(1, 1, 8, 8), level), torch.ones(1, 1, 8, 8))
    assert s(z, level).square().sum() <= z.square().sum() * (1 + 1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_level_per_sample(mask):
    z, s = latent(batch=4), LatentFilter(8, mask)
    each = torch.cat([s(z[level : level + 1], level) for level in range(4)])
    torch.testing.assert_close(s(z, torch.arange(4)), each)


def test_bf16_keeps_its_dtype_and_is_filtered_in_fp32():
    z, s = latent().bfloat16(), LatentFilter(8)
    with torch.autocast("cpu", torch.bfloat16):
        out = s(z, 2)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, s(z.float(), 2).bfloat16())


@pytest.mark.parametrize(
    ("grid", "mask", "keep"),
    [(1, "gain", 0.5), (8, "gain", 0.0), (8, "gain", 1.0), (2, "remove", 0.5), (2, "gain", 0.1)],
)
def test_a_level_without_a_mask_is_refused(grid, mask, keep):
    with pytest.raises(ValueError, match=r"latent|keep"):
        LatentFilter(grid, mask, keep)


def test_matrices_too_large_for_memory_are_refused():
    """By their closed form, before one is made."""
    assert filter_bytes(8) == LatentFilter(8).matrices.nbytes
    assert filter_bytes(64) == 268_435_456
    with pytest.raises(ValueError, match=r"a 89 x 89 latent are 1.0 GB, more than 1 GB"):
        LatentFilter(89)


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match="grid 8"):
        LatentFilter(8)(torch.zeros(1, 1, 4, 16), 2)


def test_blur_levels():
    x, blur = latent(dim=3, grid=32), ImageBlur()
    assert torch.equal(blur(x, 0), x)
    assert torch.equal(blur(x, 1), x)  # sigma .05 is exactly the identity
    nyquist = torch.ones(1, 1, 32, 32)
    nyquist[..., 1::2] = -1
    assert blur(nyquist, 3)[0, 0, 16, 16] == pytest.approx(0.57, abs=0.005)
    assert float(blur.taps[2, 2]) == pytest.approx(0.9993, abs=5e-5)
    flat = torch.full((1, 3, 32, 32), 0.3)
    for level in range(LEVELS):
        torch.testing.assert_close(blur(flat, level), flat)
    each = torch.cat([blur(x[i : i + 1], i) for i in range(3)])
    assert torch.equal(blur(x, torch.arange(3)), each)


def test_blur_is_a_gaussian_convolution_with_reflection():
    x = latent(batch=1, dim=1, grid=9)
    taps = torch.tensor([math.exp(-(k**2) / (2 * 0.5**2)) for k in range(-2, 3)])
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    torch.testing.assert_close(ImageBlur()(x, 3), torch.nn.functional.conv2d(padded, kernel[None, None]))


def test_spectra():
    white = latent(batch=64, dim=8, grid=16) * 2
    radius, power = radial_spectrum(white)
    assert radius[0] == 0
    assert torch.all((power / 4 - 1).abs() < 0.15)
    k = torch.fft.fftfreq(16) * 16
    upper = (k[:, None].hypot(k[None, :]) > math.hypot(8, 8) / 2).double().sum() / 255
    assert float(high_frequency_share(white)) == pytest.approx(float(upper), abs=0.01)
    assert high_frequency_share(LatentFilter(16)(white, 3)) < high_frequency_share(white)
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    assert int(radial_spectrum(wave)[1].argmax()) == 3


def test_uniform_artifact():
    z = torch.full((2, 3, 8, 8), 0.7)
    assert float(uniform_artifact(z)) == pytest.approx(0, abs=1e-12)
    z = latent()
    expected = (z - z.mean((2, 3), keepdim=True)).square().sum() / z.square().sum()
    assert float(uniform_artifact(z)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_level_sums_are_those_of_the_filtered_latents(mask):
    """To 1e-6, though products are taken in fp32; in parts, as images do not all fit one."""
    filtered = LatentFilter(8, mask)
    mean, logvar = 0.7 * latent(0, batch=300) + latent(1, batch=1), latent(2, batch=300) - 4
    sums = level_sums(filtered.matrices, mean.half(), logvar.half())
    assert sums.shape == (LEVELS, 2, 4)
    z, variance = mean.half().double().flatten(2), logvar.half().float().exp().double().flatten(2)
    for level in range(LEVELS):
        matrix = filtered.matrices[level].double()
        z_level = z @ matrix.T
        second = z_level.square() + variance @ matrix.square().T
        assert torch.allclose(sums[level, 0], z_level.sum((0, 2)), rtol=1e-9, atol=1e-9)
        assert torch.allclose(sums[level, 1], second.sum((0, 2)), rtol=1e-6)


def test_removal_is_the_reading_remove_for_any_share():
    z = latent(grid=16)
    levels = LatentFilter(16, "remove")
    for level, passes in enumerate(removal_masks(16, ATTENUATION)):
        torch.testing.assert_close(masked(z, passes), levels(z, level), atol=1e-5, rtol=1e-5)
    assert torch.equal(masked(z, removal_masks(16, [0.0])[0]), z)


@settings(max_examples=20)
@given(st.integers(1, 17), st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_removal_takes_at_least_the_share_and_never_the_mean(grid, shares):
    shares = sorted(shares)
    masks = removal_masks(grid, shares)
    removed = 1 - masks.double().mean((1, 2))
    assert all(removed >= torch.tensor(shares).clamp(max=1 - 1 / grid**2) - 1e-7)
    assert masks[:, 0, 0].all()
    assert all((after <= before).all() for before, after in itertools.pairwise(masks))
    filtered = masked(latent(grid=grid), masks[-1])
    torch.testing.assert_close(filtered.mean((2, 3)), latent(grid=grid).mean((2, 3)))


@settings(max_examples=20)
@given(st.integers(2, 17), st.floats(0, 1))
def test_what_is_removed_and_what_is_left_add_up(grid, share):
    z, (passes,) = latent(grid=grid).double(), removal_masks(grid, [share])
    left, varying = masked(z, passes), z - z.mean((2, 3), keepdim=True)
    expected = (z - left).square().sum() / varying.square().sum()
    torch.testing.assert_close(removed_energy(z, passes), expected)
    (only_mean,) = removal_masks(grid, [1.0])
    torch.testing.assert_close(1 - removed_energy(z, passes), removed_energy(z, ~passes | only_mean))


def test_a_uniform_latent_loses_nothing():
    (passes,) = removal_masks(8, [1.0])
    assert removed_energy(torch.ones(2, 3, 8, 8), passes) == 0
    torch.testing.assert_close(masked(torch.ones(2, 3, 8, 8), passes), torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_no_such_share(share):
    with pytest.raises(ValueError, match=r"shares must lie in \[0, 1\]"):
        removal_masks(8, [0.5, share])
