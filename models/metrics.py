"""Metrics of images and of feature sets. The caller puts the feature network into the metric's name.

Shapes: B batch, C channels, H W pixels, N M samples, F features, K classes, R resamples. Images are uint8 in [0, 255].
Their intervals are in `intervals.py`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5
_SSIM_C1 = (0.01 * 255) ** 2
_SSIM_C2 = (0.03 * 255) ** 2
_ROWS = 1024  # of features, of which copies in fp64 are in memory at a time


def to_uint8(x_BCHW: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8, with the project's rounding rule: round(127.5 x + 127.5), clamped to [0, 255]."""
    return (x_BCHW.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(x_BCHW: Tensor) -> Tensor:
    """uint8 to fp32 in [-1, 1]; `to_uint8` is its exact inverse."""
    return x_BCHW.float() / 127.5 - 1.0


def psnr_B(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of uint8 images, data range 255: (B,) fp64.

    For identical images, as if one value differed by one, so that a mean over images stays finite.
    """
    difference = x_BCHW.double() - y_BCHW.double()
    mse_B = difference.square().mean((1, 2, 3)).clamp(min=1 / difference[0].numel())
    return 10 * torch.log10(255**2 / mse_B)


def ssim_B(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of uint8 images, data range 255: (B,) fp64.

    Gaussian window 11 x 11 of sigma 1.5, reflect padding; mean over channels and all positions, as in torchmetrics.

    Raises:
        ValueError: a side is below 6 pixels.
    """
    if min(x_BCHW.shape[-2:]) <= _SSIM_RADIUS:
        raise ValueError(f"SSIM needs sides of at least {_SSIM_RADIUS + 1} pixels, not {tuple(x_BCHW.shape[-2:])}")
    x, y = (F.pad(image.double(), (_SSIM_RADIUS,) * 4, mode="reflect") for image in (x_BCHW, y_BCHW))
    x_mean, y_mean, xx, yy, xy = _window_means(torch.stack([x, y, x * x, y * y, x * y])).unbind(0)
    covariance = xy - x_mean * y_mean
    variances = (xx - x_mean**2) + (yy - y_mean**2)
    luminance = (2 * x_mean * y_mean + _SSIM_C1) / (x_mean**2 + y_mean**2 + _SSIM_C1)
    return (luminance * (2 * covariance + _SSIM_C2) / (variances + _SSIM_C2)).mean((1, 2, 3))


def _window_means(images: Tensor) -> Tensor:
    offset = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=images.dtype, device=images.device)
    taps = torch.exp(-(offset**2) / (2 * _SSIM_SIGMA**2))
    taps = taps / taps.sum()
    flat = images.flatten(0, -3)[:, None]
    blurred = F.conv2d(F.conv2d(flat, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    return blurred.view(*images.shape[:-2], *blurred.shape[-2:])


class FeatureMoments:
    """Mean and covariance of features, accumulated over batches in fp64; memory is constant in their number."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._sum_F = torch.zeros(features, dtype=torch.float64, device=device)
        self._products_FF = torch.zeros(features, features, dtype=torch.float64, device=device)

    def update(self, features_NF: Tensor) -> None:
        """Add a batch of features of any floating dtype."""
        batch = features_NF.to(self._sum_F)
        self.count += len(batch)
        self._sum_F += batch.sum(0)
        self._products_FF += batch.mT @ batch

    def result(self) -> tuple[Tensor, Tensor]:
        """(mean_F, covariance_FF), fp64, the covariance with N - 1.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples; there are {self.count}")
        mean_F = self._sum_F / self.count
        return mean_F, (self._products_FF - self.count * torch.outer(mean_F, mean_F)) / (self.count - 1)


class FrechetReference:
    """A Gaussian from which others' squared Frechet distance is asked, with the root of its covariance, taken once.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017). The trace of the root comes from the fp64
    eigenvalues of A^(1/2) B A^(1/2), which is symmetric; sqrtm is inaccurate on some BLAS builds.
    """

    def __init__(self, mean_F: Tensor, covariance_FF: Tensor) -> None:
        self._mean_F, covariance_FF = mean_F.double(), covariance_FF.double()
        values, vectors = torch.linalg.eigh(covariance_FF)
        self._root_FF = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
        self._trace = covariance_FF.trace()

    def distance(self, mean_F: Tensor, covariance_FF: Tensor) -> float:
        """To the Gaussian of this mean and covariance."""
        covariance_FF = covariance_FF.double()
        product_FF = self._root_FF @ covariance_FF @ self._root_FF
        trace_root = _trace_of_root((product_FF + product_FF.mT) / 2)
        apart = (self._mean_F - mean_F.double()).square().sum()
        return float(apart + self._trace + covariance_FF.trace() - 2 * trace_root)

    def resampled(self, features_NF: Tensor, counts_RN: Tensor) -> Tensor:
        """(R,) fp64: the distances to R resamples of these features, in which each occurs so many times.

        What `distance` gives for the mean and covariance (with N - 1) of each; only its rows that occur are worked on.
        In fp64, of which no more than two features' numbers of rows are in memory at a time.
        """
        if len(features_NF) > 2 * features_NF.shape[1]:
            found = [self.distance(*_resample_moments(features_NF, count_N)) for count_N in counts_RN]
            return torch.tensor(found, dtype=torch.float64, device=features_NF.device)
        shifted_NF = features_NF.double() - self._mean_F
        rooted_NF = shifted_NF @ self._root_FF
        return torch.stack([self._of_few(shifted_NF, rooted_NF, count_N.double()) for count_N in counts_RN])

    def _of_few(self, shifted_NF: Tensor, rooted_NF: Tensor, count_N: Tensor) -> Tensor:
        occurs_N, total = count_N > 0, count_N.sum()
        weight_N1 = (count_N[occurs_N] / (total - 1)).sqrt()[:, None]
        mean_F, rooted_mean_F = (count_N @ values_NF / total for values_NF in (shifted_NF, rooted_NF))
        centred_NF = (shifted_NF[occurs_N] - mean_F) * weight_N1
        rooted_NF = (rooted_NF[occurs_N] - rooted_mean_F) * weight_N1
        small = rooted_NF @ rooted_NF.mT if len(rooted_NF) < rooted_NF.shape[1] else rooted_NF.mT @ rooted_NF
        spread = self._trace + centred_NF.square().sum()
        return mean_F.square().sum() + spread - 2 * _trace_of_root(small)


def _resample_moments(features_NF: Tensor, count_N: Tensor) -> tuple[Tensor, Tensor]:
    """(mean_F, covariance_FF), fp64, of a resample in which each row occurs so many times; in blocks of its rows."""
    rows, features = torch.split(count_N.nonzero()[:, 0], _ROWS), features_NF.shape[1]
    total = count_N.sum()
    mean_F = features_NF.new_zeros(features, dtype=torch.float64)
    for part in rows:
        mean_F += count_N[part].double() @ features_NF[part].double() / total
    covariance_FF = mean_F.new_zeros(features, features)
    for part in rows:
        centred_NF = features_NF[part].double().sub_(mean_F)
        centred_NF *= (count_N[part].double() / (total - 1)).sqrt()[:, None]
        covariance_FF.addmm_(centred_NF.mT, centred_NF)
    return mean_F, covariance_FF


def _trace_of_root(symmetric: Tensor) -> Tensor:
    trace: Tensor = torch.linalg.eigvalsh(symmetric).clamp(min=0).sqrt().sum()
    return trace


def frechet_distance(mean_a_F: Tensor, cov_a_FF: Tensor, mean_b_F: Tensor, cov_b_FF: Tensor) -> float:
    """The squared Frechet distance of two Gaussians: `FrechetReference`."""
    return FrechetReference(mean_a_F, cov_a_FF).distance(mean_b_F, cov_b_FF)


def resample_counts(samples: int, resamples: int, seed: int) -> Tensor:
    """(R, N) long: how often each of N samples occurs in each of R bootstrap resamples of N; rows sum to N."""
    generator = torch.Generator().manual_seed(seed)
    drawn_RN = torch.randint(samples, (resamples, samples), generator=generator)
    return torch.zeros(resamples, samples, dtype=torch.long).scatter_add_(1, drawn_RN, torch.ones_like(drawn_RN))


class Estimate(NamedTuple):
    """An estimate and its standard error."""

    value: float
    error: float


def kid(samples_NF: Tensor, reference_MF: Tensor, block: int = 2048) -> Estimate:
    """Kernel Inception Distance (Binkowski et al. 2018): the squared MMD for the kernel k(x, y) = (x.y / F + 1)^3.

    The unbiased estimator, over all pairs:

        mean of k(x_i, x_j) over i != j + mean of k(y_i, y_j) over i != j - 2 mean of k(x_i, y_j)

    Its expectation does not depend on the number of samples, so it may come out below zero. (torch-fidelity and others
    print the mean of it over random subsets of 1,000.) The error is the jackknife's over the samples, with the
    reference held fixed. In fp64; `block` x `block` values of the kernel are in memory at a time.

    Use the name without the network's only for Inception's pooled features.

    Raises:
        ValueError: fewer than three samples, or fewer than two in the reference.
    """
    samples, references = len(samples_NF), len(reference_MF)
    if samples < 3 or references < 2:
        raise ValueError(f"KID needs three samples and two of the reference; there are {samples} and {references}")
    within_N = _kernel_sums(samples_NF, samples_NF, block) - _own_kernel(samples_NF, samples_NF)
    across_N = _kernel_sums(samples_NF, reference_MF, block)
    within_M = _kernel_sums(reference_MF, reference_MF, block) - _own_kernel(reference_MF, reference_MF)
    fixed = within_M.sum() / (references * (references - 1))

    def estimate(within: Tensor, across: Tensor, count: int) -> Tensor:
        return within / (count * (count - 1)) - 2 * across / (count * references) + fixed

    without_N = estimate(within_N.sum() - 2 * within_N, across_N.sum() - across_N, samples - 1)
    return Estimate(float(estimate(within_N.sum(), across_N.sum(), samples)), _jackknife_error(without_N))


def paired_kid(samples_NF: Tensor, reference_NF: Tensor, block: int = 2048) -> Estimate:
    """The same of two versions of the same images, such as reconstructions and originals, in the same order.

    Without the pairs of an image with itself, also across (Gretton et al. 2012, Eq. 4): they would make it too small.
    The error is the jackknife's over images.

    Raises:
        ValueError: fewer than three images, or different numbers.
    """
    count = len(samples_NF)
    if count < 3 or len(reference_NF) != count:
        raise ValueError(f"KID of pairs needs three or more; there are {count} and {len(reference_NF)} images")
    h_N = torch.zeros(count, dtype=torch.float64, device=samples_NF.device)  # row sums of Gretton's h
    for one, other, sign in (
        (samples_NF, samples_NF, 1),
        (reference_NF, reference_NF, 1),
        (samples_NF, reference_NF, -1),
        (reference_NF, samples_NF, -1),
    ):
        h_N += sign * (_kernel_sums(one, other, block) - _own_kernel(one, other))
    without_N = (h_N.sum() - 2 * h_N) / ((count - 1) * (count - 2))
    return Estimate(float(h_N.sum() / (count * (count - 1))), _jackknife_error(without_N))


def _kernel_sums(a_NF: Tensor, b_MF: Tensor, block: int) -> Tensor:
    """(N,) fp64: the sums of k(a_i, b_j) over j."""
    features = a_NF.shape[1]
    return torch.cat(
        [
            torch.stack(
                [
                    (rows_NF.double() @ columns_MF.double().mT / features + 1).pow(3).sum(1)
                    for columns_MF in torch.split(b_MF, block)
                ]
            ).sum(0)
            for rows_NF in torch.split(a_NF, block)
        ]
    )


def _own_kernel(a_NF: Tensor, b_NF: Tensor) -> Tensor:
    """(N,) fp64: k(a_i, b_i)."""
    pairs = zip(torch.split(a_NF, _ROWS), torch.split(b_NF, _ROWS), strict=True)
    return torch.cat([((a.double() * b.double()).mean(1) + 1).pow(3) for a, b in pairs])


def _jackknife_error(without_N: Tensor) -> float:
    """The standard error, from an estimate's values without one sample each."""
    count = len(without_N)
    return float(((count - 1) * without_N.var(correction=0)).sqrt())


def precision_recall(real_NF: Tensor, fake_MF: Tensor, k: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019): shares, in [0, 1], inside the other set's manifold.

    A manifold is the union of balls around its samples with the distance to the k-th nearest neighbour as radius.
    `chunk` x `chunk` distances, in fp64, are in memory at a time. ADM's protocol: all samples, and the 10,000 images of
    its reference.

    Raises:
        ValueError: a set has no more than k samples.
    """
    if min(len(real_NF), len(fake_MF)) <= k:
        raise ValueError(f"precision and recall with k = {k} need more than {k} samples of each kind")
    return _share_inside(fake_MF, real_NF, k, chunk), _share_inside(real_NF, fake_MF, k, chunk)


def _share_inside(points_NF: Tensor, manifold_MF: Tensor, k: int, chunk: int) -> float:
    radii = torch.split(_radii(manifold_MF, k, chunk), chunk)
    inside = []
    for part in torch.split(points_NF, chunk):
        found_N = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        for other, radius in zip(torch.split(manifold_MF, chunk), radii, strict=True):
            found_N |= (torch.cdist(part.double(), other.double()) <= radius).any(1)
        inside.append(found_N)
    return float(torch.cat(inside).double().mean())


def _radii(manifold_MF: Tensor, k: int, chunk: int) -> Tensor:
    """(M,) fp64: each sample's distance to its k-th nearest neighbour; the nearest one is itself."""
    radii = []
    for part in torch.split(manifold_MF, chunk):
        nearest = part.new_empty(len(part), 0, dtype=torch.float64)
        for other in torch.split(manifold_MF, chunk):
            known = torch.cat([nearest, torch.cdist(part.double(), other.double())], 1)
            nearest = known.topk(min(k + 1, known.shape[1]), largest=False).values
        radii.append(nearest.amax(1))
    return torch.cat(radii)


def inception_score(logits_NK: Tensor, split_size: int = 5000) -> float:
    """Inception Score (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y)), mean over splits of `split_size`.

    The splits are consecutive; the last one may be shorter. Use the name only for logits of the Inception network.
    """
    scores = []
    for part in torch.split(logits_NK, split_size):
        log_p = part.double().log_softmax(1)
        log_marginal = log_p.logsumexp(0) - torch.tensor(float(len(part)), device=part.device).double().log()
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
    return float(torch.stack(scores).mean())


def resampled_inception_score(logits_NK: Tensor, resamples: int, seed: int, split_size: int = 5000) -> Tensor:
    """(R,) fp64: the Inception Scores of bootstrap resamples, each split drawn anew from itself.

    The mean KL is the mean of sum p log p minus sum m log m, with m the mean of p, so a resample needs weights alone.
    """
    scores = []
    for index, part in enumerate(torch.split(logits_NK, split_size)):
        log_p_NK = part.double().log_softmax(1)
        p_NK = log_p_NK.exp()
        weight_RN = resample_counts(len(part), resamples, seed + index).to(p_NK) / len(part)
        marginal_RK = weight_RN @ p_NK
        entropy_R = torch.special.entr(marginal_RK).sum(1)
        scores.append((weight_RN @ (p_NK * log_p_NK).sum(1) + entropy_R).exp())
    return torch.stack(scores).mean(0)
