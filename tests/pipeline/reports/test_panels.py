"""The panels of Figures 1 and 2: what is drawn is what is written, for one tokenizer and for many."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import FileRecord, Manifest
from pipeline.reports.analysis import Analysis, files_of, read_analysis, rounded
from pipeline.reports.panels import draw_panels
from pipeline.reports.principal import PrincipalComponents, Scale, colours
from pipeline.storage.uri import open_storage
from tests.pipeline.reports.test_figures import holds, pictures, pixels

PICTURES = ("figure1a.png", "figure1b.png", "figure2.png")


def analysis(name: str = "", seed: int = 0, grid: int = 4, channels: int = 5) -> Analysis:
    """An analysis of random latents, of three images of 16 pixels."""
    random = np.random.default_rng(seed)
    z_LBDhw = random.normal(size=(4, 3, channels, grid, grid))
    components = PrincipalComponents(z_LBDhw[0])
    scale = rounded(np.stack(components.scale))
    shares = [0.0, 0.25, 0.5, 0.75]
    radius = list(range(4))
    numbers: dict[str, Any] = {
        "images": 3,
        "images_sha256": "ab" * 32,
        "image_size": 16,
        "latent_shape": [channels, grid, grid],
        "metrics": {"latent/uniform_off_dc": 0.125, "latent/pca_variance_share": components.variance_share},
        "spectra": {"radius": radius, "power": (random.random((4, 4)) + 0.1).tolist(), "white": 2.0},
        "removal": {"asked": shares, "share": shares, "energy": shares, "psnr": [30.0, 28.0, 24.0, 20.0 + seed]},
    }
    projected = rounded(components.project(z_LBDhw))
    projections = {
        "images": projected, "scale": scale, "colour": [[255, 0, 0], [0, 0, 9], [7, 7, 7]],
        "uniform": projected[1], "structure": projected[2], "structure_scale": scale,
    }  # fmt: skip
    return Analysis(name, numbers, projections, pictures(3, 16))


def cell(analysis: Analysis, kind: str, *index: int) -> np.ndarray:
    """A latent's colours, enlarged as on a page of images of 16 pixels, whose tiles have 96."""
    rgb = colours(analysis.projected(kind)[index], analysis.scale("scale"))
    repeats = 96 // len(rgb)
    return np.rint(rgb * 255).astype(np.uint8).repeat(repeats, 0).repeat(repeats, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_principal_colours(channels: int) -> None:
    z = np.random.default_rng(1).normal(size=(20, channels, 4, 4)) * np.arange(1, channels + 1)[:, None, None]
    components = PrincipalComponents(z)
    rgb = colours(components.project(z[None]), components.scale)
    assert rgb.shape == (1, 20, 4, 4, 3)
    assert rgb.min() == 0.0
    assert rgb.max() == 1.0
    assert (rgb[..., channels:] == 0.5).all()
    # The first component follows the channel with the largest variance.
    red, strongest = rgb[0, ..., 0].ravel(), np.moveaxis(z, 1, -1)[..., -1].ravel()
    assert np.corrcoef(red, strongest)[0, 1] > 0.9
    mirrored = PrincipalComponents(3 - z)
    assert np.allclose(colours(mirrored.project(3 - z), mirrored.scale), 1 - rgb[0]), "a component's sign is settled"
    assert components.variance_share == pytest.approx(1 if channels <= 3 else 0.78, abs=0.05)


def test_latents_that_do_not_vary_are_grey() -> None:
    components = PrincipalComponents(np.full((2, 4, 3, 3), 7.0))
    assert (colours(components.project(np.full((4, 3, 3), 7.0)), components.scale) == 0.5).all()
    assert components.variance_share == 1.0


def test_colours_have_the_scales_ends() -> None:
    scale = Scale(np.array([0.0, -1.0]), np.array([2.0, 1.0]))
    assert colours(np.array([[1.0, -2.0]]), scale).tolist() == [[0.5, 0.0, 0.5]]


def test_what_is_written_is_read(tmp_path: Any) -> None:
    one, storage = analysis("one"), open_storage(str(tmp_path))
    manifest = Manifest(
        stage="analyze", fingerprint="0" * 64, inputs={}, input_contents={}, config={}, files={}, rows=1, metrics={},
        details={}, seconds=0.0, git_sha=None, image_digest=None, created="",
    )  # fmt: skip
    records = {}
    for name, data in files_of(one).items():
        storage.write(f"{manifest.name}/{name}", data)
        records[name] = FileRecord.model_validate(_record(data))
    read = read_analysis(storage, manifest.model_copy(update={"files": records}), "one")
    assert (read.name, read.numbers, read.projections) == (one.name, one.numbers, one.projections)
    assert np.array_equal(read.images_BCHW, one.images_BCHW)
    assert draw_panels([read]) == draw_panels([one]), "the same figures, byte for byte"


def _record(data: bytes) -> dict[str, Any]:
    import hashlib

    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_pages_have_the_cells_of_every_tokenizer() -> None:
    both = [analysis("coarse", 0, grid=4), analysis("fine", 1, grid=8, channels=2)]
    pages = {name: pixels(png) for name, png in draw_panels(both).items()}
    for one in both:
        assert holds(pages["figure1a.png"], cell(one, "uniform", 2))
        assert holds(pages["figure1a.png"], cell(one, "structure", 1))
        assert holds(pages["figure1b.png"], cell(one, "images", 0, 2))
        assert all(holds(pages["figure2.png"], cell(one, "images", level, 1)) for level in range(4))
    for name in ("figure1b.png", "figure2.png"):
        assert holds(pages[name], both[0].images_BCHW[1].transpose(1, 2, 0).repeat(6, 0).repeat(6, 1))
    assert holds(pages["figure1a.png"], np.full((96, 96, 3), [255, 0, 0], np.uint8))


def test_curves_are_drawn_for_each() -> None:
    """Other numbers of one tokenizer are other curves; so is another order, as colours follow it."""
    one, other = analysis("one", 0), analysis("other", 1)
    removal, spectra = other.numbers["removal"], other.numbers["spectra"]
    moved = {
        "removal": {**removal, "psnr": removal["psnr"][::-1]},
        "spectra": {**spectra, "power": spectra["power"][::-1]},
    }
    changed = replace(other, numbers={**other.numbers, **moved})
    drawn = [draw_panels(both) for both in ([one, other], [other, one], [one, changed])]
    for name in ("figure1c.png", "spectrum.png"):
        assert len({figures[name] for figures in drawn}) == 3
    assert len({figures["figure2.png"] for figures in drawn}) == 2, "which does not show these numbers"


def test_many_tokenizers_with_odd_names() -> None:
    names = ["$x_1$", "a" * 80, "", "[b]", *"defgh"]
    drawn = draw_panels([analysis(name, seed) for seed, name in enumerate(names)])
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())


def test_a_tokenizer_whose_latents_do_not_vary_has_figures(recwarn: pytest.WarningsRecorder) -> None:
    flat = analysis()
    spectra = {**flat.numbers["spectra"], "power": np.zeros((4, 4)).tolist(), "white": 0.0}
    assert draw_panels([replace(flat, numbers={**flat.numbers, "spectra": spectra})])["spectrum.png"]
    assert [str(warning.message) for warning in recwarn] == []
