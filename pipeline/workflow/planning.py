"""`plan`: what a run would do and cost, from closed-form sizes; nothing is run."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from models import sizes
from models.choices import EVALUATIONS, LEVELS
from pipeline.artifacts import SHORT, Manifest
from pipeline.cluster import tasks_per_gpu
from pipeline.config import Config
from pipeline.console import duration
from pipeline.data import DIGITS, read_index
from pipeline.evaluation import MANIFOLD
from pipeline.storage import open_storage
from pipeline.weights import missing_weights
from pipeline.workflow.fingerprints import imported_stages
from pipeline.workflow.graph import SECTIONS, section_of
from pipeline.workflow.imported import import_faults
from pipeline.workflow.imported_sit import sit_faults
from pipeline.workflow.longer import beginnings, steps_of
from pipeline.workflow.preflight import warnings
from pipeline.workflow.starts import start_faults
from pipeline.workflow.status import Node

# ImageNet's, assumed until the source has been listed.
_IMAGENET_CLASSES = 1000
_IMAGENET_SPLITS = (1_281_167, 50_000)


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


def _tokenizer(config: Config, made: Manifest | None) -> sizes.TokenizerSizes:
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
    made_before: Mapping[str, int],
) -> dict[str, float]:
    """Hours per stage on one device at its peak times `assumed_mfu`; a training step counts as three forward passes.

    `sit`: GFLOPs of one forward of one latent. The teacher of an aligned SiT adds its blocks of one more pass.
    `made_before`: by trainer, the steps of the shorter training that it goes on from.
    """
    evaluations = EVALUATIONS[config.sample.method](config.sample.steps)
    teacher = config.sit.aligned_blocks[1] / config.sit.shape[1] if config.sit.alignment != "none" else 0.0
    low, high = config.sample.guidance_interval
    guided = evaluations * (1 + (high - low if config.sample.guidance > 1.0 else 0.0))
    seen = {
        stage: (section_of(config, stage).steps - made_before.get(stage, 0)) * section_of(config, stage).batch_size
        for stage in SECTIONS
    }
    gflops = {
        "train-tokenizer": 3 * tokenizer_step_gflops(config) * seen["train-tokenizer"],
        "evaluate-tokenizer": (tokenizer.encode_gflops + LEVELS * tokenizer.decode_gflops)
        * min(config.evaluate.images, validation_images),
        "encode": tokenizer.encode_gflops * images,
        "train-sit": (3 + teacher) * sit * seen["train-sit"],
        "sample": (guided * sit + tokenizer.decode_gflops) * config.sample.count,
        "floor": (tokenizer.encode_gflops + tokenizer.decode_gflops) * _floor_images(config, images, validation_images),
    }
    for imported in imported_stages(config):
        del gflops[imported]
    speed = config.cluster.device_peak_tflops * 1e3 * config.cluster.assumed_mfu
    return {name: work / speed / 3600 for name, work in gflops.items()}


def _floor_images(config: Config, images: int, validation_images: int) -> int:
    """The reference's images that are reconstructed."""
    there = images if config.evaluate.reference_split == "train" else validation_images
    return min(config.evaluate.reference_images or there, there, MANIFOLD)


def make_plan(config: Config, nodes: list[Node]) -> dict[str, Any]:
    """The plan as JSON: stages, and the sizes of both networks.

    `goes_on_from` of a trainer's stage is the shorter training at whose last step it will begin, if there is one.
    """
    made = {node.stage.name: node.manifest for node in nodes}
    images, validation_images = split_sizes(config, made["prepare"])
    tokenizer = _tokenizer(config, made["train-tokenizer"])
    sit = sit_sizes(config, made["train-sit"])
    to_run = [node.stage.name for node in nodes if node.status != "cached"]
    begins = beginnings(config, to_run)
    shorter = {stage: found for stage, (found, _) in begins.items() if found is not None}
    made_before = {stage: steps_of(found) for stage, found in shorter.items()}
    hours = device_hours(config, tokenizer, sit["gflops"], images, validation_images, made_before)
    stages = [
        {
            "name": node.stage.name,
            "status": node.status,
            "fingerprint": node.fingerprint,
            "uri": node.uri,
            "device_hours": hours.get(node.stage.name, 0.0),
            "tasks_per_gpu": tasks_per_gpu(config.cluster, node.stage.name),
            "goes_on_from": _last_step(shorter.get(node.stage.name)),
        }
        for node in nodes
    ]
    return {
        "stages": stages,
        "tokenizer": {"parameters": tokenizer.parameters, "gflops": tokenizer.gflops, "gmacs": tokenizer.gmacs},
        "sit": sit,
        "images": {"train": images, "validation": validation_images},
        "warnings": [
            *missing_weights(config),
            *map(str, import_faults(config, made["train-tokenizer"])),
            *map(str, sit_faults(config, made["train-sit"])),
            *map(str, start_faults(config, to_run)),
            *(reason for _, reason in begins.values() if reason is not None),
            *warnings(config, to_run),
        ],
    }


def _last_step(made: Manifest | None) -> dict[str, Any] | None:
    """A trainer's artifact and its last step."""
    return None if made is None else {"artifact": made.name, "step": steps_of(made)}


def print_plan(console: Console, config: Config, plan: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "status", "fingerprint", "device time", "output"):
        table.add_column(heading, overflow="fold")
    for stage in plan["stages"]:
        hours = stage["device_hours"]
        table.add_row(
            stage["name"],
            stage["status"],
            (stage["fingerprint"] or "-")[:SHORT],
            duration(hours * 3600) if hours else "",
            stage["uri"] or "-",
        )
    console.print(table)
    for name, own in (("tokenizer", config.tokenizer), ("sit", config.sit)):
        size = plan[name]
        macs = f" ({size['gmacs']:.3f} GMACs)" if "gmacs" in size else ""
        trained = "imported" if own.imported is not None else f"{own.steps} steps of {own.batch_size}"
        console.print(
            f"{name:<10} {size['parameters'] / 1e6:.2f}M parameters, {size['gflops']:.3f} GFLOPs{macs} per image, "
            f"{trained}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{'images':<10} {plan['images']['train']} for training, {plan['images']['validation']} held out, "
        f"{config.sample.count} sampled",
        highlight=False,
    )
    console.print(
        f"device time at {config.cluster.device_peak_tflops:g} TFLOP/s x {config.cluster.assumed_mfu:g} MFU; "
        f"source: {_source(config)}",
        highlight=False,
        soft_wrap=True,
    )
    for stage in plan["stages"]:
        if stage["tasks_per_gpu"] > 1 and config.cluster.device != "cpu":
            console.print(
                f"{stage['name']}: {stage['tasks_per_gpu']} tasks on a GPU at a time (cluster.gpu_shares)",
                highlight=False,
            )
        if begin := stage["goes_on_from"]:
            console.print(
                f"{stage['name']}: goes on from {begin['artifact']} at step {begin['step']}",
                highlight=False,
                soft_wrap=True,
            )
    for line in plan["warnings"]:
        console.print(f"[yellow]![/] {line}", highlight=False, soft_wrap=True)


def _source(config: Config) -> str:
    """The source, its number of files, and the age of its listing."""
    if config.data.format == "digits":
        return "scikit-learn's digits, built in"
    if config.data.uri is None:
        return "not configured (data.uri)"
    index = read_index(open_storage(config.root), config.data)
    if index is None:
        return f"{config.data.uri}, not listed yet (`python -m pipeline data index`)"
    return f"{config.data.uri}, {index.files} files, listed {duration(index.age_seconds)} ago"
