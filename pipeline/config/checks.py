"""Consistency checks across config sections; they raise ValueErrors that name the fields. No schema types here."""

import difflib
import re
from collections.abc import Sequence

from models.choices import IMAGENET_CLASSES, LEVELS, Mask, RegularizerKind
from models.sizes import check_filter_size, check_mask, check_matching, scaled_sides
from pipeline import metrics

# With tasks, not workers.
SHARING_STAGES = (
    "evaluate-tokenizer", "analyze", "encode", "sample", "reference", "floor", "evaluate-samples", "convergence",
)  # fmt: skip
_LPIPS_SIDE = 16  # pixels
_OF_SAMPLES = (  # what is measured of samples in every network's features
    "frechet_distance", "frechet_distance_to_reconstructions", "kid", "kid_to_reconstructions", "precision", "recall",
)  # fmt: skip
_SMALLEST_SHARE = 0.01
_LARGEST_DIVIDED = 1 << 16  # of what all divisors are looked for


def check_workers(most: int, fewest: int, parts: int, batch_sizes: dict[str, int]) -> None:
    """ValueError if a global batch is not divisible by `parts` for every possible number of workers."""
    if fewest > most:
        raise ValueError(f"cluster.min_workers {fewest} is more than cluster.workers {most}")
    for name, batch in batch_sizes.items():
        for workers in range(fewest, most + 1):
            if batch % workers:
                raise ValueError(
                    f"cluster.workers: {name} {batch} is not divisible by {workers} workers, but by "
                    f"{_divisors(batch, workers)}"
                )
            if batch % (workers * parts):
                share = batch // workers
                raise ValueError(
                    f"cluster.accumulate: {name} {batch} is not divisible by {_counted(workers, 'worker')} x {parts} "
                    f"parts; a worker's {share} can be cut into {_divisors(share, parts)}"
                )


def check_gpu_shares(shares: dict[str, float]) -> dict[str, float]:
    """The shares; ValueError for a stage whose work cannot share a GPU, or a share that is none."""
    for stage, share in shares.items():
        if stage.startswith("train-"):
            raise ValueError(f"{stage}: each worker of a training has a GPU, or a MIG slice, to itself")
        if stage not in SHARING_STAGES:
            raise ValueError(f"{stage}: stages whose tasks can share a GPU are {', '.join(SHARING_STAGES)}")
        if not _SMALLEST_SHARE <= share <= 1.0:
            raise ValueError(f"{stage}: a share of a GPU is from {_SMALLEST_SHARE} to 1, not {share:g}")
    return shares


def check_patch(grid: int, patch: int) -> None:
    """ValueError if SiT's patch does not divide the latent."""
    if grid % patch:
        raise ValueError(
            f"sit.patch_size {patch} does not divide the {grid} x {grid} latent of the tokenizer; "
            f"{_divisors(grid, patch)} does"
        )


def check_factor(size: int, factor: int) -> None:
    """ValueError if the tokenizer's factor does not divide the image."""
    if size % factor:
        raise ValueError(
            f"tokenizer.patch_size {factor} does not divide data.image_size {size}; {_divisors(size, factor)} does, "
            f"or images of {factor * max(1, round(size / factor))} pixels"
        )


def _divisors(whole: int, near: int) -> str:
    """The divisors next to a number that is none, in words."""
    if whole > _LARGEST_DIVIDED:
        return f"a divisor of {whole}"
    all_of_them = [number for number in range(1, whole + 1) if whole % number == 0]
    below = [number for number in all_of_them if number < near][-1:]
    above = [number for number in all_of_them if number > near][:1]
    return " or ".join(map(str, below + above))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def check_masks(grid: int, mask: Mask, keep: float) -> None:
    """ValueError if a level's mask in `models.spectral` would be empty, or its matrices too large."""
    try:
        check_filter_size(grid)
    except ValueError as error:
        raise ValueError(f"tokenizer.patch_size: {error}; raise it, or lower data.image_size") from error
    try:
        check_mask(grid, mask, keep)
    except ValueError as error:
        raise ValueError(
            f"tokenizer.keep and tokenizer.mask: {error}; lower tokenizer.patch_size, raise keep, or use mask gain"
        ) from error


