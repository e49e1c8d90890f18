"""The catalogue of metrics: every metric of a stage, its unit, whether higher or lower is better, where it is shown.

A key may end with a level (`reconstruction/psnr_level2`) or with the network whose features it uses
(`samples/frechet_distance/inception`); the catalogue lists it without. Console, report, gate and gauges use it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

_LEVEL = re.compile(r"^(.*)_level(\d)$")
_COUNTS = ("images", "latents", "steps")  # units of integers


@dataclass(frozen=True)
class Metric:
    """A metric's meaning, and where it is shown."""

    key: str
    meaning: str
    unit: str = ""  # a value in % is stored in [0, 1]
    better: Literal["higher", "lower", ""] = ""
    headline: str = ""  # its title at the top of a report; empty: not shown there
    on_line: bool = False  # in the last line of its stage
    beside_bar: bool = False  # in the progress line while its stage runs
    gauge: bool = False  # exported for Prometheus, by the last part of its key


def _of_trainer(name: str) -> tuple[Metric, ...]:
    """The metrics that both trainers report of their steps, with the trainer's name as prefix."""
    return (
        Metric(f"{name}/loss", "training loss, mean since the last line", on_line=True, beside_bar=True, gauge=True),
        Metric(f"{name}/skipped", "steps with a non-finite gradient, in total", "steps", gauge=True),
        Metric(f"{name}/images_per_second", "examples of the global batch per second", better="higher", gauge=True),
        Metric(f"{name}/step_seconds", "time per step", "s", "lower"),
        Metric(f"{name}/data_wait_share", "share of time in which training waited for data", "%", "lower", gauge=True),
        Metric(f"{name}/mfu", "model FLOP/s over the measured peak of the devices", "%", "higher", gauge=True),
    )


METRICS: tuple[Metric, ...] = (
    Metric("size/tokenizer_gflops", "the tokenizer's for one image, 2 for a multiply-add, in closed form", "", "lower"),
    Metric("size/tokenizer_parameters", "the tokenizer's, in closed form"),
    Metric("size/sit_parameters", "the generator's, in closed form"),
    Metric("data/rows", "readable images of both splits", "images", on_line=True),
    Metric("data/train_rows", "images of the training split", "images"),
    Metric("data/validation_rows", "images of the validation split", "images"),
    Metric("data/quarantined", "unreadable images that were excluded", "images", "lower", on_line=True),
    *_of_trainer("tokenizer"),
    Metric("tokenizer/mse", "pixel error of the reconstruction against G_l(x)", beside_bar=True),
    Metric("tokenizer/kl", "KL divergence of the posterior, summed over a latent"),
    Metric("tokenizer/l1", "mean absolute difference of images in [0, 1]"),
    Metric("tokenizer/perceptual", "distance in the feature spaces of frozen networks"),
    Metric("tokenizer/adversarial", "minus the discriminator's mean logit of reconstructions", beside_bar=True),
    Metric("tokenizer/scale", "distance d of Eq. 2 between the scaled latent's reconstruction and the scaled image"),
    Metric("tokenizer/spectrum", "KL divergence of the latent's spectrum from the image's, flattened", "nats"),
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
        "share of the energy without DC at |k| above half its maximum",
        "%",
        "lower",
        headline="high frequencies",
        on_line=True,
    ),
    Metric("latent/uniform_off_dc", "share of the energy without DC, in latents of images of one colour", "%", "lower"),
    Metric(
        "latent/psnr_loss_half_removed",
        "PSNR lost without the half of the latents' frequencies with the largest |k|",
        "dB",
        "lower",
    ),
    Metric(
        "latent/pca_variance_share", "share of the latents' variance in the three components that figures show", "%"
    ),
    Metric("latent/pca_high_frequency_share", "high_frequency_share of these three components", "%", "lower"),
    Metric("latents/rows", "encoded images of the training split", "latents", on_line=True),
    Metric("latents/quarantined", "images that could not be decoded", "images", "lower"),
    Metric("latents/canary_psnr", "decoded stored latents against their images", "dB", "higher"),
    *_of_trainer("sit"),
    Metric("sit/diffusion", "diffusion loss, mean over times"),
    *(Metric(f"sit/diffusion_t{i}", f"diffusion loss, t from {i / 4:g} to {(i + 1) / 4:g}") for i in range(4)),
    Metric("sit/alignment", "weighted distance of the student's features from the teacher's", beside_bar=True),
    Metric("samples/count", "generated images", "images", on_line=True),
    Metric(
        "samples/class_accuracy",
        "samples that a classifier assigns to their requested class",
        "%",
        "higher",
        headline="class accuracy of samples",
        on_line=True,
    ),
    Metric("samples/classifier_accuracy", "accuracy of that classifier on held-out real images", "%", "higher"),
    Metric(
        "samples/frechet_distance",
        "samples against the reference of real images, in this network's features",
        better="lower",
        headline="Frechet distance",
        on_line=True,
    ),
    Metric(
        "samples/frechet_distance_to_reconstructions",
        "samples against reconstructions of real images at the generator's level: without what the tokenizer loses",
        better="lower",
    ),
    Metric(
        "samples/kid",
        "Kernel Inception Distance, unbiased, of samples to the reference: the one to read with few samples",
        better="lower",
        on_line=True,
    ),
    Metric(
        "samples/kid_to_reconstructions",
        "the same to reconstructions of real images at the generator's level: without what the tokenizer loses",
        better="lower",
    ),
    Metric(
        "floor/frechet_distance",
        "reconstructions of real images at the generator's level against the reference: no samples come below",
        better="lower",
        on_line=True,
    ),
    Metric("floor/kid", "Kernel Inception Distance, unbiased, of the same", better="lower", on_line=True),
    Metric("floor/sfid", "the same Frechet distance in Inception's spatial features", better="lower"),
    Metric("reference/images", "real images that samples are compared with", "images", on_line=True),
    Metric("classifier/accuracy", "of the network self, on held-out real images", "%", "higher", on_line=True),
    Metric(
        "convergence/frechet_distance",
        "samples of the last milestone against the reference of real images, in this network's features",
        better="lower",
        on_line=True,
    ),
    Metric("samples/sfid", "samples against the reference, in Inception's spatial features", better="lower"),
    Metric("samples/inception_score", "Inception Score of the samples", better="higher"),
    Metric("samples/precision", "samples inside the manifold of the reference's 10,000 images", "%", "higher"),
    Metric("samples/recall", "these images inside the samples' manifold", "%", "higher"),
    Metric(
        "reconstruction/rfid",
        "Frechet distance to the originals, in Inception's features",
        better="lower",
        headline="rFID",
        on_line=True,
    ),
    Metric(
        "reconstruction/sfid",
        "reconstructions against their originals, in Inception's spatial features",
        better="lower",
    ),
    Metric("reconstruction/inception_score", "Inception Score of the reconstructions", better="higher"),
    Metric(
        "reconstruction/frechet_distance",
        "reconstructions against their originals, in this network's features",
        better="lower",
        on_line=True,
    ),
)
_BY_KEY = {metric.key: metric for metric in METRICS}


