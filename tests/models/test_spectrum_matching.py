"""Spectrum matching: the shared masks and the prior, against their definitions written with SciPy."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import fft
from torch import Tensor

from models.regularizers import REGULARIZERS, Draw, MatchingRegularizer, RegularizerOptions, SpectrumPrior
from models.regularizers.matching import CUTS
from models.spectral import dct_basis

# --- the shared masks ---


def masked(x_BCHW: Tensor, cut: int) -> Tensor:
    """Block by block."""
    made = x_BCHW.double().numpy().copy()
    for y in range(0, made.shape[2], 8):
        for x in range(0, made.shape[3], 8):
            block = fft.dctn(made[:, :, y : y + 8, x : x + 8], axes=(2, 3), norm="ortho")
            for u in range(8):
                for v in range(8):
                    if u + v >= 15 - cut:
                        block[:, :, u, v] = 0
            made[:, :, y : y + 8, x : x + 8] = fft.idctn(block, axes=(2, 3), norm="ortho")
    return torch.from_numpy(made).float()


@pytest.mark.parametrize("cut", CUTS)
def test_masks_are_those_of_the_dct_of_blocks(cut: int) -> None:
    regularizer, draw = MatchingRegularizer(16), Draw(cut=cut)
    z, x = torch.randn(2, 5, 16, 16), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(regularizer.latent(z, draw), masked(z, cut), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(regularizer.image(x, draw), masked(x, cut), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("cut", "kept"), zip(CUTS, (28, 15, 6), strict=True))
def test_masks_are_projections_of_the_published_ranks(cut: int, kept: int) -> None:
    regularizer, draw = MatchingRegularizer(8), Draw(cut=cut)
    once = regularizer.latent(torch.eye(64).reshape(64, 1, 8, 8), draw)
    assert torch.linalg.matrix_rank(once.reshape(64, 64), atol=1e-3) == kept
    torch.testing.assert_close(regularizer.latent(once, draw), once, atol=1e-5, rtol=1e-5)
    flat = torch.full((1, 3, 32, 32), 0.3)
    torch.testing.assert_close(regularizer.image(flat, draw), flat)


def test_masks_are_drawn_with_equal_chance() -> None:
    regularizer, g = MatchingRegularizer(8), torch.Generator().manual_seed(0)
    cuts = [regularizer.draw(g, 3).cut for _ in range(800)]
    assert set(cuts) == {0, *CUTS}
    assert all(150 < cuts.count(cut) < 250 for cut in set(cuts))
    z = torch.randn(1, 1, 8, 8)
    assert regularizer.latent(z, Draw(cut=0)) is z


@pytest.mark.parametrize("grid", [4, 12, 1])
def test_latents_of_other_than_whole_blocks_are_refused(grid: int) -> None:
    with pytest.raises(ValueError, match=f"a {grid} x {grid} latent is not made of whole blocks of 8 x 8"):
        REGULARIZERS["matching"](RegularizerOptions(grid))


def test_masks_are_fp32_under_bf16() -> None:
    regularizer, z = MatchingRegularizer(8), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        cast = regularizer.latent(z, Draw(cut=8))
    assert torch.equal(cast, regularizer.latent(z, Draw(cut=8)))


# --- the prior ---


def at_latent_size(x_BCHW: Tensor, grid: int) -> Tensor:
    """As published: a Gaussian, but for a grid of 32, and PyTorch's bicubic kernel."""
    if grid != 32:
        k = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * 1.2**2))
        kernel = torch.outer(k, k) / torch.outer(k, k).sum()
        x_BCHW = F.conv2d(x_BCHW, kernel.expand(3, 1, 7, 7), padding=3, groups=3)
    return F.interpolate(x_BCHW, (grid, grid), mode="bicubic", align_corners=False)


