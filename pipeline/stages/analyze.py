"""analyze: the paper's Figures 1 and 2 and their numbers, for a tokenizer's latents of validation images.

Latents of images of one colour, whose energy should be in the mean only (1a); principal components of the latents (1b);
the PSNR of reconstructions without the latents' high frequencies (1c); the latents at every level (2); their spectra.
The trainers draw the loss curves. It knows the tokenizer by the interface of `models/tokenizers/base.py` alone.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.choices import LEVELS, EvaluationPrecision
from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, Outcome
from pipeline.config import DataConfig
from pipeline.data import choose_rows, read_images
from pipeline.evaluation import ANALYZED, REMOVALS
from pipeline.storage import Storage, open_storage
from pipeline.workflow import StageContext

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.spectral import LatentFilter
    from models.tokenizers import Autoencoder

_SHOWN = 8
_BATCH = 64
_REMOVED = tuple(step / REMOVALS for step in range(REMOVALS))  # shares of the latents' frequencies
_HALF = _REMOVED.index(0.5)
_UNIFORM = (  # RGB colours of the uniform images
    (0, 0, 0),
    (64, 64, 64),
    (128, 128, 128),
    (192, 192, 192),
    (255, 255, 255),
    (200, 60, 50),
    (60, 150, 80),
    (50, 90, 200),
)


@dataclass(frozen=True)
class Spec:
    """The input of the stage's only task."""

    root: str
    prepare: Manifest
    tokenizer: Manifest
    fingerprint: str
    data: DataConfig
    precision: EvaluationPrecision


def run(context: StageContext) -> Outcome:
    spec = Spec(
        context.storage.root,
        context.inputs["prepare"],
        context.inputs["train-tokenizer"],
        context.fingerprint,
        context.config.data,
        context.config.evaluate.precision,
    )
    rows = sum(len(unit.rows) for unit in choose_rows(spec.prepare, "validation", ANALYZED))
    (record,) = context.map(look, [spec], [rows], unit="images", gpu=True)
    for name, file in record["files"].items():
        context.writer.add_stored(name, FileRecord.model_validate(file))
    for name in record["figures"]:
        context.show(name)
    return context.writer.outcome(rows, record["metrics"])


def look(spec: Spec) -> dict[str, Any]:
    """Encode the images, compute the numbers, draw the figures; writes all to the artifact."""
    from pipeline import reports

    storage = open_storage(spec.root)
    images = _images(storage, spec)
    uniform = np.broadcast_to(np.array(_UNIFORM, np.uint8)[:, :, None, None], (len(_UNIFORM), *images.shape[1:]))
    z_LBDhw, uniform_LBDhw = _latents(spec, images), _latents(spec, uniform)
    removal = _removal(spec, images, z_LBDhw[0])
    components = reports.PrincipalComponents(z_LBDhw[0].numpy())
    metrics = {
        **_metrics(z_LBDhw, uniform_LBDhw),
        **_component_metrics(components, z_LBDhw[0]),
        "latent/psnr_loss_half_removed": removal["psnr"][0] - removal["psnr"][_HALF],
    }
    numbers = {
        "images": len(images),
        "images_sha256": hashlib.sha256(repr(images.shape).encode() + images.tobytes()).hexdigest(),
        "image_size": images.shape[-1],
        "latent_shape": list(z_LBDhw.shape[2:]),
        "metrics": metrics,
        "spectra": _spectra(z_LBDhw),
        "removal": removal,
    }
    shown = np.arange(min(_SHOWN, len(images))) * len(images) // min(_SHOWN, len(images))
    projections = _projections(components, z_LBDhw[:, shown].numpy(), uniform_LBDhw[0].numpy())
    analysis = reports.Analysis("", numbers, projections, images[shown])
    figures = reports.draw_panels([analysis])
    writer = ArtifactWriter(storage, "analyze", spec.fingerprint)
    for name, data in (reports.files_of(analysis) | figures).items():
        writer.add_bytes(data, name)
    files = {name: record.model_dump() for name, record in writer.files.items()}
    return {"metrics": metrics, "figures": list(figures), "files": files}


def _images(storage: Storage, spec: Spec) -> np.ndarray:
    units = choose_rows(spec.prepare, "validation", ANALYZED)
    return np.concatenate([read_images(storage, spec.prepare, unit, spec.data)[0] for unit in units])


def _loaded(spec: Spec) -> "tuple[Autoencoder, LatentFilter, torch.device]":
    from pipeline.evaluation import evaluation_device
    from pipeline.inference import load_tokenizer

    device = evaluation_device()
    return *load_tokenizer(open_storage(spec.root), spec.tokenizer, device), device