def find_metric(key: str) -> Metric | None:
    """The metric of a key, which may end with a level or network; None if unknown."""
    base = level_of(key)[0]
    return _BY_KEY.get(key) or _BY_KEY.get(base) or _BY_KEY.get(base.rpartition("/")[0])


def level_of(key: str) -> tuple[str, int]:
    """The key without its level, and the level or 0: `reconstruction/psnr` and 2 of `reconstruction/psnr_level2`."""
    found = _LEVEL.match(key)
    return (found[1], int(found[2])) if found else (key, 0)


def value_text(key: str, value: float) -> str:
    """The value with its unit: four significant digits, all of a count."""
    metric = find_metric(key)
    unit = metric.unit if metric else ""
    if unit == "%":
        return f"{100 * value:.3g} %"
    number = f"{value:,.0f}" if unit in _COUNTS else f"{value:.4g}"
    return f"{number} {unit}".strip()


def interval_text(interval: tuple[float, float] | None, key: str = "") -> str:
    """A metric's 95% interval, to stand behind its value: ` (470 to 492)`; empty if it has none."""
    if interval is None:
        return ""
    low, high = (value_text(key, end) for end in interval)
    return f" ({low.removesuffix(' %').removesuffix(' dB')} to {high})"


def on_line(measured: dict[str, float], intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    """The metrics in a stage's last line: names without the first part of the key, values with five digits."""
    return [
        f"{key.partition('/')[2]} {measured[key]:.5g}{_short(intervals.get(key))}"
        for metric in METRICS
        if metric.on_line
        for key in _of(metric, measured)
    ]


def _short(interval: tuple[float, float] | None) -> str:
    return f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval else ""


def headlines(measured: dict[str, float]) -> list[tuple[str, str, Metric]]:
    """(title, key, metric) of those measured metrics that are shown at the top of a report."""
    return [(metric.headline, key, metric) for metric in METRICS if metric.headline for key in _of(metric, measured)]


def _of(metric: Metric, measured: Iterable[str]) -> list[str]:
    """The measured keys of a metric: its own, and one per network, of level 0 unless the metric is of another."""
    return [key for key in measured if metric.key in (key, key.rpartition("/")[0] if not level_of(key)[1] else "")]
