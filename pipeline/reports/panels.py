"""Draws the panels of the paper's Figures 1 and 2 for one tokenizer, or several side by side, as PNG or SVG.

Legend: B images shown, C components, h w latent grid, L levels.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from pipeline.metrics import value_text
from pipeline.reports.analysis import Analysis
from pipeline.reports.canvas import (
    CURVES,
    DASHES,
    DPI,
    INK,
    LEVEL_COLOURS,
    MARKERS,
    MUTED,
    STYLE,
    Array,
    Form,
    drawn,
    headline,
    page_in,
    tiles,
)
from pipeline.reports.principal import colours

Forms = dict[Form, bytes]

_MOST = 128  # pixels of a side of an image shown
_NAME = 26  # characters of a name
_COLUMNS = 3  # panels beside each other
_SPAN = 3.0  # dB at least on the axis of PSNR, so that a flat curve looks flat


def draw_panels(analyses: Sequence[Analysis], forms: Sequence[Form] = ("png",)) -> dict[str, bytes]:
    """File name -> figure, in each of these forms. Images shown are those of the first analysis, which all have."""
    panels = {
        "figure1a": _uniform,
        "figure1b": _components,
        "figure1c": _removal,
        "figure2": _levels,
        "spectrum": _spectra,
    }
    return {f"{name}.{form}": data for name, draw in panels.items() for form, data in draw(analyses, forms).items()}


def _uniform(analyses: Sequence[Analysis], forms: Sequence[Form]) -> Forms:
    """Figure 1(a): latents of images of one colour."""
    plain_BHWC = np.asarray(analyses[0].projections["colour"], np.float64)[:, None, None]
    rows, names = [list(plain_BHWC)], ["image"]
    for analysis in analyses:
        off_dc = value_text("latent/uniform_off_dc", analysis.numbers["metrics"]["latent/uniform_off_dc"])
        rows += [_cells(analysis, "uniform", "scale"), _cells(analysis, "structure", "structure_scale")]
        names += [_lines(analysis, analysis.shape_text), _lines(analysis, "structure,", f"{off_dc} of energy")]
    return page_in(
        forms,
        rows,
        names,
        "Latents of images of one colour (Figure 1a)",
        "Principal components at level 0. Upper row: on the scale of real images (Figure 1b). Lower row: what varies "
        "within the latent, which comes from the encoder alone, on a scale of its own, and its share of the energy.",
    )


def _components(analyses: Sequence[Analysis], forms: Sequence[Form]) -> Forms:
    """Figure 1(b): latents of images, by tokenizer."""
    rows, names = [tiles(analyses[0].images_BCHW, _MOST)], ["image"]
    for analysis in analyses:
        shown = value_text("latent/pca_variance_share", analysis.numbers["metrics"]["latent/pca_variance_share"])
        rows.append(_cells(analysis, "images", "scale", level=0))
        names.append(_lines(analysis, analysis.shape_text, f"PCA {shown}"))
    return page_in(
        forms,
        rows,
        names,
        "Principal components of latents (Figure 1b)",
        "The first three as red, green, blue, and the share of the variance that they hold. Fitted for each tokenizer; "
        "d: latent channels, f: pixels a side of a latent's cell.",
    )


def _levels(analyses: Sequence[Analysis], forms: Sequence[Form]) -> Forms:
    """Figure 2: latents of images, by level."""
    rows, names = [tiles(analyses[0].images_BCHW, _MOST)], ["image"]
    for analysis in analyses:
        for level in range(len(analysis.projections["images"])):
            rows.append(_cells(analysis, "images", "scale", level))
            names.append(_lines(analysis, f"level {level}"))
    return page_in(
        forms,
        rows,
        names,
        "Latents at levels 0 to 3 (Figure 2)",
        "First three principal components as red, green, blue; fitted on level 0, one scale for all levels.",
    )


def _cells(analysis: Analysis, kind: str, scale: str, level: int | None = None) -> list[Array]:
    """The colours of latents, (h, w, 3) in [0, 255] each."""
    projected = analysis.projected(kind)
    return list(255 * colours(projected if level is None else projected[level], analysis.scale(scale)))


def _lines(analysis: Analysis, *lines: str) -> str:
    """The name of a row: of the tokenizer, if it has one, then these lines."""
    return "\n".join((*([_short(analysis.name)] if analysis.name else []), *lines))


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _removal(analyses: Sequence[Analysis], forms: Sequence[Form]) -> Forms:
    """Figure 1(c): PSNR over the share of the frequencies that is removed."""
    several = len(analyses) > 1
    width, height = (9.8 if several else 7.2), max(4.4, 1.2 + 0.25 * len(analyses))  # inches
    left = 0.8 / width
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        axes = figure.add_axes((left, 0.13, 5.6 / width if several else 0.84, 0.87 - 0.92 / height))
        for index, analysis in enumerate(analyses):
            removal = analysis.numbers["removal"]
            axes.plot(
                100 * np.asarray(removal["share"]),
                removal["psnr"],
                color=CURVES[index % len(CURVES)],
                marker=MARKERS[index % len(MARKERS)],
                linestyle=DASHES[index // len(CURVES) % len(DASHES)],
                lw=1.8,
                ms=4.5,
                label=", ".join(part for part in (_short(analysis.name), analysis.shape_text) if part),
            )
        axes.set_xlim(-2, 102)
        low, high = axes.get_ylim()
        axes.set_ylim(low - max(0.0, _SPAN - (high - low)) / 2, high + max(0.0, _SPAN - (high - low)) / 2)
        axes.set_xlabel("latent frequencies removed, highest |k| first, %")
        axes.set_ylabel("PSNR of reconstructions, dB")
        if several:
            _plain(axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0))
        count = analyses[0].numbers["images"]
        note = f"Mean over {count} validation images, uint8. A flat curve: the decoder needs no high frequencies."
        headline(figure, left, "Reconstruction without high frequencies (Figure 1c)", note)
        return drawn(figure, forms)


def _spectra(analyses: Sequence[Analysis], forms: Sequence[Form]) -> Forms:
    """Radial power spectra of the latents at every level, a panel for each tokenizer."""
    columns = min(_COLUMNS, len(analyses))
    rows = math.ceil(len(analyses) / columns)
    wide = 7.2 if columns == 1 else 3.3 * columns + 0.6  # inches
    height, left = 1.75 + (3.0 if rows == 1 else 2.6) * rows, 0.75
    with rc_context(STYLE):
        figure = Figure(figsize=(wide, height), dpi=DPI)
        grid = figure.add_gridspec(
            rows,
            columns,
            left=left / wide,
            right=1 - 0.2 / wide,
            top=1 - 1.5 / height,
            bottom=0.5 / height,
            wspace=0.12,
            hspace=0.45,
        )
        first: Axes | None = None
        for index, analysis in enumerate(analyses):
            axes = figure.add_subplot(grid[index // columns, index % columns], sharex=first, sharey=first)
            first = first or axes
            _spectrum(axes, analysis)
            axes.tick_params(labelleft=index % columns == 0)
            if index + columns >= len(analyses):
                axes.set_xlabel("|k|, cycles a side")
            if index % columns == 0:
                axes.set_ylabel("power, white noise = 1")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        corner = (left / wide, 1 - 0.87 / height)
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=corner, ncols=len(labels), borderpad=0.0)
        note = "Over the mean power at level 0 without DC: white noise would be the dashed line."
        headline(figure, left / wide, "Radial spectrum of the latents", note)
        return drawn(figure, forms)


def _spectrum(axes: Axes, analysis: Analysis) -> None:
    """One tokenizer's panel. Radius 0, the mean, is left out."""
    spectra = analysis.numbers["spectra"]
    radius_R, power_LR = np.asarray(spectra["radius"]), np.asarray(spectra["power"])
    power_LR = power_LR / max(spectra["white"], np.finfo(np.float64).tiny)
    axes.axhline(1.0, color=MUTED, lw=1.0, ls="--")
    for level, power_R in enumerate(power_LR):
        colour = LEVEL_COLOURS[level % len(LEVEL_COLOURS)]
        marker = MARKERS[level % len(MARKERS)]
        axes.plot(radius_R[1:], power_R[1:], marker=marker, color=colour, lw=1.8, ms=3.5, label=f"level {level}")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    name = ", ".join(part for part in (_short(analysis.name), analysis.shape_text) if part)
    axes.set_title(name, loc="left", fontsize=9, color=INK, parse_math=False)


def _plain(legend: Legend) -> None:
    """Names as they are: a $ in one begins no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)
