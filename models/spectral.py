"""The latent operator S_l (Eq. 3), the image operator G_l (Eq. 4), and the spectral metrics of Figures 1 and 2.

Shapes: B batch, S a part of it, C image channels, H W pixels, D latent channels, h w latent grid, N = h*w, L levels,
R radius bins.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .choices import DEFAULT_KEEP, DEFAULT_MASK, Mask
from .sizes import check_filter_size, check_mask

ATTENUATION = (0.0, 0.25, 0.5, 0.75)
BLUR_SIGMA = (0.0, 0.05, 0.25, 0.5)  # pixels

_BLUR_RADIUS = math.ceil(4 * max(BLUR_SIGMA))
_SUM_STRIP = 256  # images whose products are added up in fp32


class LatentFilter(nn.Module):
    """S_l of Eq. 3 on a square latent grid, for all levels, as one real (N x N) matrix per level.

    The paper does not define M_l. With p = ATTENUATION[l]:

    * `gain` (default): the lowest `keep` share of the Fourier bins by |k| passes, the rest is scaled by 1 - p.
    * `remove`: the share p of the bins with the largest |k| is set to zero; `keep` is ignored.
    * `square`: as `gain`, with max(|k_y|, |k_x|) instead of |k|.
    * `dct`: as `gain`, on the bins of the orthonormal 2-D DCT-II.

    Bins are selected in whole shells of equal radius, at most the given share of them, so that a Fourier mask is
    conjugate-symmetric and the filtered latent is real.

    Args:
        grid: side of the latent, h = w.
        mask: the interpretation of M_l.
        keep: share of the bins that is unchanged at every level, in (0, 1).

    Raises:
        ValueError: `keep` is outside (0, 1), or the grid is too small for a level's mask: not even the mean would pass,
            or two levels of `remove` would be equal. Or it is so large that the matrices exceed
            `sizes.LARGEST_FILTER`.
    """

    matrices: Tensor
    """(L, N, N) fp32, not in the state dict. Row i, column j: the weight of input position j in output position i."""

    def __init__(self, grid: int, mask: Mask = DEFAULT_MASK, keep: float = DEFAULT_KEEP) -> None:
        super().__init__()
        if not 0.0 < keep < 1.0:
            raise ValueError(f"keep must lie in (0, 1), not {keep}")
        check_mask(grid, mask, keep)
        check_filter_size(grid)
        self.grid = grid
        self.register_buffer("matrices", _filter_matrices(grid, mask, keep), persistent=False)

    def forward(self, z_BDhw: Tensor, level: int | Tensor) -> Tensor:
        """Filter latents of any floating dtype; the product is computed in fp32, also under autocast.

        Args:
            z_BDhw: latents with h = w = `grid`.
            level: one level for all, or a long tensor (B,) with one per sample. Level 0 returns the input exactly.

        Returns:
            S_l(z), same shape and dtype.

        Raises:
            ValueError: the latent has another grid.
        """
        if z_BDhw.shape[-2:] != (self.grid, self.grid):
            raise ValueError(f"latent of shape {tuple(z_BDhw.shape)} does not match the filter's grid {self.grid}")
        if isinstance(level, int) and level == 0:
            return z_BDhw
        with torch.autocast(z_BDhw.device.type, enabled=False):
            filtered_BDN = z_BDhw.flatten(2).float() @ self.matrices[level].mT
        filtered_BDhw = filtered_BDN.view_as(z_BDhw).to(z_BDhw.dtype)
        if isinstance(level, int):
            return filtered_BDhw
        return torch.where((level == 0)[:, None, None, None], z_BDhw, filtered_BDhw)


def _filter_matrices(grid: int, mask: Mask, keep: float) -> Tensor:
    """(L, N, N) fp32: the inverse transform of the masked transform of every unit impulse, computed in fp64."""
    radius_hw = _radius(grid, mask)
    masks_Lhw = torch.stack([_mask(radius_hw, mask, keep, p) for p in ATTENUATION])
    impulses_Nhw = torch.eye(grid * grid, dtype=torch.float64).view(-1, grid, grid)
    matrices = []
    for mask_hw in masks_Lhw:
        if mask == "dct":
            basis = dct_basis(grid)
            filtered_Nhw = basis.T @ (mask_hw * (basis @ impulses_Nhw @ basis.T)) @ basis
        else:
            filtered_Nhw = torch.fft.ifft2(mask_hw * torch.fft.fft2(impulses_Nhw)).real
        matrices.append(filtered_Nhw.flatten(1).T)
    matrices[0] = impulses_Nhw.flatten(1)
    return torch.stack(matrices).float().contiguous()


def _mask(radius_hw: Tensor, mask: Mask, keep: float, attenuation: float) -> Tensor:
    if mask == "remove":
        return _lowest_shells(radius_hw, 1.0 - attenuation).double()
    return torch.where(_lowest_shells(radius_hw, keep), 1.0, 1.0 - attenuation).double()


def _lowest_shells(radius_hw: Tensor, share: float) -> Tensor:
    """True on the largest number of whole shells, lowest first, that contain at most `share` of all bins."""
    shells, bins = torch.unique(radius_hw, return_counts=True)
    fits: Tensor = bins.cumsum(0) <= share * radius_hw.numel() + 1e-9
    lowest_hw: Tensor = radius_hw <= shells[fits][-1]
    return lowest_hw


def _radius(grid: int, mask: Mask) -> Tensor:
    """(h, w) long: the radius of each bin; squared if Euclidean, so that shells compare exactly."""
    if mask == "dct":
        k = torch.arange(grid)
    else:
        k = (torch.fft.fftfreq(grid, dtype=torch.float64) * grid).round().long().abs()
    if mask == "square":
        return torch.maximum(k[:, None], k[None, :])
    return k[:, None] ** 2 + k[None, :] ** 2


def dct_basis(grid: int) -> Tensor:
    """(k, position) fp64: the rows of the orthonormal DCT-II."""
    k, position = torch.arange(grid, dtype=torch.float64)[:, None], torch.arange(grid, dtype=torch.float64)[None, :]
    basis = torch.cos(math.pi * (position + 0.5) * k / grid) * math.sqrt(2 / grid)
    basis[0] /= math.sqrt(2)
    return basis


class ImageBlur(nn.Module):
    """G_l of Eq. 4: a separable Gaussian of BLUR_SIGMA[l] pixels, reflect padding, taps out to 4 sigma.

    In fp32, sigma .05 is the identity (only the central tap is nonzero); .25 has .9993 in the central tap; .5 scales
    the Nyquist frequency by .57 per axis.
    """

    taps: Tensor
    """(L, 5) fp32, each row sums to 1, not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", _gaussian_taps(), persistent=False)

    def forward(self, x_BCHW: Tensor, level: int | Tensor) -> Tensor:
        """Blur images of any floating dtype and range, in fp32, with both sides above 2 pixels.

        Args:
            x_BCHW: images.
            level: one level for all, or a long tensor (B,) with one per sample. Level 0 returns the input exactly.

        Returns:
            G_l(x), same shape and dtype.
        """
        if isinstance(level, int) and level == 0:
            return x_BCHW
        taps = self.taps[level].reshape(-1, 1, 1, 1, 2 * _BLUR_RADIUS + 1).unbind(-1)
        height, width = x_BCHW.shape[-2:]
        padded = F.pad(x_BCHW.float(), (_BLUR_RADIUS,) * 4, mode="reflect")
        rows = sum(tap * padded[..., k : k + height, :] for k, tap in enumerate(taps))
        assert isinstance(rows, Tensor)
        blurred = sum(tap * rows[..., k : k + width] for k, tap in enumerate(taps))
        assert isinstance(blurred, Tensor)
        return blurred.to(x_BCHW.dtype)


