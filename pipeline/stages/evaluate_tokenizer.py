"""evaluate-tokenizer: reconstruction metrics on validation images, for latents of every level, against the originals.

PSNR, SSIM, and LPIPS if its weights are configured, as means over uint8 images; and the Frechet distance between
reconstructions and originals, in the features of the networks in their names: with Inception's that is rFID, beside it
r-sFID and the Inception Score of the reconstructions. Each has its 95% interval over images.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from models.choices import LEVELS
from models.intervals import normal_interval
from pipeline.artifacts import ArtifactWriter, Outcome
from pipeline.config import Config, WeightFile
from pipeline.data import Rows, choose_rows, read_images
from pipeline.evaluation import Measured
from pipeline.storage import open_storage
from pipeline.workflow import StageContext, Work, check_reconstructed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.perceptual import LPIPS

_SHOWN = 8  # images of the figure
_ORIGINAL = "original"  # beside _side(level): of which images a file of features is


@dataclass(frozen=True)
class Spec:
    """One task: some validation images."""

    work: Work
    index: int
    images: Rows


def run(context: StageContext) -> Outcome:
    own, prepare = context.config.evaluate, context.inputs["prepare"]
    work = context.common("features")
    units = choose_rows(prepare, "validation", own.images)
    rows = sum(len(unit.rows) for unit in units)
    check_reconstructed(rows)
    specs = [Spec(work, index, unit) for index, unit in enumerate(units)]
    records = context.map(measure, specs, [len(unit.rows) for unit in units], unit="images", gpu=True)
    comparisons = [
        Comparison(work, len(units), level, network) for network in range(len(own.networks)) for level in range(LEVELS)
    ]
    distances = context.map(compare, comparisons, [1] * len(comparisons), unit="distances", gpu=True)
    context.figure(draw, work, "reconstructions.png", gpu=True)
    measured = Measured(*_means(records))
    for comparison, record in zip(comparisons, distances, strict=True):
        named = {
            kind: {_at_level(name, comparison.level): value for name, value in record[kind].items()}
            for kind in ("metrics", "intervals")
        }
        measured.update({**record, **named})
    for note in measured.notes:
        context.say(note)
    return context.writer.outcome(
        rows,
        measured.metrics,
        intervals=measured.intervals,
        notes=measured.notes,
        images=rows,
        reference="the validation images themselves",
    )


def _at_level(name: str, level: int) -> str:
    return f"{name}_level{level}" if level else name


def _means(records: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """The mean of each measure over images: `reconstruction/psnr` at level 0, `reconstruction/psnr_level1` etc.

    And the intervals of the means.
    """
    rows, means, intervals = sum(record["rows"] for record in records), dict[str, float](), dict[str, Any]()
    for name in records[0]["sums"]:
        total, squares = (np.sum([record[kind][name] for record in records], axis=0) for kind in ("sums", "squares"))
        for level in range(LEVELS):
            key, mean = _at_level(f"reconstruction/{name}", level), float(total[level] / rows)
            variance = max(0.0, float(squares[level]) / rows - mean**2) * rows / (rows - 1)
            means[key], intervals[key] = mean, normal_interval(mean, math.sqrt(variance / rows))
    return means, intervals


def measure(spec: Spec) -> dict[str, Any]:
    """Reconstruct one task's images; returns sums of the measures and of their squares per level, writes features to
    the work folder.
    """
    import torch

    from pipeline.evaluation import evaluation_device, extract, networks_of, write_features

    config, storage, device = spec.work.config, open_storage(spec.work.root), evaluation_device()
    images = torch.from_numpy(read_images(storage, spec.work.inputs["prepare"], spec.images, config.data)[0])
    sums: dict[str, list[float]] = {}
    squares: dict[str, list[float]] = {}
    made: list[list[Tensor]] = [[] for _ in range(LEVELS)]
    for x_BCHW in torch.split(images, config.evaluate.batch_size):
        x_BCHW = x_BCHW.to(device)
        for level, y_BCHW in enumerate(_reconstructions(spec.work, x_BCHW)):
            made[level].append(y_BCHW.cpu())
            for name, values_B in _measures(config, x_BCHW, y_BCHW).items():
                sums.setdefault(name, [0.0] * LEVELS)[level] += float(values_B.sum())
                squares.setdefault(name, [0.0] * LEVELS)[level] += float(values_B.double().square().sum())
    sides = {_ORIGINAL: images, **{_side(level): torch.cat(pixels) for level, pixels in enumerate(made)}}
    networks = networks_of(config, spec.work.inputs, spec.work.root)
    for side, pixels in sides.items():
        write_features(storage, _features_path(spec.work, side, spec.index), extract(pixels, networks, config.evaluate))
    return {"rows": len(images), "sums": sums, "squares": squares}


def _side(level: int) -> str:
    return f"level{level}"


def _features_path(work: Work, side: str, index: int) -> str:
    return f"{work.folder}/{side}-{index:06d}.npz"


def _reconstructions(work: Work, x_BCHW: "Tensor") -> "list[Tensor]":
    """uint8 images decoded from S_l of the posterior's mean, for levels 0 to 3."""
    import torch

    from models.metrics import from_uint8, to_uint8
    from pipeline.evaluation import tensor_cores, tokenizer_autocast
    from pipeline.inference import load_tokenizer

    tokenizer, latent_filter = load_tokenizer(open_storage(work.root), work.inputs["train-tokenizer"], x_BCHW.device)
    precision = work.config.evaluate.precision
    with torch.inference_mode(), tensor_cores(precision), tokenizer_autocast(precision, x_BCHW.device):
        z_BDhw = tokenizer.encode(from_uint8(x_BCHW)).mean_BDhw
        return [to_uint8(tokenizer.decode(latent_filter(z_BDhw, level))) for level in range(LEVELS)]