def _latents(spec: Spec, images: np.ndarray) -> "Tensor":
    """S_l of the posterior's mean for every level, (L, B, D, h, w) fp32, on the CPU."""
    import torch

    from models.metrics import from_uint8
    from pipeline.evaluation import tensor_cores, tokenizer_autocast

    tokenizer, latent_filter, device = _loaded(spec)
    parts = []
    with torch.inference_mode(), tensor_cores(spec.precision):
        for x_BCHW in torch.split(torch.from_numpy(images.copy()), _BATCH):
            with tokenizer_autocast(spec.precision, device):
                z_BDhw = tokenizer.encode(from_uint8(x_BCHW.to(device))).mean_BDhw
            parts.append(torch.stack([latent_filter(z_BDhw, level) for level in range(LEVELS)]).cpu())
    return torch.cat(parts, dim=1)


def _removal(spec: Spec, images: np.ndarray, z_BDhw: "Tensor") -> dict[str, list[float]]:
    """Figure 1(c): for each share in `_REMOVED`, what is removed of the latents, and the PSNR that is left.

    `asked` and `share`: the share of the frequencies to remove, and of those removed, in whole shells; `energy`: the
    latents' energy without DC in them, as a share; `psnr`: dB, mean over the images.
    """
    from models.spectral import removal_masks, removed_energy

    masks_Shw = removal_masks(z_BDhw.shape[-1], _REMOVED)
    return {
        "asked": list(_REMOVED),
        "share": [float(1 - passes_hw.double().mean()) for passes_hw in masks_Shw],
        "energy": [float(removed_energy(z_BDhw, passes_hw)) for passes_hw in masks_Shw],
        "psnr": [float(_psnr_B(spec, images, z_BDhw, passes_hw).mean()) for passes_hw in masks_Shw],
    }


def _psnr_B(spec: Spec, images: np.ndarray, z_BDhw: "Tensor", passes_hw: "Tensor") -> "Tensor":
    """The PSNR of each image decoded from its masked latent, (B,) fp64 on the CPU."""
    import torch

    from models.metrics import psnr_B, to_uint8
    from models.spectral import masked
    from pipeline.evaluation import tensor_cores, tokenizer_autocast

    tokenizer, _, device = _loaded(spec)
    pairs = zip(torch.split(torch.from_numpy(images), _BATCH), torch.split(z_BDhw, _BATCH), strict=True)
    parts = []
    with torch.inference_mode(), tensor_cores(spec.precision):
        for x_BCHW, part_BDhw in pairs:
            filtered_BDhw = masked(part_BDhw.to(device), passes_hw.to(device))
            with tokenizer_autocast(spec.precision, device):
                y_BCHW = tokenizer.decode(filtered_BDhw)
            parts.append(psnr_B(to_uint8(y_BCHW), x_BCHW.to(device)).cpu())
    return torch.cat(parts)


def _metrics(z_LBDhw: "Tensor", uniform_LBDhw: "Tensor") -> dict[str, float]:
    """The metrics of every level."""
    from models.spectral import high_frequency_share, uniform_artifact

    measures: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "latent/high_frequency_share": (high_frequency_share, z_LBDhw),
        "latent/uniform_off_dc": (uniform_artifact, uniform_LBDhw),
    }
    return {
        name + (f"_level{level}" if level else ""): float(measure(latents_LBDhw[level]))
        for level in range(LEVELS)
        for name, (measure, latents_LBDhw) in measures.items()
    }


def _component_metrics(components: Any, z_BDhw: "Tensor") -> dict[str, float]:
    """What the first three principal components hold: of the variance, and of high frequencies."""
    import torch

    from models.spectral import high_frequency_share

    projected_BChw = torch.from_numpy(np.moveaxis(components.project(z_BDhw.numpy()), -1, 1))
    return {
        "latent/pca_variance_share": components.variance_share,
        "latent/pca_high_frequency_share": float(high_frequency_share(projected_BChw)),
    }


def _spectra(z_LBDhw: "Tensor") -> dict[str, Any]:
    """The radial spectra: `radius` in cycles per side (R,), `power` (L, R), and `white`, that of white noise with the
    variance of level 0 within an image: the mean power of its bins without DC.
    """
    from models.spectral import radial_spectrum

    spectra = [radial_spectrum(z_BDhw) for z_BDhw in z_LBDhw]
    return {
        "radius": spectra[0][0].tolist(),
        "power": [power_R.tolist() for _, power_R in spectra],
        "white": float(z_LBDhw[0].double().flatten(2).var(-1).mean()),
    }


def _projections(components: Any, shown_LBDhw: np.ndarray, uniform_BDhw: np.ndarray) -> dict[str, Any]:
    """Principal components of the images shown, at every level, and of images of one colour; see `reports.Analysis`."""
    from pipeline.reports import PrincipalComponents, rounded

    structure_BDhw = uniform_BDhw - uniform_BDhw.mean((-2, -1), keepdims=True)
    own = PrincipalComponents(structure_BDhw)
    return {
        "images": rounded(components.project(shown_LBDhw)),
        "scale": rounded(np.stack(components.scale)),
        "colour": [list(colour) for colour in _UNIFORM],
        "uniform": rounded(components.project(uniform_BDhw)),
        "structure": rounded(own.project(structure_BDhw)),
        "structure_scale": rounded(np.stack(own.scale)),
    }