def _gaussian_taps() -> Tensor:
    offset = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=torch.float64)
    rows = []
    for sigma in BLUR_SIGMA:
        row = torch.exp(-(offset**2) / (2 * sigma**2)) if sigma else (offset == 0).double()
        row = row * (offset.abs() <= math.ceil(4 * sigma))
        rows.append(row / row.sum())
    return torch.stack(rows).float()


def level_sums(matrices_LNN: Tensor, mean_BDhw: Tensor, logvar_BDhw: Tensor) -> Tensor:
    """Sums, over images and positions, of the first two moments of S_l(z) for every level, z being drawn from q(z|x).

    S_l is linear and the noise of z is independent between positions, so the sums follow from three that do not depend
    on the level: of the means, of the variances, and of the products of the means at two positions.

    Args:
        matrices_LNN: `LatentFilter.matrices`, on the device of the moments.
        mean_BDhw, logvar_BDhw: moments of any floating dtype. Products are taken in fp32 and added up in fp64.

    Returns:
        (L, 2, D) fp64: E[S_l z] and E[(S_l z)^2] = (S_l mean)^2 + S_l^2 var, the last S_l squared element by element.
    """
    matrices = matrices_LNN.double()
    depth, positions = mean_BDhw.shape[1], matrices.shape[-1]
    mean_DN = matrices.new_zeros(depth, positions)
    var_DN = torch.zeros_like(mean_DN)
    products_DNN = matrices.new_zeros(depth, positions, positions)
    with torch.autocast(mean_BDhw.device.type, enabled=False):
        strips = (torch.split(moments.flatten(2), _SUM_STRIP) for moments in (mean_BDhw, logvar_BDhw))
        for mean_SDN, logvar_SDN in zip(*strips, strict=True):
            strip_DSN = mean_SDN.float().transpose(0, 1).contiguous()
            products_DNN += strip_DSN.mT @ strip_DSN
            mean_DN += mean_SDN.double().sum(0)
            var_DN += logvar_SDN.float().exp().double().sum(0)
    first_LD = torch.einsum("lij,dj->ld", matrices, mean_DN)
    signal_LD = torch.stack([torch.einsum("dij,ij->d", products_DNN, S.mT @ S) for S in matrices])
    noise_LD = torch.einsum("lij,dj->ld", matrices.square(), var_DN)
    return torch.stack([first_LD, signal_LD + noise_LD], dim=1)