def _measures(config: Config, x_BCHW: "Tensor", y_BCHW: "Tensor") -> "dict[str, Tensor]":
    """Per-image measures of uint8 images, (B,) each."""
    import torch

    from models.metrics import from_uint8, psnr_B, ssim_B
    from pipeline.evaluation import tensor_cores

    measures = {"psnr": psnr_B(y_BCHW, x_BCHW), "ssim": ssim_B(y_BCHW, x_BCHW)}
    if config.evaluate.lpips is not None:
        with torch.inference_mode(), tensor_cores(config.evaluate.precision):
            lpips = _lpips(config.evaluate.lpips, x_BCHW.device)
            measures["lpips"] = lpips(from_uint8(y_BCHW), from_uint8(x_BCHW))
    return measures


@lru_cache(maxsize=1)
def _lpips(weights: WeightFile, device: "torch.device") -> "LPIPS":
    from models.perceptual import LPIPS
    from pipeline.weights import fetch_weights

    return LPIPS(str(fetch_weights(weights))).to(device)


@dataclass(frozen=True)
class Comparison:
    """The features of all `measure` tasks, at one level, by one network."""

    work: Work
    tasks: int
    level: int
    network: int  # its place among the config's


def compare(spec: Comparison) -> dict[str, Any]:
    """The distances between originals and the level's reconstructions, by key."""
    from pipeline.evaluation import networks_of, reconstruction_metrics

    original, reconstruction = (
        [_features_path(spec.work, side, index) for index in range(spec.tasks)]
        for side in (_ORIGINAL, _side(spec.level))
    )
    network = networks_of(spec.work.config, spec.work.inputs, spec.work.root)[spec.network]
    return reconstruction_metrics(open_storage(spec.work.root), original, reconstruction, network).record()


def draw(work: Work) -> dict[str, Any]:
    """Draw reconstructions.png: validation images and their reconstructions at every level."""
    import torch

    from models.metrics import psnr_B
    from pipeline.evaluation import evaluation_device
    from pipeline.reports import reconstructions

    storage, device = open_storage(work.root), evaluation_device()
    prepare = work.inputs["prepare"]
    units = choose_rows(prepare, "validation", min(_SHOWN, work.config.evaluate.images))
    x_BCHW = np.concatenate([read_images(storage, prepare, unit, work.config.data)[0] for unit in units])
    x = torch.from_numpy(x_BCHW).to(device)
    levels = _reconstructions(work, x)
    psnr = [float(psnr_B(y, x).mean()) for y in levels]
    writer = ArtifactWriter(storage, "evaluate-tokenizer", work.fingerprint)
    figure = reconstructions(x_BCHW, np.stack([y.cpu().numpy() for y in levels]), psnr)
    writer.add_bytes(figure, "reconstructions.png")
    return writer.files["reconstructions.png"].model_dump()
