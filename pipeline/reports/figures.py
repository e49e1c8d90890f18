"""Draws the figures of reconstructions, samples and losses: from arrays to PNG bytes. No metrics are computed here.

Legend: B N images, H W pixels, L levels.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reports.canvas import (
    CHARACTER,
    DPI,
    INK,
    LABEL_WIDTH,
    LEVEL_COLOURS,
    LINE,
    STYLE,
    Array,
    Form,
    headline,
    page,
    page_in,
    png,
    resized,
    tiles,
)


def reconstructions(original_BCHW: Array, levels_LBCHW: Array, psnr_L: Sequence[float]) -> bytes:
    """uint8 images, and below each its reconstruction from the latent at level 0, 1, 2, 3; `psnr_L` in dB."""
    names = ["original"] + [f"level {level}\n{value:.1f} dB" for level, value in enumerate(psnr_L)]
    rows = [tiles(original_BCHW), *(tiles(images) for images in levels_LBCHW)]
    return page(
        rows,
        names,
        "Reconstructions of validation images",
        "A column an image; its latent passes through S_l, then the decoder. PSNR: mean of these.",
    )


def sample_grid(
    images_NCHW: Array, labels_N: Array, names: Sequence[str] | None = None, size: int | None = None, note: str = ""
) -> bytes:
    """PNG of generated uint8 images, a row per class as they come first in `labels_N`, named `names[label]`.

    `size`: side of a picture in pixels, by default at most 128. `note`: what is told below the title, too.
    """
    return sample_grid_in(("png",), images_NCHW, labels_N, names, size, note)["png"]


def sample_grid_in(
    forms: Sequence[Form],
    images_NCHW: Array,
    labels_N: Array,
    names: Sequence[str] | None = None,
    size: int | None = None,
    note: str = "",
) -> dict[Form, bytes]:
    """The same in each of these forms."""
    cells = tiles(images_NCHW, most=128) if size is None else resized(images_NCHW, size)
    labels = list(dict.fromkeys(labels_N.tolist()))
    rows = [[cell for cell, label in zip(cells, labels_N, strict=True) if label == row_label] for row_label in labels]
    lines = max(1, (size or 0) // LINE)
    row_names = [_fitted(names[label], lines) if names else f"class {label}" for label in labels]
    told = f"A row for each class that was asked for. {note}".strip()
    return page_in(forms, rows, row_names, "Generated images", told, side=size)


def _fitted(name: str, lines: int) -> str:
    """A name that fits beside a row, in so many lines at most."""
    most = int(LABEL_WIDTH / CHARACTER)
    if lines > 1:
        return "\n".join(textwrap.wrap(name, most, max_lines=lines, placeholder="…"))
    return name if len(name) <= most else f"{name[: most - 1]}…"


def loss_curves(history: Sequence[Mapping[str, float]], title: str) -> bytes:
    """One panel per loss in the lines of a history.jsonl, over steps: as logged, and smoothed."""
    names = ["loss", *sorted({name for line in history for name in line} - {"step", "loss"})]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    width, height, left = 3.1 * columns + 0.6, 1.0 + 2.1 * rows, 0.6  # inches
    with rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(width, height), dpi=DPI)
        grid = figure.add_gridspec(
            rows,
            columns,
            left=left / width,
            right=0.985,
            top=1 - 1.1 / height,
            bottom=0.42 / height,
            wspace=0.3,
            hspace=0.45,
        )
        for index, name in enumerate(names):
            axes = figure.add_subplot(grid[index // columns, index % columns])
            lines = [line for line in history if math.isfinite(line.get(name, math.nan))]
            _curve(axes, name, [line["step"] for line in lines], [line[name] for line in lines])
        headline(figure, left / width, title, "Over optimizer steps: faint as logged, dark smoothed.")
        return png(figure)


def _curve(axes: Axes, name: str, steps: list[float], values: list[float]) -> None:
    axes.set_title(name, loc="left", fontsize=8.5, color=INK)
    if not values:
        return
    axes.plot(steps, values, color=LEVEL_COLOURS[1], lw=0.9, alpha=0.35)
    axes.plot(steps, smoothed(values), color=LEVEL_COLOURS[0], lw=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")


def smoothed(values: list[float]) -> Array:
    """Centred Gaussian mean over about a twentieth of the curve."""
    sigma = max(0.5, len(values) / 40)
    reach = min(math.ceil(3 * sigma), max(0, (len(values) - 1) // 2))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights = np.convolve(np.ones(len(values)), taps, mode="same")
    smoothed: Array = np.convolve(values, taps, mode="same") / weights
    return smoothed