def _power(z_BDhw: Tensor) -> tuple[Tensor, Tensor]:
    """(|k| in cycles per side (h, w) fp64, mean power over B and D (h, w) fp64) under the orthonormal transform."""
    height, width = z_BDhw.shape[-2:]
    k_h = torch.fft.fftfreq(height, dtype=torch.float64, device=z_BDhw.device) * height
    k_w = torch.fft.fftfreq(width, dtype=torch.float64, device=z_BDhw.device) * width
    power = torch.fft.fft2(z_BDhw.double(), norm="ortho").abs().square().mean((0, 1))
    return torch.hypot(k_h[:, None], k_w[None, :]), power


def removal_masks(grid: int, shares: Sequence[float]) -> Tensor:
    """The masks of Figure 1(c): each removes a share of the Fourier bins, those with the largest |k|.

    This is the reading `remove` of M_l (`LatentFilter`) for any share. Whole shells of equal |k| are removed, at least
    the given share of all bins, but never the mean, so that every grid has a curve.

    Args:
        grid: side of the latent, h = w.
        shares: of the bins, in [0, 1].

    Returns:
        (S, h, w) bool, S the number of shares: True where a bin passes, in the order of `torch.fft.fft2`.

    Raises:
        ValueError: a share is outside [0, 1].
    """
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise ValueError(f"shares must lie in [0, 1], not {list(shares)}")
    radius_hw = _radius(grid, "remove")
    one_bin = 1 / grid**2
    return torch.stack([_lowest_shells(radius_hw, max(1.0 - share, one_bin)) for share in shares])


def masked(z_BDhw: Tensor, passes_hw: Tensor) -> Tensor:
    """F^-1(M . F(z)) of Eq. 3 for one of `removal_masks`, computed in fp64.

    Args:
        z_BDhw: latents of any floating dtype.
        passes_hw: bool, True where a bin passes; conjugate-symmetric. On the device of the latents.

    Returns:
        The filtered latents, same shape and dtype.
    """
    filtered_BDhw: Tensor = torch.fft.ifft2(passes_hw * torch.fft.fft2(z_BDhw.double())).real
    return filtered_BDhw.to(z_BDhw.dtype)


def removed_energy(z_BDhw: Tensor, passes_hw: Tensor) -> Tensor:
    """Share, in [0, 1], of the energy without DC in the bins that a mask removes: a fp64 scalar.

    0 for latents without energy outside DC.
    """
    radius_hw, power_hw = _power(z_BDhw)
    varying = power_hw[radius_hw > 0].sum().clamp(min=torch.finfo(torch.float64).tiny)
    return power_hw[~passes_hw].sum() / varying


def radial_spectrum(z_BDhw: Tensor) -> tuple[Tensor, Tensor]:
    """The radial power spectrum of latents.

    Returns:
        (radius_R, power_R), fp64: |k| rounded to whole cycles, from 0 (the mean), and the mean power over images,
        channels and the Fourier bins of that radius. Power is that of the orthonormal transform: white noise of
        variance v has power v at every radius.
    """
    radius_hw, power_hw = _power(z_BDhw)
    ring = radius_hw.round().long().flatten()
    rings = int(ring.max()) + 1
    total = torch.bincount(ring, weights=power_hw.flatten(), minlength=rings)
    count = torch.bincount(ring, minlength=rings)
    filled = count > 0
    return torch.arange(rings, device=z_BDhw.device).double()[filled], total[filled] / count[filled]


def high_frequency_share(z_BDhw: Tensor) -> Tensor:
    """Share, in [0, 1], of the energy without DC at |k| above half the largest |k| of the grid: a fp64 scalar."""
    radius_hw, power_hw = _power(z_BDhw)
    high = power_hw[radius_hw > radius_hw.max() / 2].sum()
    return high / power_hw[radius_hw > 0].sum().clamp(min=torch.finfo(torch.float64).tiny)


def uniform_artifact(z_BDhw: Tensor) -> Tensor:
    """The metric for Figure 1(a): share, in [0, 1], of the energy outside DC in latents of uniform images, fp64 scalar.

    An encoder without input-independent patterns gives 0.
    """
    radius_hw, power_hw = _power(z_BDhw)
    return power_hw[radius_hw > 0].sum() / power_hw.sum().clamp(min=torch.finfo(torch.float64).tiny)
