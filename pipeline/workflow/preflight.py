"""Checks of a run before it starts, and of its images once they are prepared: what a late stage needs is asked early.

Fields and their combinations are checked by `pipeline.config`. Here is what depends on the stages that will run, on the
number of classes and on the prepared images. The stages use the same functions.
"""

import importlib.util
import math
from collections.abc import Collection, Iterator

from models.choices import IMAGENET_CLASSES, TOKENIZER_PACKAGES, TokenizerKind
from models.sizes import filter_bytes, level_sums_bytes
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.workflow.graph import section_of

_RECONSTRUCTED = 2  # images: a covariance needs two
_COMPARED = 4  # images per side: precision and recall use three neighbours
_WITH_TOKENIZER = {"train-tokenizer", "evaluate-tokenizer", "analyze", "encode", "sample", "register"}
_WITH_FILTER = _WITH_TOKENIZER | {"train-sit"}
_LARGE_FILTER = 10**8  # bytes of the matrices of S_l from which they are told
_FIRST_WEIGHTS = 0.05  # share of the first weights in an average from which it is mostly noise


def check_start(config: Config, stages: Collection[str]) -> None:
    """What these stages need of the config. ConfigError or PipelineError, with the field."""
    if _WITH_TOKENIZER & set(stages):
        check_packages(config.tokenizer.kind)
    if "evaluate-tokenizer" in stages:
        check_reconstructed(config.evaluate.images)
    if "convergence" in stages and not config.sit.milestones:
        raise ConfigError("convergence: sit.milestones is empty, so that there is nothing to sample", "Set some steps.")
    if "evaluate-samples" in stages:
        check_compared(config.evaluate.reference_images, config.sample.count)
        if (classifier := config.evaluate.classifier) and config.data.class_count != IMAGENET_CLASSES:
            raise ConfigError(
                f"evaluate.classifier: {classifier} reads the {IMAGENET_CLASSES:,} classes of ImageNet, and the source "
                f"has {config.data.class_count}",
                "Leave it out; evaluate.also=[self] trains a classifier.",
            )
    if "classifier" in stages and config.data.class_count < 2:
        raise _no_own_network("the source has one class")
    if "evaluate-samples" in stages and config.evaluate.class_accuracy and config.data.class_count < 2:
        raise _no_classifier(config, "the source has one class")


def check_packages(kind: TokenizerKind) -> None:
    """ConfigError if a package is missing that this kind of tokenizer needs."""
    for package in TOKENIZER_PACKAGES[kind]:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"a tokenizer of kind {kind} needs the package {package}, which is not installed",
                "Run `pip install '.[baselines]'`.",
            )


def check_images(config: Config, stages: Collection[str], prepare: Manifest) -> None:
    """What these stages need of the prepared images. ConfigError, DataError or PipelineError."""
    rows = {split: sum(file["rows"] for file in files) for split, files in prepare.details["splits"].items()}
    if "evaluate-tokenizer" in stages:
        check_reconstructed(min(config.evaluate.images, rows["validation"]))
    if "evaluate-samples" in stages:
        own = config.evaluate
        there = rows[own.reference_split]
        check_compared(min(own.reference_images or there, there), config.sample.count)
        if own.class_accuracy and _trained_classes(prepare) == 1:
            raise _no_classifier(config, "the training images have one class")
    if "classifier" in stages:
        check_labelled(config, prepare)


def check_labelled(config: Config, prepare: Manifest) -> None:
    """ConfigError if there is nothing to tell apart for the network self."""
    if config.data.class_count < 2 or _trained_classes(prepare) == 1:
        raise _no_own_network("the training images have one class")


def _trained_classes(prepare: Manifest) -> int | None:
    """The classes that have an image for training; None where that is not recorded, as by earlier versions."""
    counts = prepare.details.get("class_counts")
    return sum(count > 0 for count in counts["train"]) if counts else None


