"""Reports of a run: a table and an HTML page, figures, the model card.

Figures need matplotlib and are imported on use; the rest is light.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy
from pipeline.reports import page
from pipeline.reports.against import Against, against, against_as_json, render_against
from pipeline.reports.analysis import Analysis, files_of, rounded
from pipeline.reports.comparison import Found, read_analyses, render_comparison, write_comparison
from pipeline.reports.convergence import (
    check_comparable,
    convergence_rows,
    faster,
    render_convergence,
    write_convergence,
)
from pipeline.reports.folder import write_files
from pipeline.reports.model_card import all_metrics, model_card
from pipeline.reports.principal import PrincipalComponents
from pipeline.reports.report import collect, notes_of, render_table, write_page
from pipeline.reports.trainings import Training, curve_file, read_training

if TYPE_CHECKING:
    from pipeline.reports.curves import draw_curves, milestone_grid
    from pipeline.reports.figures import loss_curves, reconstructions, sample_grid, sample_grid_in
    from pipeline.reports.losses import LossCurve, draw_losses
    from pipeline.reports.panels import draw_panels
else:
    __getattr__ = lazy(
        __name__,
        curves="draw_curves milestone_grid",
        figures="loss_curves reconstructions sample_grid sample_grid_in",
        losses="LossCurve draw_losses",
        panels="draw_panels",
    )
