"""reference: the real images that samples are compared with, as statistics of their features by every network.

Made once for all that is compared with it: of `evaluate.reference_split`, of all or of some of its images.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import ArtifactWriter, FileRecord, Outcome
from pipeline.data import Rows, choose_rows, read_images
from pipeline.storage import open_storage
from pipeline.workflow import StageContext, Work, check_compared

SPLIT_WORDS = {"train": "training", "validation": "validation"}


@dataclass(frozen=True)
class Spec:
    """One task: some real images."""

    work: Work
    index: int
    images: Rows


@dataclass(frozen=True)
class Gathering:
    """One task: all features by one network."""

    work: Work
    paths: tuple[str, ...]
    network: int  # its place among the config's


def run(context: StageContext) -> Outcome:
    config, own = context.config, context.config.evaluate
    work = context.common("features")
    units = choose_rows(context.inputs["prepare"], own.reference_split, own.reference_images)
    images = sum(len(unit.rows) for unit in units)
    check_compared(images)
    specs = [Spec(work, index, unit) for index, unit in enumerate(units)]
    records = context.map(featurize, specs, [len(unit.rows) for unit in units], unit="images", gpu=True)
    paths = tuple(record["path"] for record in records)
    gatherings = [Gathering(work, paths, place) for place in range(len(own.networks))]
    for record in context.map(gather, gatherings, [1] * len(gatherings), unit="networks", gpu=True):
        context.writer.add_stored(record["path"], FileRecord.model_validate(record["file"]))
    return context.writer.outcome(
        images,
        {"reference/images": float(images)},
        reference=f"{images:,} images of the {SPLIT_WORDS[own.reference_split]} split",
        networks=list(config.network_names),
    )


def featurize(spec: Spec) -> dict[str, str]:
    """Write the features of one task's images to the work folder."""
    import torch

    from pipeline.evaluation import extract, networks_of, write_features

    work, storage = spec.work, open_storage(spec.work.root)
    images, _ = read_images(storage, work.inputs["prepare"], spec.images, work.config.data)
    networks = networks_of(work.config, work.inputs, work.root)
    path = f"{work.folder}/real-{spec.index:06d}.npz"
    write_features(storage, path, extract(torch.from_numpy(images), networks, work.config.evaluate))
    return {"path": path}


def gather(spec: Gathering) -> dict[str, Any]:
    """Write one network's statistics to the artifact."""
    from pipeline.evaluation import file_of, gathered, networks_of, to_bytes

    work, storage = spec.work, open_storage(spec.work.root)
    network = networks_of(work.config, work.inputs, work.root)[spec.network]
    writer = ArtifactWriter(storage, "reference", work.fingerprint)
    name = file_of(network.name)
    writer.add_bytes(to_bytes(gathered(storage, spec.paths, network)), name)
    return {"path": name, "file": writer.files[name].model_dump()}
