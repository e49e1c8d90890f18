"""Figures: PNGs that repeat byte for byte, whose image pixels are the ones that were given."""

import io
import math

import numpy as np
from PIL import Image

from pipeline.reports import figures


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def pictures(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)


def holds(page: np.ndarray, tile: np.ndarray) -> bool:
    """Is this array of pixels somewhere on the page?"""
    windows = np.lib.stride_tricks.sliding_window_view(page, tile.shape)[..., 0, :, :, :]
    corners = np.argwhere((windows[..., 0, 0, :] == tile[0, 0]).all(-1))
    return any((windows[y, x] == tile).all() for y, x in corners)


def test_images_are_enlarged_by_whole_pixels():
    images = pictures(2)
    page = pixels(figures.reconstructions(images, np.stack([images] * 4), [30.0, 29.0, 25.0, 20.0]))
    enlarged = images[1].transpose(1, 2, 0).repeat(12, 0).repeat(12, 1)
    assert holds(page, enlarged)


def test_large_samples_are_averaged():
    images = np.full((2, 3, 256, 256), 7, np.uint8)
    page = pixels(figures.sample_grid(images, np.array([3, 5]), names=["a"] * 6))
    assert holds(page, np.full((128, 128, 3), 7, np.uint8))
    assert len(page) < 2 * 256 + 100


def test_rows_of_the_grid_are_classes_of_any_length():
    images = pictures(5)
    few = pixels(figures.sample_grid(images, np.array([0, 0, 0, 0, 0])))
    many = pixels(figures.sample_grid(images, np.array([0, 1, 1, 2, 2])))
    assert len(many) - len(few) == 2 * (96 + 6)


def test_rows_of_the_grid_are_in_the_order_of_the_labels():
    images, labels = pictures(4), np.array([2, 0, 2, 0])
    page = pixels(figures.sample_grid(images, labels))
    tiles = images.transpose(0, 2, 3, 1).repeat(12, 1).repeat(12, 2)
    above_the_last_row = page[: -(36 + 96 + 3)]
    assert [holds(above_the_last_row, tile) for tile in tiles] == [True, False, True, False]
    assert all(holds(page, tile) for tile in tiles)


def test_pictures_of_a_size():
    """To the pixel where it is theirs, or a multiple; else resampled, which keeps what is even."""
    images = pictures(2, size=16)
    tile = images[1].transpose(1, 2, 0)
    for times in (1, 3):
        page = pixels(figures.sample_grid(images, np.array([0, 1]), size=16 * times))
        assert holds(page, tile.repeat(times, 0).repeat(times, 1))
    for size in (10, 40):
        page = pixels(figures.sample_grid(np.full((1, 3, 16, 16), 99, np.uint8), np.array([0]), size=size))
        assert holds(page, np.full((size, size, 3), 99, np.uint8))
        assert not holds(page, np.full((size + 1, size + 1, 3), 99, np.uint8))


def test_a_long_name_has_as_many_lines_as_its_row_is_high():
    images, labels = pictures(1, size=16), np.array([0])
    for size, differ in ((None, False), (32, False), (64, True)):
        one, other = (figures.sample_grid(images, labels, [f"golden retriever {end}"], size) for end in "ab")
        assert (one != other) == differ, size


def test_the_same_figure_gives_the_same_bytes():
    history = [{"step": s, "loss": 1 / s} for s in range(1, 9)]
    assert figures.loss_curves(history, "Losses") == figures.loss_curves(history, "Losses")


def test_loss_curves_have_a_panel_a_term():
    """A term that changes changes its own panel and nothing beside it: those of three terms stand side by side."""
    history = [{"step": s, "loss": 1 / s, "adversarial": 0.5 / s, "mse": 1 / s} for s in range(1, 40)]
    before = pixels(figures.loss_curves(history, "Losses"))
    for column, name in enumerate(["loss", "adversarial", "mse"]):
        other = [{**line, name: line[name] * (2 - line["step"] / 40)} for line in history]
        changed = np.flatnonzero((pixels(figures.loss_curves(other, "Losses")) != before).any((0, 2)))
        third = before.shape[1] / 3
        assert column * third < changed.min() + 40, name
        assert changed.max() - 40 < (column + 1) * third, name


def test_loss_curves_leave_out_what_was_not_measured():
    """A skipped step, a term that starts late, a single line."""
    history = [{"step": s, "loss": 1 / s, "mse": 1.0 + s} for s in range(1, 40)]
    skipped = [{**line, "mse": math.nan} if line["step"] == 3 else line for line in history]
    without = [{"step": 3, "loss": 1 / 3} if line["step"] == 3 else line for line in history]
    assert figures.loss_curves(skipped, "Losses") == figures.loss_curves(without, "Losses")
    assert figures.loss_curves(skipped, "Losses") != figures.loss_curves(history, "Losses")
    single = pixels(figures.loss_curves(history[:1], "Losses"))
    empty = pixels(figures.loss_curves([{"step": 1, "loss": math.nan, "mse": math.nan}], "Losses"))
    assert single.shape == empty.shape
