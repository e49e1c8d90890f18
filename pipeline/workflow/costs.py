"""What stages cost, from closed-form sizes: hours of a device, which `plan` prints. Nothing is run."""

from collections.abc import Mapping
from typing import Any

from models import sizes
from models.choices import EVALUATIONS, LEVELS
from models.feature_sizes import CONVNEXT_SMALL_GFLOPS, efficientnet_gflops, feature_gflops
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.data import DIGITS, read_index
from pipeline.evaluation import ANALYZED, MANIFOLD, REMOVALS
from pipeline.storage import open_storage
from pipeline.workflow.fingerprints import imported_stages
from pipeline.workflow.graph import SECTIONS, section_of

# ImageNet's, assumed until the source has been listed.
_IMAGENET_CLASSES = 1000
_IMAGENET_SPLITS = (1_281_167, 50_000)
# Of what `evaluate.classifier` reads an image with; those of any other of timm's are not known, and not counted.
_CLASSIFIERS = {"efficientnet_lite0": efficientnet_gflops(224, logits=True), "convnext_small": CONVNEXT_SMALL_GFLOPS}


def tokenizer_step_gflops(config: Config, attention: bool = False) -> float:
    """GFLOPs of a training step's forward pass for one image, expected over the regularizer's draws.

    Counted as in the paper (2 x MAC of Linear and Conv); `attention` adds the attention products. The perceptual term
    and the discriminator are not counted.
    """
    encoded, decoded = sizes.expected_passes(
        config.tokenizer.regularizer, config.grid, config.smallest_side, config.smallest_perceptual_side
    )

    def at(side: int) -> sizes.TokenizerSizes:
        network = {**config.tokenizer_network, "image_size": side * config.tokenizer.patch_size}
        return sizes.tokenizer_sizes(config.tokenizer.kind, network, attention)

    return sum(number * at(side).encode_gflops for side, number in encoded.items()) + sum(
        number * at(side).decode_gflops for side, number in decoded.items()
    )


def tokenizer_sizes(config: Config, made: Manifest | None) -> sizes.TokenizerSizes:
    """The tokenizer's sizes: of the imported one if that is there, else of the config."""
    if config.tokenizer.imported is not None and made is not None:
        return sizes.tokenizer_sizes(made.details["kind"], made.details["network"])
    return sizes.tokenizer_sizes(config.tokenizer.kind, config.tokenizer_network)


def sit_gflops(config: Config, attention: bool = False) -> float:
    """GFLOPs of one forward of one latent, counted alike."""
    return sizes.sit_gflops(**_sit_network(config, None), attention=attention)


def _sit_network(config: Config, made: Manifest | None) -> dict[str, Any]:
    """The arguments of SiT: of the imported one if that is there, else of the config.

    With ImageNet's number of classes while the source's is not known.
    """
    if config.sit.imported is not None and made is not None:
        network: dict[str, Any] = made.details["network"]
        return network
    classes = config.data.classes or _IMAGENET_CLASSES
    known = config.data.model_copy(update={"classes": classes})
    return config.model_copy(update={"data": known}).sit_network


def sit_sizes(config: Config, made: Manifest | None = None) -> dict[str, float]:
    """Parameters, and GFLOPs per latent as `sit_gflops`; of the imported SiT if that is there (`made`)."""
    network = _sit_network(config, made)
    return {"parameters": sizes.sit_parameters(**network), "gflops": sizes.sit_gflops(**network)}


def split_sizes(config: Config, prepared: Manifest | None) -> tuple[int, int]:
    """Images in the training and validation splits: as prepared, else estimated from the source's index or ImageNet."""
    if prepared is not None:
        return int(prepared.metrics["data/train_rows"]), int(prepared.metrics["data/validation_rows"])
    index = read_index(open_storage(config.root), config.data)
    if config.data.format == "digits":
        known = DIGITS
    elif config.data.format == "folder" and index is not None and config.data.validation_uri is None:
        known = index.files
    else:
        return _IMAGENET_SPLITS
    held_out = round(known * config.data.validation_share)
    return known - held_out, held_out


def device_hours(
    config: Config,
    tokenizer: sizes.TokenizerSizes,
    sit: float,
    images: int,
    validation_images: int,
    done: Mapping[str, int],
) -> dict[str, float]:
    """Hours per stage on one device at its peak times `assumed_mfu`; a training step counts as three forward passes.

    What runs on CPUs alone is not counted: reading, the classifier `self`, distances, figures. Nor is LPIPS.

    Args:
        config: the run's.
        tokenizer: its sizes.
        sit: GFLOPs of one forward of one latent. The teacher of an aligned SiT adds its blocks of one more pass.
        images: in the training split.
        validation_images: held out.
        done: by trainer, the steps that are behind it: of its checkpoint, or of the training that it goes on from.
    """
    evaluations = EVALUATIONS[config.sample.method](config.sample.steps)
    teacher = config.sit.aligned_blocks[1] / config.sit.shape[1] if config.sit.alignment != "none" else 0.0
    low, high = config.sample.guidance_interval
    guided = evaluations * (1 + (high - low if config.sample.guidance > 1.0 else 0.0))
    seen = {
        stage: (section_of(config, stage).steps - done.get(stage, 0)) * section_of(config, stage).batch_size
        for stage in SECTIONS
    }
    drawn = guided * sit + tokenizer.decode_gflops
    features, reference = _feature_gflops(config), _reference_images(config, images, validation_images)
    reconstructed = tokenizer.encode_gflops + tokenizer.decode_gflops + features
    read = _CLASSIFIERS.get(config.evaluate.classifier or "", 0.0)
    gflops = {
        "train-tokenizer": 3 * tokenizer_step_gflops(config) * seen["train-tokenizer"],
        "evaluate-tokenizer": (tokenizer.encode_gflops + LEVELS * tokenizer.decode_gflops + (1 + LEVELS) * features)
        * min(config.evaluate.images, validation_images),
        "analyze": (tokenizer.encode_gflops + REMOVALS * tokenizer.decode_gflops) * min(ANALYZED, validation_images),
        "encode": tokenizer.encode_gflops * images,
        "train-sit": (3 + teacher) * sit * seen["train-sit"],
        "sample": drawn * config.sample.count,
        "reference": features * reference,
        "floor": reconstructed * min(reference, MANIFOLD),
        "evaluate-samples": (features + read) * config.sample.count,
        "convergence": (drawn + features) * len(config.sit.milestones) * config.convergence.images,
    }
    for imported in imported_stages(config):
        del gflops[imported]
    speed = config.cluster.device_peak_tflops * 1e3 * config.cluster.assumed_mfu
    return {name: work / speed / 3600 for name, work in gflops.items()}


def _feature_gflops(config: Config) -> float:
    """Of one image's features by all networks."""
    size, image_size = config.evaluate.network_size, config.data.image_size
    classes = config.data.classes or _IMAGENET_CLASSES
    return sum(feature_gflops(network, size, image_size, classes) for network in config.evaluate.networks)


def _reference_images(config: Config, images: int, validation_images: int) -> int:
    """The real images that samples are compared with."""
    there = images if config.evaluate.reference_split == "train" else validation_images
    return min(config.evaluate.reference_images or there, there)
