"""floor: what the tokenizer alone takes from real images at the generator's level, which no samples make up for.

The images whose features the reference keeps are encoded, filtered and decoded. Their distance to the reference is the
floor of samples, and their statistics are what samples are compared with to take the tokenizer's part out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import ArtifactWriter, FileRecord, Outcome
from pipeline.data import Rows, choose_rows, read_images, thinned
from pipeline.evaluation import MANIFOLD, Measured
from pipeline.storage import open_storage
from pipeline.workflow import StageContext, Work

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """One task: some of the reference's images."""

    work: Work
    index: int
    images: Rows


@dataclass(frozen=True)
class Comparison:
    """One task: all features by one network."""

    work: Work
    paths: tuple[str, ...]
    network: int  # its place among the config's


def run(context: StageContext) -> Outcome:
    config, own = context.config, context.config.evaluate
    work = context.common("features")
    chosen = choose_rows(context.inputs["prepare"], own.reference_split, own.reference_images)
    units = thinned(chosen, MANIFOLD)
    specs = [Spec(work, index, unit) for index, unit in enumerate(units)]
    records = context.map(reconstruct, specs, [len(unit.rows) for unit in units], unit="images", gpu=True)
    paths, measured = tuple(record["path"] for record in records), Measured()
    comparisons = [Comparison(work, paths, place) for place in range(len(own.networks))]
    for record in context.map(compare, comparisons, [1] * len(comparisons), unit="networks", gpu=True):
        context.writer.add_stored(record["path"], FileRecord.model_validate(record["file"]))
        measured.update(record)
    for note in measured.notes:
        context.say(note)
    images, level = sum(len(unit.rows) for unit in units), config.sit.level
    return context.writer.outcome(
        images,
        measured.metrics,
        intervals=measured.intervals,
        notes=measured.notes,
        level=level,
        networks=list(config.network_names),
    )


def reconstruct(spec: Spec) -> dict[str, str]:
    """Write the features of one task's reconstructions to the work folder."""
    import torch

    from pipeline.evaluation import extract, networks_of, write_features

    work, storage = spec.work, open_storage(spec.work.root)
    images = torch.from_numpy(read_images(storage, work.inputs["prepare"], spec.images, work.config.data)[0])
    made = [decoded(work, batch) for batch in torch.split(images, work.config.evaluate.batch_size)]
    path = f"{work.folder}/made-{spec.index:06d}.npz"
    networks = networks_of(work.config, work.inputs, work.root)
    write_features(storage, path, extract(torch.cat(made), networks, work.config.evaluate))
    return {"path": path}


def decoded(work: Work, images_BCHW: "Tensor") -> "Tensor":
    """uint8 images decoded from S_l of the posterior's mean at the generator's level l, on the CPU."""
    import torch

    from models.metrics import from_uint8, to_uint8
    from pipeline.evaluation import evaluation_device, tensor_cores, tokenizer_autocast
    from pipeline.inference import load_tokenizer

    device, precision = evaluation_device(), work.config.evaluate.precision
    tokenizer, latent_filter = load_tokenizer(open_storage(work.root), work.inputs["train-tokenizer"], device)
    with torch.inference_mode(), tensor_cores(precision), tokenizer_autocast(precision, device):
        z_BDhw = tokenizer.encode(from_uint8(images_BCHW.to(device))).mean_BDhw
        return to_uint8(tokenizer.decode(latent_filter(z_BDhw, work.config.sit.level))).cpu()


def compare(spec: Comparison) -> dict[str, Any]:
    """Write one network's statistics to the artifact; returns its distances to the reference."""
    from pipeline.evaluation import file_of, floor_metrics, gathered, networks_of, read_statistics, to_bytes

    work, storage = spec.work, open_storage(spec.work.root)
    network = networks_of(work.config, work.inputs, work.root)[spec.network]
    writer, name = ArtifactWriter(storage, "floor", work.fingerprint), file_of(network.name)
    writer.add_bytes(to_bytes(gathered(storage, spec.paths, network)), name)
    reference = read_statistics(storage, work.inputs["reference"], network.name)
    measured = floor_metrics(storage, spec.paths, reference, network)
    return {"path": name, "file": writer.files[name].model_dump(), **measured.record()}
