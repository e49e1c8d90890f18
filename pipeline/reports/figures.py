"""Draws the figures: from arrays to PNG bytes. No metrics are computed here.

Images are placed pixel by pixel and enlarged by integer factors, so that a pixel of an image or a cell of a latent is a
sharp square. Legend: B N images, H W pixels, L levels, D latent channels, h w latent grid, R radius bins.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Array = npt.NDArray[Any]

_DPI = 144
_INK, _MUTED, _GRID = "#1f2933", "#66727f", "#e3e7eb"
_FRAME = 222  # grey level around each image
_LEVEL_COLOURS = ("#1b2a49", "#2a6f97", "#3fa796", "#e0a030")
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
}
_MARGIN, _GAP, _LABEL_WIDTH, _LINE = 36, 6, 120, 26  # pixels
_CHARACTER = 9.7  # mean width of a character in the note, in pixels
_MINIMUM_WIDTH = 1000


class PrincipalColours:
    """The first three principal components of latents as red, green and blue.

    Args:
        reference_BDhw: the latents whose positions the components are fitted on; their 1st and 99th percentiles are
            the ends of the colour scale, also for other latents.
    """

    def __init__(self, reference_BDhw: Array) -> None:
        vectors_ND = _positions(reference_BDhw)
        self._mean_D = vectors_ND.mean(0)
        _, components = np.linalg.eigh(np.cov(vectors_ND - self._mean_D, rowvar=False).reshape(len(self._mean_D), -1))
        components = components[:, ::-1][:, :3]
        largest = np.take_along_axis(components, np.abs(components).argmax(0)[None], axis=0)
        self._components_D3 = components * np.where(largest < 0, -1.0, 1.0)  # fix the arbitrary sign of eigenvectors
        self._low, self._high = np.percentile((vectors_ND - self._mean_D) @ self._components_D3, (1, 99), axis=0)

    def __call__(self, z_XDhw: Array) -> Array:
        """Latents (..., D, h, w) as RGB (..., h, w, 3) in [0, 1]. With fewer than 3 channels the others are 0.5."""
        projected = (np.moveaxis(z_XDhw, -3, -1).astype(np.float64) - self._mean_D) @ self._components_D3
        scaled = np.clip((projected - self._low) / np.maximum(self._high - self._low, 1e-12), 0.0, 1.0)
        rgb = np.full((*scaled.shape[:-1], 3), 0.5)
        rgb[..., : scaled.shape[-1]] = scaled
        return rgb


def _positions(z_BDhw: Array) -> Array:
    """(B*h*w, D) fp64."""
    return np.moveaxis(z_BDhw, 1, -1).reshape(-1, z_BDhw.shape[1]).astype(np.float64)


def reconstructions(original_BCHW: Array, levels_LBCHW: Array, psnr_L: Sequence[float]) -> bytes:
    """uint8 images, and below each its reconstruction from the latent at level 0, 1, 2, 3; `psnr_L` in dB."""
    names = ["original"] + [f"level {level}\n{value:.1f} dB" for level, value in enumerate(psnr_L)]
    rows = [_tiles(original_BCHW), *(_tiles(images) for images in levels_LBCHW)]
    return _page(
        rows,
        names,
        "Reconstructions of validation images",
        "A column an image; its latent passes through S_l, then the decoder. PSNR: mean of these.",
    )


def sample_grid(images_NCHW: Array, labels_N: Array, names: Sequence[str] | None = None) -> bytes:
    """Generated uint8 images, one row per class in `labels_N`, labelled with `names[label]`."""
    tiles = _tiles(images_NCHW, most=128)
    labels = np.unique(labels_N).tolist()
    rows = [[tile for tile, label in zip(tiles, labels_N, strict=True) if label == row_label] for row_label in labels]
    row_names = [_fitted(names[label]) if names else f"class {label}" for label in labels]
    return _page(rows, row_names, "Generated images", "A row for each class that was asked for.")


def _fitted(name: str) -> str:
    """A name that fits beside a row."""
    most = int(_LABEL_WIDTH / _CHARACTER)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def latent_levels(images_BCHW: Array, rgb_LBhwC: Array) -> bytes:
    """Figure 2 of the paper: uint8 images, and below each its latent at level 0, 1, 2, 3 in PCA colours."""
    rows = [_tiles(images_BCHW), *([tile * 255 for tile in level] for level in rgb_LBhwC)]
    return _page(
        rows,
        ["image", *(f"level {level}" for level in range(len(rgb_LBhwC)))],
        "Latents at levels 0 to 3 (Figure 2 of the paper)",
        "First three principal components as red, green, blue; fitted on level 0, one scale for all.",
    )


def uniform_latents(images_BCHW: Array, rgb_LBhwC: Array) -> bytes:
    """Figure 1(a) of the paper: uint8 images of one colour, and below each its latent at every level."""
    rows = [_tiles(images_BCHW), *([tile * 255 for tile in level] for level in rgb_LBhwC)]
    return _page(
        rows,
        ["image", *(f"level {level}" for level in range(len(rgb_LBhwC)))],
        "Latents of images of one colour (Figure 1a of the paper)",
        "Structure within a square comes from the encoder, not the image. Colours as in Figure 2.",
    )


def spectrum(radius_R: Array, power_LR: Array) -> bytes:
    """Radial power spectra of the latents, one line per level. `radius_R` in cycles per side; radius 0 is omitted."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.4), dpi=_DPI)
        axes = figure.add_axes((0.11, 0.13, 0.84, 0.68))
        for level, power_R in enumerate(power_LR):
            colour = _LEVEL_COLOURS[level % len(_LEVEL_COLOURS)]
            axes.plot(radius_R[1:], power_R[1:], "o-", color=colour, lw=1.8, ms=3.5, label=f"level {level}")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("spatial frequency |k|, cycles a side")
        axes.set_ylabel("mean power")
        axes.legend(loc="lower left")
        note = "Mean over validation images and channels; white noise would be a flat line."
        _headline(figure, 0.11, "Radial spectrum of the latents", note)
        return _png(figure)


