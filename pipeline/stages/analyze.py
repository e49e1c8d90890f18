"""analyze: the paper's Figures 1 and 2 and their metrics, for latents of validation images.

Spectra and PCA of the latents at every level, and the latents of uniform images, whose energy should be in the mean
only. The trainers draw the loss curves.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.choices import LEVELS, EvaluationPrecision
from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, Outcome
from pipeline.config import DataConfig
from pipeline.data import choose_rows, read_images
from pipeline.storage import Storage, open_storage
from pipeline.workflow import StageContext

if TYPE_CHECKING:
    from torch import Tensor

_IMAGES = 256  # maximum number of images analysed
_SHOWN = 8
_BATCH = 64
_FIGURES = ("latents.png", "spectrum.png", "uniform.png")
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
    rows = sum(len(unit.rows) for unit in choose_rows(spec.prepare, "validation", _IMAGES))
    (record,) = context.map(look, [spec], [rows], unit="images", gpu=True)
    for name, file in record["files"].items():
        context.writer.add_stored(name, FileRecord.model_validate(file))
    for name in _FIGURES:
        context.show(name)
    return context.writer.outcome(rows, record["metrics"])


def look(spec: Spec) -> dict[str, Any]:
    """Encode the images, compute the metrics, draw the figures; writes all to the artifact."""
    storage = open_storage(spec.root)
    images = _images(storage, spec)
    uniform = np.broadcast_to(np.array(_UNIFORM, np.uint8)[:, :, None, None], (len(_UNIFORM), *images.shape[1:]))
    z_LBDhw, uniform_LBDhw = _latents(spec, images), _latents(spec, uniform)
    metrics, spectra = _metrics(z_LBDhw, uniform_LBDhw)
    writer = ArtifactWriter(storage, "analyze", spec.fingerprint)
    for name, data in _figures(images, uniform, z_LBDhw.numpy(), uniform_LBDhw.numpy(), spectra).items():
        writer.add_bytes(data, name)
    content = {"images": len(images), "metrics": metrics, "spectra": spectra}
    writer.add_bytes(json.dumps(content, indent=1).encode(), "metrics.json")
    return {"metrics": metrics, "files": {name: record.model_dump() for name, record in writer.files.items()}}


def _images(storage: Storage, spec: Spec) -> np.ndarray:
    units = choose_rows(spec.prepare, "validation", _IMAGES)
    return np.concatenate([read_images(storage, spec.prepare, unit, spec.data)[0] for unit in units])


def _latents(spec: Spec, images: np.ndarray) -> "Tensor":
    """S_l of the posterior's mean for every level, (L, B, D, h, w) fp32, on the CPU."""
    import torch

    from models.metrics import from_uint8
    from pipeline.evaluation import evaluation_device, tensor_cores, tokenizer_autocast
    from pipeline.inference import load_tokenizer

    device = evaluation_device()
    tokenizer, latent_filter = load_tokenizer(open_storage(spec.root), spec.tokenizer, device)
    parts = []
    with torch.inference_mode(), tensor_cores(spec.precision):
        for x_BCHW in torch.split(torch.from_numpy(images.copy()), _BATCH):
            with tokenizer_autocast(spec.precision, device):
                z_BDhw = tokenizer.encode(from_uint8(x_BCHW.to(device))).mean_BDhw
            parts.append(torch.stack([latent_filter(z_BDhw, level) for level in range(LEVELS)]).cpu())
    return torch.cat(parts, dim=1)


def _metrics(z_LBDhw: "Tensor", uniform_LBDhw: "Tensor") -> tuple[dict[str, float], dict[str, list[Any]]]:
    """The metrics, and the radial spectra: `radius` in cycles per side (R,), `power` (L, R)."""
    from models.spectral import high_frequency_share, radial_spectrum, uniform_artifact

    metrics = {}
    for level in range(LEVELS):
        suffix = f"_level{level}" if level else ""
        metrics[f"latent/high_frequency_share{suffix}"] = float(high_frequency_share(z_LBDhw[level]))
        metrics[f"latent/uniform_off_dc{suffix}"] = float(uniform_artifact(uniform_LBDhw[level]))
    spectra = [radial_spectrum(z_BDhw) for z_BDhw in z_LBDhw]
    return metrics, {"radius": spectra[0][0].tolist(), "power": [power.tolist() for _, power in spectra]}


def _figures(
    images: np.ndarray,
    uniform: np.ndarray,
    z_LBDhw: np.ndarray,
    uniform_LBDhw: np.ndarray,
    spectra: dict[str, list[Any]],
) -> dict[str, bytes]:
    """The three figures. One PCA is used for all latents, so that colours are comparable."""
    from pipeline import reports

    colours = reports.PrincipalColours(z_LBDhw[0])
    shown = np.arange(min(_SHOWN, len(images))) * len(images) // min(_SHOWN, len(images))
    return {
        "latents.png": reports.latent_levels(images[shown], colours(z_LBDhw[:, shown])),
        "spectrum.png": reports.spectrum(np.array(spectra["radius"]), np.array(spectra["power"])),
        "uniform.png": reports.uniform_latents(uniform, colours(uniform_LBDhw)),
    }
