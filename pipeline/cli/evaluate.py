"""evaluate: any set of images against any other, in this process."""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, Root, Sets, console, root_config
from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError

if TYPE_CHECKING:
    from pipeline.artifacts import Manifest
    from pipeline.evaluation import ImageSet, Network, Reading, Reference
    from pipeline.storage import Storage

app = typer.Typer()

_ARTIFACT = re.compile(r"(sample|prepare|reference)/([0-9a-f]{4,64})(?::(\w+))?")
_CLASSIFIER = re.compile(r"classifier/[0-9a-f]{4,64}")
# Sides to which images are resized, unless it is set.
_SIZES = {"inception": 299, "efficientnet_lite0": 224, "dinov2_vitb14": 224}
_SPLITS = ("train", "validation")
_SET = (
    "sample/FINGERPRINT, prepare/FINGERPRINT:train or :validation, a folder of pictures, a .parquet, an .npz as ADM's, "
    "or models:/NAME@ALIAS"
)


@app.command()
def evaluate(
    images: Annotated[str, typer.Option("--images", metavar="X", help=f"What is measured: {_SET}.")],
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            metavar="Y",
            help="What it is compared with: the same, reference/FINGERPRINT, or ADM's mu, sigma.",
        ),
    ],
    network: Annotated[
        str, typer.Option("--network", help="inception, efficientnet_lite0, dinov2_vitb14, or classifier/FINGERPRINT.")
    ] = "inception",
    size: Annotated[
        int | None, typer.Option("--size", min=8, help="Side in pixels to which pictures are cropped and resized.")
    ] = None,
    as_json: Json = False,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Measure images against others: Frechet distance, KID, precision and recall, with Inception also sFID and IS.

    With a classifier of the root also its accuracy on held-out images, and on these where they have labels.

    Each has its 95% interval over the images that are measured. Pictures take the size of the other side, by the centre
    crop of ADM, or that of --size.
    """
    from rich.console import Console

    from pipeline.console import Display
    from pipeline.evaluation import Reading, compare, read_set
    from pipeline.storage import open_storage

    config = _config(network, set_, root)
    storage = open_storage(config.root)
    with Display(Console(stderr=True)) as display:  # stdout is the report's
        chosen = _network(network, config, storage)
        display.begin("evaluate")
        reading = Reading(chosen, config.evaluate, lambda done: display.progress(done, done, "images"))
        measured_set = _image_set(images, config, storage)
        compared, side = _reference(reference, config, storage, reading, size or measured_set.side)
        read = read_set(measured_set, reading, side)
    if compared.side not in (None, read.side):
        raise ContractError(
            f"{images} has images of {read.side} x {read.side} pixels, and {reference} of {compared.side} x "
            f"{compared.side}",
            "Give --size, to which pictures of both are cropped and resized.",
        )
    measured = compare(read, compared, chosen, measured_set.labels() if chosen.kind == "self" else None)
    report: dict[str, Any] = {
        "images": {"name": images, "count": len(read.features["pool"])},
        "reference": compared.name,
        "network": chosen.name,
        "metrics": measured.metrics,
        "intervals": measured.intervals,
        "notes": measured.notes,
    }
    if as_json:
        print(json.dumps(report, indent=1))  # noqa: T201
        return
    _print(report)


def _print(report: dict[str, Any]) -> None:
    console.print(
        f"{report['images']['name']}, {report['images']['count']:,} images, against {report['reference']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for key, value in report["metrics"].items():
        low, high = report["intervals"][key]
        console.print(f"  {key:<40} {value:.5g} ({low:.4g} to {high:.4g})", highlight=False, soft_wrap=True)
    for note in report["notes"]:
        console.print(f"[yellow]![/] {note}", highlight=False, soft_wrap=True)


# --- what is asked for ---


def _config(network: str, set_: list[str] | None, root: str | None) -> Config:
    """The quickstart's root and evaluation with this network, and the weights that it takes."""
    from pipeline.weights import check_known, resolve_weights

    if network not in _SIZES and not _CLASSIFIER.fullmatch(network):
        raise ConfigError(
            f"--network {network} is unknown", f"Use {', '.join(_SIZES)}, or classifier/FINGERPRINT of the root."
        )
    kind = network if network in _SIZES else "efficientnet_lite0"
    fields = [f"evaluate.network={kind}", f"evaluate.network_size={_SIZES[kind]}"]
    config = resolve_weights(root_config(None, [*fields, *(set_ or [])], root))
    check_known(config)
    return config


def _network(given: str, config: Config, storage: "Storage") -> "Network":
    from pipeline.evaluation import Network
    from pipeline.workflow import find_artifact

    own = config.evaluate
    if given in _SIZES:
        return Network(given, own.network, own.network_size, own.network_weights, storage.root)
    made = find_artifact(storage, given)
    return Network(made.details["network"], "self", own.network_size, None, storage.root, made.model_dump_json())


