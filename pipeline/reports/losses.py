"""Draws the losses of several trainings of the generator in one plot: the paper's Figure 4, as PNG and SVG."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.reports.canvas import CURVES, DASHES, DPI, INK, STYLE, drawn, headline
from pipeline.reports.figures import smoothed

_WIDTH, _HEIGHT = 7.6, 5.0  # inches
_SHOWN = 0.05  # share of a curve's beginning, where weights are still random, that does not set the axis


class LossCurve(NamedTuple):
    """One training: trainings of one group have one colour, and differ by their dashes."""

    name: str
    group: str
    steps: Sequence[float]
    losses: Sequence[float]


def draw_losses(curves: Sequence[LossCurve]) -> dict[str, bytes]:
    """File name -> figure: the smoothed diffusion loss of every training over its steps."""
    groups = list(dict.fromkeys(curve.group for curve in curves))
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=DPI)
        left, top = 0.9 / _WIDTH, 1 - 1.05 / _HEIGHT
        axes = figure.add_axes((left, 0.55 / _HEIGHT, 0.97 - left, top - 0.55 / _HEIGHT))
        settled: list[float] = []
        for curve in curves:
            of_group = [other for other in curves if other.group == curve.group]
            values = smoothed(list(curve.losses))
            settled += [float(value) for value in values[int(np.ceil(_SHOWN * len(values))) :]]
            axes.plot(
                curve.steps,
                values,
                color=CURVES[groups.index(curve.group) % len(CURVES)],
                ls=DASHES[of_group.index(curve) % len(DASHES)],
                lw=1.6,
                label=curve.name,
            )
        if settled:
            margin = 0.05 * (max(settled) - min(settled)) or 0.05
            axes.set_ylim(min(settled) - margin, max(settled) + margin)
        axes.set_xlabel("training steps")
        axes.set_ylabel("diffusion loss")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        legend = axes.legend(loc="upper right", fontsize=9, labelcolor=INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
        note = "Mean over times, smoothed. A colour for each tokenizer; latents are normalised for each training."
        headline(figure, left, "Training losses of the generator (Figure 4)", note)
        return {f"figure4.{form}": data for form, data in drawn(figure, ("png", "svg")).items()}