def check_reconstructed(images: int) -> None:
    """DataError if there are too few validation images for a Frechet distance."""
    if images < _RECONSTRUCTED:
        raise DataError(
            f"evaluate-tokenizer: a Frechet distance needs {_RECONSTRUCTED} validation images; there are {images}",
            "Raise data.validation_share or evaluate.images.",
        )


def check_compared(real: int | None, samples: int | None = None) -> None:
    """PipelineError if there are too few images for precision and recall; None: a number that is not known yet."""
    if min(count for count in (real, samples, _COMPARED) if count is not None) < _COMPARED:
        found = " and ".join(str(count) for count in (real, samples) if count is not None)
        raise PipelineError(
            f"evaluate-samples needs {_COMPARED} real and generated images; there are {found}",
            "Raise sample.count, or evaluate.reference_images.",
        )


def warnings(config: Config, stages: Collection[str]) -> Iterator[str]:
    """One line for each setting with which these stages run, but hardly as meant."""
    averages: list[tuple[str, str, float, int]] = [
        ("train-tokenizer", "tokenizer.ema_decay", config.tokenizer.ema_decay, config.tokenizer.steps),
        ("train-sit", "sit.ema_decay", config.sit.ema_decay, config.sit.steps),
        *(("train-sit", "sit.ema_decays", decay, config.sit.steps) for decay in config.sit.ema_decays),
    ]
    for stage, field, decay, steps in averages:
        held = 0.0 if section_of(config, stage).start_from else decay**steps
        if stage in stages and held > _FIRST_WEIGHTS:
            yield (
                f"{field} {decay:g} over {steps} steps: the average still holds {held:.0%} of the first, random "
                f"weights. Set it to {_shorter_decay(steps):g}"
            )
    if "train-sit" in stages and config.sit.keep_state and config.sit.decay != "constant":
        yield (
            f"sit.keep_state with sit.decay {config.sit.decay} keeps a state that no training can go on from, as more "
            "steps have other learning rates. Set sit.keep_state=false, or sit.decay=constant"
        )
    shared = sorted(config.cluster.gpu_shares.keys() & set(stages))
    if shared and config.cluster.device == "cpu":
        yield f"cluster.gpu_shares of {', '.join(shared)} share no GPU: cluster.device is cpu"
    matrices, sums = filter_bytes(config.grid), level_sums_bytes(config.grid, config.tokenizer.latent_dim)
    if matrices >= _LARGE_FILTER and _WITH_FILTER & set(stages):
        yield (
            f"the matrices of S_l on a {config.grid} x {config.grid} latent take {matrices / 1e6:.0f} MB in each "
            f"process that filters, and encode's sums for the statistics {sums / 1e9:.1f} GB more; if too much, "
            "raise tokenizer.patch_size or lower data.image_size"
        )
    classes = config.data.classes
    if "sample" in stages and classes is not None and config.sample.count < classes:
        yield (
            f"sample.count {config.sample.count} is less than the number of classes, {classes}: "
            f"{classes - config.sample.count} classes have no sample"
        )


def _shorter_decay(steps: int) -> float:
    """A decay whose average covers about the last tenth of the steps: 1 - 10 / steps, rounded down."""
    forgotten = min(1.0, 10 / steps)
    digit = 10.0 ** math.floor(math.log10(forgotten))
    return 1.0 - math.ceil(forgotten / digit - 1e-9) * digit


def _no_classifier(config: Config, reason: str) -> ConfigError:
    gate = config.register.gate.metric
    other = ", and another register.gate.metric" if gate.startswith("samples/class") else ""
    return ConfigError(
        f"evaluate.class_accuracy needs two classes, and {reason}", f"Set evaluate.class_accuracy=false{other}."
    )


def _no_own_network(reason: str) -> ConfigError:
    return ConfigError(
        f"evaluate: the network self is a classifier, and {reason}",
        "Set evaluate.network=efficientnet_lite0 and evaluate.also=[].",
    )