def _reference(
    given: str, config: Config, storage: "Storage", reading: "Reading", side: int | None
) -> "tuple[Reference, int | None]":
    """What is compared with, and the side of the pixels on both sides, if either side has one."""
    from pipeline.evaluation import of_npz, read_statistics, reference_of, reference_of_moments, reference_of_statistics

    found = _ARTIFACT.fullmatch(given)
    if found and found[1] == "reference":
        made = _artifact(given, storage)
        _check_same_network(made, reading.network)
        own = int(made.config["data.image_size"])
        statistics = read_statistics(storage, made, reading.network.name)
        return reference_of_statistics(f"{made.name} ({made.details['reference']})", statistics, own), side or own
    if given.endswith(".npz"):
        images, moments = of_npz(given)
    else:
        images, moments = _image_set(given, config, storage), {}
    known = reference_of_moments(given, moments, reading.network) if moments else None
    if images is None:
        assert known is not None  # `of_npz` gives one of them
        return known, side
    of_images = reference_of(images, reading, side or images.side)
    return known.with_images(of_images) if known else of_images, side or images.side


def _check_same_network(made: "Manifest", network: "Network") -> None:
    """ContractError if the statistics are not of features that the network gives."""
    from pipeline.artifacts import Manifest

    names = made.details["networks"]
    size = made.config["evaluate.network_size"]
    if network.name not in names:
        option = _classifier_of(made) if names[0].startswith("self-") else names[0]
        raise ContractError(
            f"{made.name} has features of {', '.join(names)}, not of {network.name}", f"Give --network {option}."
        )
    if network.classifier is not None:
        _check_same_classifier(made, Manifest.model_validate_json(network.classifier))
        return
    if size != network.size:
        raise ContractError(
            f"{made.name} has features of images resized to {size} pixels for {network.name}, not to {network.size}",
            f"Give --set evaluate.network_size={size}.",
        )
    _check_same_weights(made, network)


def _check_same_classifier(made: "Manifest", classifier: "Manifest") -> None:
    """ContractError if the statistics are of another classifier: two of the same data have the same name."""
    if made.inputs["classifier"] != classifier.fingerprint:
        known = _classifier_of(made)
        raise ContractError(
            f"{made.name} has features of {known}, not of {classifier.name}", f"Give --network {known}."
        )
    if made.input_contents["classifier"] != classifier.content:
        raise ContractError(
            f"{made.name} has features of {classifier.name} with other weights: it was trained again",
            "Run the preset again, which makes the reference anew.",
        )


def _classifier_of(made: "Manifest") -> str:
    from pipeline.artifacts import artifact_path

    return artifact_path("classifier", made.inputs["classifier"])


def _check_same_weights(made: "Manifest", network: "Network") -> None:
    """ContractError if the statistics are of other weights of a public network; None: those of its package."""
    field = "evaluate.network_weights"
    of_gate = made.config["evaluate.network"] == network.kind
    there: str | None = (made.config[field] or {}).get("sha256") if of_gate else None
    here = network.weights.sha256 if network.weights else None
    if there != here:
        uri = (made.uncounted.get(field) or {}).get("uri") or "URI"
        raise ContractError(
            f"{made.name} has features of {network.name} with {_weights(there)}, not with {_weights(here)}",
            f"Give --set '{field}={{uri: {uri}, sha256: {there}}}'." if there else f"Give --set {field}=null.",
        )


def _weights(sha256: str | None) -> str:
    return f"the weights {sha256[:12]}" if sha256 else "the weights of its package"


def _image_set(given: str, config: Config, storage: "Storage") -> "ImageSet":
    from pipeline.evaluation import of_folder, of_npz, of_parquet, of_samples, of_split

    if given.startswith("models:/"):
        return of_samples(storage, _samples_of_model(given, config, storage))
    if found := _ARTIFACT.fullmatch(given):
        made, split = _artifact(given, storage), found[3]
        if made.stage == "reference":
            raise ConfigError(f"{given} holds features, and no images", "Give it as --reference.")
        if made.stage == "sample":
            return of_samples(storage, made)
        if split not in _SPLITS:
            raise ConfigError(f"{given} names no split", f"Write {made.name}:train or {made.name}:validation.")
        return of_split(storage, made, split)
    if given.endswith(".npz"):
        images, _ = of_npz(given)
        if images is None:
            raise ConfigError(f"{given} has no images, only mu and sigma", "Give it as --reference.")
        return images
    return of_parquet(given) if given.endswith(".parquet") else of_folder(given)


def _artifact(given: str, storage: "Storage") -> "Manifest":
    from pipeline.workflow import find_artifact

    return find_artifact(storage, given.partition(":")[0])


def _samples_of_model(given: str, config: Config, storage: "Storage") -> "Manifest":
    """The samples that a registered version was measured with. ConfigError or ContractError if they cannot be found."""
    from pipeline.artifacts import read_manifest
    from pipeline.tracking import aliased_tags, input_tag, tracking_uri

    name, _, alias = given.removeprefix("models:/").partition("@")
    tags = aliased_tags(tracking_uri(config), name, alias) if alias else None
    if tags is None:
        raise ConfigError(f"{given} is no version of a registered model", "Write models:/NAME@ALIAS, and give --root.")
    evaluated = read_manifest(storage, "evaluate-samples", tags.get(input_tag("evaluate-samples"), ""))
    made = read_manifest(storage, "sample", evaluated.inputs["sample"]) if evaluated else None
    if made is None:
        raise ContractError(
            f"the samples of {given} are not at {storage.root}",
            f"Give another --root, or draw some by `python -m pipeline sample {given} --class ... --npz FILE`.",
        )
    return made