def spectrum(image_Chw: Any) -> Any:
    """The means of 16 bins, cell by cell."""
    power = (fft.dctn(image_Chw, axes=(1, 2), norm="ortho") ** 2).mean(0)
    side = power.shape[0]
    cells: list[list[float]] = [[] for _ in range(16)]
    for u in range(side):
        for v in range(side):
            radius = np.sqrt(u * u + v * v) / np.sqrt(2 * (side - 1) ** 2)
            cells[min(int(16 * radius), 15)].append(0.0 if u == v == 0 else power[u, v])
    return np.array([np.mean(cell) if cell else 0.0 for cell in cells])


def penalty(z_BDhw: Tensor, x_BCHW: Tensor, delta: float) -> float:
    found = []
    for z, x in zip(z_BDhw, at_latent_size(x_BCHW, z_BDhw.shape[-1]), strict=True):
        p = np.log(1 + np.arange(1, 17) ** delta * spectrum(x.double().numpy()))
        q = np.log(1 + spectrum(z.double().numpy()))
        p, q = p / p.sum(), q / q.sum()
        filled = p > 0
        found.append((p[filled] * np.log(p[filled] / q[filled])).sum())
    return float(np.mean(found))


def images(batch: int = 3, side: int = 32) -> Tensor:
    """Smooth ones, in [-1, 1]."""
    coarse = torch.rand(batch, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (side, side), mode="bilinear") * 2 - 1


@pytest.mark.parametrize("delta", [0.0, 1.0, 0.4])
@pytest.mark.parametrize(("grid", "side"), [(8, 32), (16, 64), (4, 16), (2, 8), (32, 64)])
def test_the_prior_is_its_definition(grid: int, side: int, delta: float) -> None:
    z, x = torch.randn(3, 5, grid, grid), images(side=side)
    found = SpectrumPrior(grid, delta).penalties(z, x)["spectrum"]
    assert found.item() == pytest.approx(penalty(z, x, delta), rel=2e-4, abs=1e-6)


def test_the_prior_is_zero_where_spectra_agree_and_only_there() -> None:
    """Signs, means and the order of channels are free; power at another radius is not."""
    x, prior = images(), SpectrumPrior(8, 0.0)
    z = at_latent_size(x, 8)
    basis = dct_basis(8).float()
    signs = torch.randint(0, 2, (8, 8), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    turned = basis.T @ (signs * (basis @ z @ basis.T)) @ basis
    for same in (z, -z, z + 3.0, z.flip(1), z.mT, turned):
        assert prior.penalties(same, x)["spectrum"].abs() < 1e-6
    mirrored = basis.T @ (basis @ z @ basis.T).flip(-1, -2) @ basis
    for other in (mirrored, torch.randn(3, 3, 8, 8)):
        assert prior.penalties(other, x)["spectrum"] > 1e-2
    assert SpectrumPrior(8, 1.0).penalties(z, x)["spectrum"] > 1e-3, "the target is flattened"


def test_a_latent_that_follows_the_prior_gets_its_spectrum() -> None:
    """Gradient descent alone brings white noise near the target."""
    x, prior = images(), SpectrumPrior(8)
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    optimizer, values = torch.optim.Adam([z], 0.05), []
    for _ in range(60):
        loss = prior.penalties(z, x)["spectrum"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.1 * values[0]


def test_a_latent_without_contrast_has_a_finite_gradient() -> None:
    z = torch.zeros(2, 3, 8, 8, requires_grad=True)
    SpectrumPrior(8).penalties(z, images(2))["spectrum"].backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_prior_is_fp32_under_bf16() -> None:
    z, x, prior = torch.randn(3, 4, 8, 8), images(), SpectrumPrior(8)
    with torch.autocast("cpu", torch.bfloat16):
        cast = prior.penalties(z, x)["spectrum"]
    assert cast.dtype == torch.float32
    assert torch.equal(cast, prior.penalties(z, x)["spectrum"])


def test_a_single_cell_has_no_spectrum() -> None:
    with pytest.raises(ValueError, match="1 x 1 latent has no spectrum"):
        REGULARIZERS["spectrum_prior"](RegularizerOptions(1))