def loss_curves(history: Sequence[Mapping[str, float]], title: str) -> bytes:
    """One panel per loss in the lines of a history.jsonl, over steps: as logged, and smoothed."""
    names = ["loss", *sorted({name for line in history for name in line} - {"step", "loss"})]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    width, height, left = 3.1 * columns + 0.6, 1.0 + 2.1 * rows, 0.6  # inches
    with rc_context({**_STYLE, "font.size": 8}):
        figure = Figure(figsize=(width, height), dpi=_DPI)
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
        _headline(figure, left / width, title, "Over optimizer steps: faint as logged, dark smoothed.")
        return _png(figure)


def _curve(axes: Axes, name: str, steps: list[float], values: list[float]) -> None:
    axes.set_title(name, loc="left", fontsize=8.5, color=_INK)
    if not values:
        return
    axes.plot(steps, values, color=_LEVEL_COLOURS[1], lw=0.9, alpha=0.35)
    axes.plot(steps, _smoothed(values), color=_LEVEL_COLOURS[0], lw=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")


def _smoothed(values: list[float]) -> Array:
    """Centred Gaussian mean over about a twentieth of the curve."""
    sigma = max(0.5, len(values) / 40)
    reach = min(math.ceil(3 * sigma), max(0, (len(values) - 1) // 2))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights = np.convolve(np.ones(len(values)), taps, mode="same")
    smoothed: Array = np.convolve(values, taps, mode="same") / weights
    return smoothed


def _tiles(images_NCHW: Array, most: int | None = None) -> list[Array]:
    """Images as (H, W, 3), reduced by an integer factor if the side exceeds `most` pixels."""
    tiles = np.moveaxis(images_NCHW, 1, -1)
    factor = -(-tiles.shape[1] // most) if most else 1
    if factor > 1:
        side = tiles.shape[1] // factor
        cut = tiles[:, : side * factor, : side * factor].astype(np.float32)
        tiles = cut.reshape(len(cut), side, factor, side, factor, 3).mean((2, 4))
    return list(tiles)


def _page(rows: Sequence[Sequence[Array]], names: Sequence[str], title: str, note: str) -> bytes:
    """Rows of square tiles in [0, 255], each row with its name at the left, below a title and a note."""
    side = max(len(tile) for row in rows for tile in row)
    side *= max(1, round(96 / side))
    columns = max(len(row) for row in rows)
    width = max(_MINIMUM_WIDTH, 2 * _MARGIN + _LABEL_WIDTH + columns * (side + _GAP) - _GAP)
    lines = textwrap.wrap(note, int((width - 2 * _MARGIN) / _CHARACTER))
    top = _MARGIN + 2 * _LINE + _LINE * len(lines)
    height = top + len(rows) * (side + _GAP) - _GAP + _MARGIN
    canvas = np.full((height, width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            y, x = top + r * (side + _GAP), _MARGIN + _LABEL_WIDTH + c * (side + _GAP)
            canvas[y - 1 : y + side + 1, x - 1 : x + side + 1] = _FRAME  # so that white images are visible
            canvas[y : y + side, x : x + side] = _enlarged(tile, side)
    with rc_context(_STYLE):
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        figure.figimage(canvas, 0, 0, origin="upper")
        for r, name in enumerate(names):
            middle = top + r * (side + _GAP) + side / 2
            figure.text(
                _MARGIN / width, 1 - middle / height, name, va="center", fontsize=9, color=_MUTED, parse_math=False
            )
        _headline(figure, _MARGIN / width, title, "\n".join(lines))
        return _png(figure)


def _enlarged(tile: Array, side: int) -> Array:
    """uint8 (side, side, 3), by pixel repetition."""
    index = np.arange(side) * len(tile) // side
    pixels = np.clip(np.rint(tile), 0, 255).astype(np.uint8)
    enlarged: Array = pixels[index][:, index]
    return enlarged


def _headline(figure: Figure, left: float, title: str, note: str) -> None:
    height = figure.get_figheight() * _DPI
    figure.text(left, 1 - _MARGIN / height, title, va="top", fontsize=12.5, fontweight="bold")
    figure.text(left, 1 - (_MARGIN + 1.35 * _LINE) / height, note, va="top", fontsize=9, color=_MUTED, linespacing=1.3)


def _png(figure: Figure) -> bytes:
    """PNG bytes without dates or versions, so that equal figures give equal bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
