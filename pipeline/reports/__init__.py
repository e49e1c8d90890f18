"""Reports of a run: a table and an HTML page, figures, the model card.

Figures need matplotlib and are imported on use; the rest is light.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy
from pipeline.reports.model_card import all_metrics, model_card
from pipeline.reports.report import collect, render_table, write_page

if TYPE_CHECKING:
    from pipeline.reports.figures import (
        PrincipalColours,
        latent_levels,
        loss_curves,
        reconstructions,
        sample_grid,
        spectrum,
        uniform_latents,
    )
else:
    __getattr__ = lazy(
        __name__,
        figures="PrincipalColours latent_levels loss_curves reconstructions sample_grid spectrum uniform_latents",
    )
