"""Draws distances over training steps: the paper's Figure 3, as PNG and SVG; and the samples of milestones."""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.reports.canvas import (
    CURVES,
    DASHES,
    DPI,
    INK,
    MARKERS,
    MUTED,
    STYLE,
    Array,
    headline,
    page,
    png,
    svg,
    tiles,
)
from pipeline.reports.trainings import Training

_WIDTH, _HEIGHT = 7.6, 5.0  # inches


def draw_curves(trainings: Sequence[Training], goal: float) -> dict[str, bytes]:
    """File name -> figure: a curve with its interval for each training, and the distance at which they are compared."""
    with rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "figure3"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=DPI)
        left, top = 0.9 / _WIDTH, 1 - 1.05 / _HEIGHT
        axes = figure.add_axes((left, 0.55 / _HEIGHT, 0.97 - left, top - 0.55 / _HEIGHT))
        for index, training in enumerate(trainings):
            _curve(axes, training, index)
        axes.axhline(goal, color=MUTED, lw=0.9, ls=(0, (1, 2)))
        axes.set_xlabel("training steps")
        axes.set_ylabel(trainings[0].about["distance"].replace("/", ", ").replace("_", " "))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend(loc="upper right", fontsize=9, labelcolor=INK)
        headline(
            figure,
            left,
            "Distance of samples over training (Figure 3)",
            f"{trainings[0].about['images']:,} samples a point; bands: 95%, by a bootstrap over images.\n"
            f"Dotted: {goal:.4g}, at which trainings are compared.",
        )
        return {"figure3.png": png(figure), "figure3.svg": svg(figure)}


def _curve(axes: Axes, training: Training, index: int) -> None:
    points = training.curve.points
    around = [point.around() for point in points]
    colour = CURVES[index % len(CURVES)]
    axes.fill_between(
        training.curve.steps, [low for low, _ in around], [high for _, high in around], color=colour, alpha=0.15, lw=0
    )
    axes.plot(
        training.curve.steps,
        [point.distance for point in points],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        ls=DASHES[index % len(DASHES)],
        lw=1.6,
        ms=5,
        label=training.name,
    )


def milestone_grid(images: Mapping[int, Array]) -> bytes:
    """uint8 images (N, 3, H, W) of each milestone, a row each."""
    return page(
        [tiles(shown, most=128) for shown in images.values()],
        [f"{step:,} steps" for step in images],
        "Generated images by milestone",
        "A column has one label and one noise.",
    )
