"""Latents as colours: their first three principal components as red, green and blue. Needs numpy alone.

Legend: B images, D latent channels, C components shown (3, or D if there are fewer), h w latent grid, X any axes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Scale(NamedTuple):
    """The ends of the colour scale of each component."""

    low_C: Array
    high_C: Array


class PrincipalComponents:
    """The principal components of latents, fitted on all positions of all images.

    Args:
        reference_BDhw: the latents that they are fitted on.

    Attributes:
        scale: the 1st and 99th percentiles of the reference, also used for other latents.
        variance_share: share, in [0, 1], of the reference's variance that the components hold; 1 without any variance.
    """

    def __init__(self, reference_BDhw: Array) -> None:
        vectors_ND = np.moveaxis(reference_BDhw, 1, -1).reshape(-1, reference_BDhw.shape[1]).astype(np.float64)
        self._mean_D = vectors_ND.mean(0)
        covariance_DD = np.cov(vectors_ND - self._mean_D, rowvar=False).reshape(len(self._mean_D), -1)
        variances, components = np.linalg.eigh(covariance_DD)
        components = components[:, ::-1][:, :3]
        largest = np.take_along_axis(components, np.abs(components).argmax(0)[None], axis=0)
        self._components_DC = components * np.where(largest < 0, -1.0, 1.0)  # fix the arbitrary sign of eigenvectors
        self.scale = Scale(*np.percentile((vectors_ND - self._mean_D) @ self._components_DC, (1, 99), axis=0))
        total = variances.sum()
        self.variance_share = float(variances[::-1][:3].sum() / total) if total > 0 else 1.0

    def project(self, z_XDhw: Array) -> Array:
        """Latents (..., D, h, w) as components (..., h, w, C), fp64."""
        projected: Array = (np.moveaxis(z_XDhw, -3, -1).astype(np.float64) - self._mean_D) @ self._components_DC
        return projected


def colours(projected_XhwC: Array, scale: Scale) -> Array:
    """Components as RGB (..., h, w, 3) in [0, 1]. Components that are missing, or do not vary, are 0.5."""
    span_C = scale.high_C - scale.low_C
    varies_C = span_C > 0
    scaled = np.clip((projected_XhwC - scale.low_C) / np.where(varies_C, span_C, 1.0), 0.0, 1.0)
    rgb = np.full((*scaled.shape[:-1], 3), 0.5)
    rgb[..., : scaled.shape[-1]] = np.where(varies_C, scaled, 0.5)
    return rgb
