"""analyze: its numbers are the models', and its curve holds for any autoencoder, on digits without training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.metrics import psnr_B
from models.spectral import LatentFilter, high_frequency_share, radial_spectrum
from models.tokenizers import DiagonalGaussian
from pipeline import inference
from pipeline.metrics import find_metric
from pipeline.reports.analysis import read_analysis
from pipeline.reports.principal import PrincipalComponents
from pipeline.stages import analyze
from tests.pipeline.stages.test_evaluate_tokenizer import levels, made, shown, validation
from tests.support.contexts import LocalContext, committed

FIGURES = {"figure1a.png", "figure1b.png", "figure1c.png", "figure2.png", "spectrum.png"}
DATA = {"metrics.json", "projections.json", *(f"images/{i}.png" for i in range(8))}


@pytest.fixture(autouse=True)
def fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyze, "ANALYZED", 70)


def written(context: LocalContext, name: str) -> Any:
    return json.loads(context.storage.read(f"{context.writer.folder}/{name}"))


def test_analysis_holds_the_models_numbers(tmp_path: Path) -> None:
    context = made(tmp_path, "analyze")
    outcome = analyze.run(context)
    images = validation(context, 70)
    latents, reconstructions = zip(*levels(context, images), strict=True)
    shares = [
        outcome.metrics["latent/high_frequency_share" + suffix] for suffix in ("", "_level1", "_level2", "_level3")
    ]
    assert np.allclose(shares, [float(high_frequency_share(z)) for z in latents], rtol=1e-4)
    assert sorted(shares, reverse=True) == shares, "S_l takes from the high frequencies, the more the higher l"
    assert 0 <= outcome.metrics["latent/uniform_off_dc_level3"] <= outcome.metrics["latent/uniform_off_dc"] <= 1
    assert [name for name in outcome.metrics if find_metric(name) is None] == []
    assert shown(context) == FIGURES == set(outcome.files) - DATA
    numbers = written(context, "metrics.json")
    assert numbers["metrics"] == outcome.metrics
    assert numbers["latent_shape"] == [4, 8, 8]
    assert numbers["images"] == 70

    spectra, removal = numbers["spectra"], numbers["removal"]
    radius, power = radial_spectrum(latents[0])
    assert np.allclose(spectra["radius"], radius)
    assert np.allclose(spectra["power"][0], power, rtol=1e-4)
    assert np.array(spectra["power"]).shape == (4, len(radius))
    plain = float(psnr_B(reconstructions[0], images).mean())
    assert removal["psnr"][0] == pytest.approx(plain, abs=1e-3), "nothing removed: the plain reconstruction"
    loss = outcome.metrics["latent/psnr_loss_half_removed"]
    assert loss == pytest.approx(plain - removal["psnr"][removal["asked"].index(0.5)], abs=1e-3)


def test_white_noise_is_the_mean_power_without_the_mean(tmp_path: Path) -> None:
    """Over all bins but DC, so that spectra of any scale can be drawn in one figure."""
    context = made(tmp_path, "analyze")
    analyze.run(context)
    z = levels(context, validation(context, 70))[0][0].double()
    power = torch.fft.fft2(z, norm="ortho").abs().square().mean((0, 1))
    expected = float((power.sum() - power[0, 0]) / (power.numel() - 1))
    assert written(context, "metrics.json")["spectra"]["white"] == pytest.approx(expected, rel=1e-4)


def test_components_lose_no_more_than_they_say(tmp_path: Path) -> None:
    """Projections are written for 8 images at every level; level 0 of all images has the share of the variance."""
    context = made(tmp_path, "analyze", "tokenizer.latent_dim=6")
    outcome = analyze.run(context)
    z = levels(context, validation(context, 70))[0][0]
    vectors = z.movedim(1, -1).reshape(-1, 6).double()
    variances = torch.linalg.eigvalsh(torch.cov(vectors.T)).flip(0)
    share = float(variances[:3].sum() / variances.sum())
    assert outcome.metrics["latent/pca_variance_share"] == pytest.approx(share, rel=1e-4)
    assert 0 < outcome.metrics["latent/pca_high_frequency_share"] < 1
    projections = written(context, "projections.json")
    assert np.array(projections["images"]).shape == (4, 8, 8, 8, 3)
    structure = np.array(projections["structure"])
    assert structure.shape == np.array(projections["uniform"]).shape == (8, 8, 8, 3)
    assert np.abs(structure.mean((1, 2))).max() < 1e-4 * np.abs(structure).max(), "the mean of each latent is out of it"


class Waves:
    """An autoencoder of three channels that is no ViT: a cell is the mean colour of its pixels.

    `highest`: the highest |k| that its latents have; None: all.
    """

    grid = 8
    latent_shape = (3, 8, 8)

    def __init__(self, highest: float | None) -> None:
        k = torch.fft.fftfreq(8) * 8
        radius = torch.hypot(k[:, None], k[None, :])
        self.passes = radius <= (math.inf if highest is None else highest + 1e-6)

    def encode(self, x_BCHW: torch.Tensor) -> DiagonalGaussian:
        z = F.avg_pool2d(x_BCHW, x_BCHW.shape[-1] // self.grid).double()
        z = torch.fft.ifft2(self.passes * torch.fft.fft2(z)).real.float()
        return DiagonalGaussian(z, torch.zeros_like(z))

    def decode(self, z_BDhw: torch.Tensor) -> torch.Tensor:
        return F.interpolate(z_BDhw, scale_factor=4.0)


def curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, highest: float | None) -> dict[str, list[float]]:
    network: Any = Waves(highest)
    monkeypatch.setattr(inference, "load_tokenizer", lambda *_: (network, LatentFilter(8)))
    context = made(tmp_path, "analyze")
    analyze.run(context)
    removal: dict[str, list[float]] = written(context, "metrics.json")["removal"]
    return removal


def test_a_latent_without_high_frequencies_has_a_flat_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 64 bins, the five with |k| <= 1 are left by the last share."""
    removal = curve(tmp_path, monkeypatch, highest=1)
    assert removal["asked"][-1] == 0.9
    assert removal["share"][-1] == 1 - 5 / 64
    assert np.ptp(removal["psnr"]) < 1e-3
    assert max(removal["energy"]) < 1e-9


def test_a_latent_of_pixels_loses_with_every_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removal = curve(tmp_path, monkeypatch, highest=None)
    assert removal["share"][0] == removal["energy"][0] == 0
    assert all(share >= asked for share, asked in zip(removal["share"], removal["asked"], strict=True))
    more = np.sign(np.diff(removal["share"]))  # two shares may end in the same shell
    assert more.sum() >= 7
    assert np.array_equal(np.sign(np.diff(removal["psnr"])), -more)
    assert np.array_equal(np.sign(np.diff(removal["energy"])), more)
    assert removal["energy"][-1] < 1


def test_the_images_shown_are_those_of_the_figures(tmp_path: Path) -> None:
    context = made(tmp_path, "analyze")
    analyze.run(context)
    manifest = committed(context, context.writer.outcome(70))
    analysis = read_analysis(context.storage, manifest, "digits")
    images = validation(context, 70).numpy()
    assert np.array_equal(analysis.images_BCHW, images[np.arange(8) * 70 // 8])
    z = levels(context, torch.from_numpy(analysis.images_BCHW))[2][0].numpy()
    components = PrincipalComponents(levels(context, torch.from_numpy(images))[0][0].numpy())
    assert np.allclose(analysis.projected("images")[2], components.project(z), rtol=1e-3, atol=1e-3)
