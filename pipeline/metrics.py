"""The catalogue of metrics: every number that a stage leaves, its unit, which way is better, and where it is shown.

A key may end with a level (`reconstruction/psnr_level2`) or with the network whose features it takes
(`samples/frechet_distance/inception`); the catalogue has it without. Screen, report, gate and gauges all read it here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_LEVEL = re.compile(r"^(.*)_level(\d)$")
_COUNTS = ("images", "latents", "steps")  # units of whole numbers


@dataclass(frozen=True)
class Metric:
    """What a number means, and where it is shown."""

    key: str
    meaning: str
    unit: str = ""  # a share in % is kept in [0, 1]
    better: Literal["higher", "lower", ""] = ""
    headline: str = ""  # the words above it at the top of a report; none: not there
    on_line: bool = False  # on the line that a stage ends with
    beside_bar: bool = False  # while its stage runs
    gauge: bool = False  # exported for Prometheus, by the last part of its key


def _of_trainer(name: str) -> tuple[Metric, ...]:
    """What both trainers tell of their steps, under the name of each."""
    return (
        Metric(f"{name}/loss", "training loss, mean since the line before", on_line=True, beside_bar=True, gauge=True),
        Metric(f"{name}/skipped", "steps without a finite gradient, from the first", "steps", "lower", gauge=True),
        Metric(f"{name}/images_per_second", "examples of the global batch a second", better="higher", gauge=True),
        Metric(f"{name}/step_seconds", "time of a step", "s", "lower"),
        Metric(f"{name}/data_wait_share", "time in which training waited for data", "%", "lower", gauge=True),
        Metric(f"{name}/mfu", "model FLOP/s over the measured peak of the devices", "%", "higher", gauge=True),
    )


METRICS: tuple[Metric, ...] = (
    Metric("data/rows", "readable images of both splits", "images", on_line=True),
    Metric("data/train_rows", "images of the training split", "images"),
    Metric("data/validation_rows", "images of the validation split", "images"),
    Metric("data/quarantined", "unreadable images that were left out", "images", "lower", on_line=True),
    *_of_trainer("tokenizer"),
    Metric("tokenizer/mse", "pixel error of the reconstruction against G_l(x)", beside_bar=True),
    Metric("tokenizer/kl", "KL of the posterior, summed over a latent"),
    Metric("tokenizer/perceptual", "distance in the features of frozen networks"),
    Metric("tokenizer/adversarial", "minus the discriminator's mean logit of reconstructions", beside_bar=True),
    Metric("tokenizer/discriminator", "the discriminator's hinge loss"),
    Metric(
        "reconstruction/psnr",
        "mean over validation images, uint8, range 255",
        "dB",
        "higher",
        headline="reconstruction, level 0",
        on_line=True,
    ),
    Metric(
        "reconstruction/psnr_level2",
        "mean over validation images, uint8, range 255",
        "dB",
        "higher",
        headline="reconstruction, level 2",
        on_line=True,
    ),
    Metric("reconstruction/ssim", "mean over validation images, uint8, range 255", better="higher"),
    Metric("reconstruction/lpips", "LPIPS (VGG), mean over validation images", better="lower"),
    Metric(
        "latent/high_frequency_share",
        "energy off DC that lies above half the largest |k|",
        "%",
        "lower",
        headline="high frequencies",
        on_line=True,
    ),
    Metric("latent/uniform_off_dc", "energy off DC in latents of images of one colour", "%", "lower"),
    Metric("latents/rows", "encoded images of the training split", "latents", on_line=True),
    Metric("latents/quarantined", "images that could not be decoded", "images", "lower"),
    Metric("latents/canary_psnr", "stored latents, decoded again, to their images", "dB", "higher"),
    *_of_trainer("sit"),
    Metric("sit/diffusion", "diffusion loss, mean over times"),
    *(Metric(f"sit/diffusion_t{i}", f"diffusion loss, t from {i / 4:g} to {(i + 1) / 4:g}") for i in range(4)),
    Metric("sit/alignment", "weighted distance of the student's features to the teacher's", beside_bar=True),
    Metric("samples/count", "generated images", "images", on_line=True),
    Metric(
        "samples/class_accuracy",
        "samples that a classifier reads as the class asked for",
        "%",
        "higher",
        headline="samples read as asked",
        on_line=True,
    ),
    Metric("samples/classifier_accuracy", "that classifier on held-out real images", "%", "higher"),
    Metric(
        "samples/frechet_distance",
        "samples to the training split, this network's features",
        better="lower",
        headline="Frechet distance",
        on_line=True,
    ),
    Metric("samples/sfid", "as before, on Inception's spatial features", better="lower"),
    Metric("samples/inception_score", "Inception Score of the samples", better="higher"),
    Metric("samples/precision", "samples inside the real images' manifold", "%", "higher"),
    Metric("samples/recall", "real images inside the samples' manifold", "%", "higher"),
    Metric(
        "reconstruction/rfid",
        "Frechet distance to the originals, Inception's features",
        better="lower",
        headline="rFID",
        on_line=True,
    ),
    Metric(
        "reconstruction/frechet_distance",
        "reconstructions to their originals, this network's features",
        better="lower",
        on_line=True,
    ),
)
_BY_KEY = {metric.key: metric for metric in METRICS}


def find_metric(key: str) -> Metric | None:
    """The metric of a key, whatever level or network the key ends with."""
    base = level_of(key)[0]
    return _BY_KEY.get(key) or _BY_KEY.get(base) or _BY_KEY.get(base.rpartition("/")[0])


def level_of(key: str) -> tuple[str, int]:
    """`reconstruction/psnr_level2` as (`reconstruction/psnr`, 2); a key without a level is at 0."""
    found = _LEVEL.match(key)
    return (found[1], int(found[2])) if found else (key, 0)


def value_text(key: str, value: float) -> str:
    """The number with its unit: four digits, or all of a count."""
    metric = find_metric(key)
    unit = metric.unit if metric else ""
    if unit == "%":
        return f"{100 * value:.3g} %"
    number = f"{value:,.0f}" if unit in _COUNTS else f"{value:.4g}"
    return f"{number} {unit}".strip()


def on_line(measured: dict[str, float]) -> list[str]:
    """What a stage's last line shows of its metrics: names without the stage's part, and five digits."""
    return [
        f"{key.partition('/')[2]} {measured[key]:.5g}"
        for metric in METRICS
        if metric.on_line
        for key in _of(metric, measured)
    ]


def headlines(measured: dict[str, float]) -> list[tuple[str, str, Metric]]:
    """(words, key, metric) of the numbers for a report's top, of those that were measured."""
    return [(metric.headline, key, metric) for metric in METRICS if metric.headline for key in _of(metric, measured)]


def _of(metric: Metric, measured: Iterable[str]) -> list[str]:
    """The keys of a metric among those measured: itself, and one a network."""
    return [key for key in measured if key == metric.key or key.rpartition("/")[0] == metric.key]
