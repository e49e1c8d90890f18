"""The common parts of figures: style, pages of small images, PNG bytes. It knows nothing of what is drawn.

Images are placed pixel by pixel and enlarged by integer factors, so that a pixel of an image or a cell of a latent is a
sharp square.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

Array = npt.NDArray[Any]
Form = Literal["png", "svg"]

DPI = 144
INK, MUTED, GRID = "#1f2933", "#66727f", "#e3e7eb"
_FRAME = 222  # grey level around each image
# Of curves: the colours of Okabe and Ito, which the colour-blind can tell apart; markers and dashes differ too.
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
LEVEL_COLOURS = ("#1b2a49", "#2a6f97", "#3fa796", "#e0a030")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
_MARGIN, _GAP, LABEL_WIDTH, LINE = 36, 6, 120, 26  # pixels
CHARACTER = 9.7  # mean width of a character in the note, in pixels
_MINIMUM_WIDTH = 1000


def tiles(images_NCHW: Array, most: int | None = None) -> list[Array]:
    """Images as (H, W, 3), reduced by an integer factor if the side exceeds `most` pixels."""
    cells = np.moveaxis(images_NCHW, 1, -1)
    factor = -(-cells.shape[1] // most) if most else 1
    if factor > 1:
        side = cells.shape[1] // factor
        cut = cells[:, : side * factor, : side * factor].astype(np.float32)
        cells = cut.reshape(len(cut), side, factor, side, factor, 3).mean((2, 4))
    return list(cells)


def resized(images_NCHW: Array, side: int) -> list[Array]:
    """uint8 images as (side, side, 3): by whole numbers each pixel is repeated, else resampled (Lanczos)."""
    cells = np.moveaxis(images_NCHW, 1, -1)
    if side % cells.shape[1] == 0:
        return [_enlarged(cell, side) for cell in cells]
    return [np.asarray(Image.fromarray(cell).resize((side, side), Image.Resampling.LANCZOS)) for cell in cells]


def page(
    rows: Sequence[Sequence[Array]], names: Sequence[str], title: str, note: str, side: int | None = None
) -> bytes:
    """PNG of rows of square tiles in [0, 255], each row with its name at the left, below a title and a note.

    `side`: of the tiles on the page; by default their own, times the whole number that comes nearest to 96.
    """
    return page_in(("png",), rows, names, title, note, side)["png"]


def page_in(
    forms: Sequence[Form],
    rows: Sequence[Sequence[Array]],
    names: Sequence[str],
    title: str,
    note: str,
    side: int | None = None,
) -> dict[Form, bytes]:
    """The same page in each of these forms. In SVG the text is text, and the tiles are one embedded picture."""
    if side is None:
        side = max(len(tile) for row in rows for tile in row)
        side *= max(1, round(96 / side))
    columns = max(len(row) for row in rows)
    longest = max(len(line) for name in names for line in name.splitlines() or [""])
    left = _MARGIN + max(LABEL_WIDTH, math.ceil(longest * CHARACTER) + 2 * _GAP)
    width = max(_MINIMUM_WIDTH, left + columns * (side + _GAP) - _GAP + _MARGIN)
    lines = textwrap.wrap(note, int((width - 2 * _MARGIN) / CHARACTER))
    top = _MARGIN + 2 * LINE + LINE * len(lines)
    height = top + len(rows) * (side + _GAP) - _GAP + _MARGIN
    canvas = np.full((height, width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            y, x = top + r * (side + _GAP), left + c * (side + _GAP)
            canvas[y - 1 : y + side + 1, x - 1 : x + side + 1] = _FRAME  # so that white images are visible
            canvas[y : y + side, x : x + side] = _enlarged(tile, side)
    with rc_context(STYLE):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        figure.figimage(canvas, 0, 0, origin="upper")
        for r, name in enumerate(names):
            middle = top + r * (side + _GAP) + side / 2
            figure.text(
                _MARGIN / width, 1 - middle / height, name, va="center", fontsize=9, color=MUTED, parse_math=False
            )
        headline(figure, _MARGIN / width, title, "\n".join(lines))
        return drawn(figure, forms)


def _enlarged(tile: Array, side: int) -> Array:
    """uint8 (side, side, 3), by pixel repetition."""
    index = np.arange(side) * len(tile) // side
    pixels = np.clip(np.rint(tile), 0, 255).astype(np.uint8)
    enlarged: Array = pixels[index][:, index]
    return enlarged


def headline(figure: Figure, left: float, title: str, note: str) -> None:
    """Title and note at the top of a figure, from `left`, a share of its width."""
    height = figure.get_figheight() * DPI
    figure.text(left, 1 - _MARGIN / height, title, va="top", fontsize=12.5, fontweight="bold")
    figure.text(left, 1 - (_MARGIN + 1.35 * LINE) / height, note, va="top", fontsize=9, color=MUTED, linespacing=1.3)


def drawn(figure: Figure, forms: Sequence[Form]) -> dict[Form, bytes]:
    """The figure in each of these forms, in the present style; equal figures give equal bytes."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "figure"}):
        return {form: png(figure) if form == "png" else svg(figure) for form in forms}


def svg(figure: Figure) -> bytes:
    """SVG bytes without dates; equal figures give equal bytes where `svg.hashsalt` is set."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """PNG bytes without dates or versions, so that equal figures give equal bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