def check_regularizer(kind: RegularizerKind, grid: int, smallest: int, smallest_perceptual: int) -> None:
    """ValueError if a regularizer cannot act on the latent's grid (`models.regularizers`).

    Args:
        kind: the regularizer.
        grid: side of the latent.
        smallest: side in latent cells of the smallest image that all losses and D accept.
        smallest_perceptual: the same, of the perceptual term alone.
    """
    if kind == "equivariance" and max(smallest, -(-grid // 4)) >= grid:
        raise ValueError(
            f"tokenizer.regularizer equivariance needs sides smaller than the {grid} x {grid} latent, of {smallest} "
            "cells at least for D and LPIPS; lower tokenizer.patch_size or tokenizer.discriminator_layers"
        )
    if kind == "scale" and not scaled_sides(grid, smallest_perceptual):
        more = f", {smallest_perceptual} at least for LPIPS" if smallest_perceptual > 1 else ""
        raise ValueError(
            f"tokenizer.regularizer scale needs a half or a quarter of the {grid} x {grid} latent in whole cells{more}"
            "; change tokenizer.patch_size or data.image_size"
        )
    if kind == "matching":
        try:
            check_matching(grid)
        except ValueError as error:
            raise ValueError(
                f"tokenizer.regularizer matching: {error}; choose tokenizer.patch_size or data.image_size so that "
                "their ratio is a multiple of 8"
            ) from error


def perceptual_cells(lpips: bool, patch_size: int) -> int:
    """Side in latent cells of the smallest image that the perceptual term takes: LPIPS's, if it is there."""
    return -(-_LPIPS_SIDE // patch_size) if lpips else 1


def check_lpips(name: str, image_size: int) -> None:
    """ValueError if images are too small for LPIPS, the field `name`, whose VGG-16 halves them four times."""
    if image_size < _LPIPS_SIDE:
        raise ValueError(f"{name} needs images of {_LPIPS_SIDE} pixels; data.image_size is {image_size}")


def check_own_network(name: str | None, classes: int | None) -> None:
    """ValueError if the network `self`, a classifier of the data's own classes, cannot be trained or named."""
    if name is None:
        raise ValueError("evaluate: the network self is named after its data; set data.name, such as cifar10")
    if classes == 1:
        raise ValueError(
            "evaluate: the network self is a classifier, and data.classes is 1; take efficientnet_lite0 or inception"
        )


def check_imagenet_classes(classifier: str, classes: int | None) -> None:
    """ValueError if the data's classes are not those that a classifier of ImageNet reads; None is not known yet."""
    if classes not in (None, IMAGENET_CLASSES):
        raise ValueError(
            f"evaluate.classifier: {classifier} reads the {IMAGENET_CLASSES:,} classes of ImageNet, and data.classes "
            f"is {classes}; of other data evaluate.also=[self] trains a classifier"
        )


def judging_metrics(
    networks: Sequence[str], class_accuracy: bool, lpips: bool, classifier: str | None = None
) -> set[str]:
    """The keys that both evaluation stages measure with these settings: what a gate can compare.

    `networks`: their names in keys.
    """
    levels = ["", *(f"_level{level}" for level in range(1, LEVELS))]
    measures = ["psnr", "ssim", *(["lpips"] if lpips else [])]
    keys = set[str]()
    for network in networks:
        of_inception = network == "inception"
        measures += ["rfid", "sfid", "inception_score"] if of_inception else [f"frechet_distance/{network}"]
        keys |= {f"samples/{measure}/{network}" for measure in _OF_SAMPLES}
        keys |= {"samples/sfid", "samples/inception_score"} if of_inception else set()
        keys |= {f"samples/class_accuracy/{network}"} if network.startswith("self-") else set()
    keys |= {f"reconstruction/{measure}{level}" for measure in measures for level in levels}
    keys |= {f"samples/class_accuracy/{classifier}"} if classifier is not None else set()
    return keys | ({"samples/class_accuracy", "samples/classifier_accuracy"} if class_accuracy else set())


def floor_keys(networks: Sequence[str]) -> set[str]:
    """The keys that the stage `floor` measures in the features of these networks."""
    keys = {f"floor/{measure}/{network}" for measure in ("frechet_distance", "kid") for network in networks}
    return keys | ({"floor/sfid"} if "inception" in networks else set())


def check_gate(
    gate: str, networks: Sequence[str], class_accuracy: bool, lpips: bool, classifier: str | None = None
) -> None:
    """ValueError if the evaluation does not measure the gate's metric with this config."""
    measured = judging_metrics(networks, class_accuracy, lpips, classifier)
    if metrics.find_metric(gate) is None:
        close = difflib.get_close_matches(gate, measured, n=1)
        raise ValueError(
            f"register.gate.metric: no stage measures '{gate}'" + (f"; did you mean '{close[0]}'?" if close else "")
        )
    if gate.startswith("samples/frechet_distance/") and gate.rpartition("/")[2] not in networks:
        raise ValueError(f"register.gate.metric: {gate} is not measured with evaluate.network {networks[0]}")
    if gate.startswith("samples/class") and gate not in measured:
        raise ValueError(f"register.gate.metric: {gate} is not measured with evaluate.class_accuracy off")
    if gate.startswith("reconstruction/lpips") and not lpips:
        raise ValueError(f"register.gate.metric: {gate} is not measured without evaluate.lpips")
    if gate not in measured:
        raise ValueError(
            f"register.gate.metric: {gate} is not among what evaluate.network {networks[0]} measures: "
            f"{', '.join(sorted(measured))}"
        )


def check_tracking_uri(name: str, uri: str) -> None:
    """ValueError if `uri`, the value of `name`, is no address of MLflow; it names the one that may have been meant."""
    if "@" in (uri.partition("://")[2] or uri).partition("/")[0]:
        raise ValueError(  # without its text: the config is printed, sent to jobs and stored
            f"{name} contains a user or password; use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    if found := re.fullmatch(r"(https?://[^/\s?#][^\s?#]*)[?#]\S*", uri):
        raise ValueError(
            f"{name} {found[1]} is followed by ? or #, as that of a page of MLflow; write {found[1].rstrip('/')}"
        )
    if re.fullmatch(r"https?://[^/\s]\S*|sqlite:///\S.*", uri):
        return
    if re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?(/\S*)?", uri) and not uri.startswith("."):
        raise ValueError(f"{name} {uri} has no scheme; write http://{uri}")
    raise ValueError(f"{name} {uri!r} is not an address of MLflow; write http(s)://HOST:PORT or sqlite:///PATH")


def model_name(name: str) -> str:
    """The name. ValueError if MLflow's registry would refuse it, or if its pages could not show it."""
    made_of = re.fullmatch(r"[A-Za-z0-9_. -]{1,256}", name) and re.search(r"[A-Za-z0-9]", name)
    if not made_of or name != name.strip() or name.startswith(".."):
        raise ValueError(
            f"{name!r} cannot name a model in MLflow's registry: use at most 256 letters, digits and _ . - or spaces "
            "between them, with one letter or digit at least, and not two dots at the start"
        )
    return name
