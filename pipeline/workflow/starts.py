"""Warm starts: which artifact a `start_from` names, whether a training can start from it, and what trainings have."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipeline.artifacts import SHORT, Manifest, read_manifest, work_path
from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError, PipelineError
from pipeline.inference import sit_details
from pipeline.storage import Storage, open_storage
from pipeline.tracking import aliased_tags, input_tag, tracking_uri
from pipeline.workflow.fingerprints import imported_stages, stage_fingerprints
from pipeline.workflow.graph import SECTIONS, section_of
from pipeline.workflow.longer import shorter_training
from pipeline.workflow.work_folder import checkpoint_step

_DIGITS = 64  # of a whole fingerprint
_START = "start.json"  # in the work folder of a training


def with_whole_starts(config: Config) -> Config:
    """The config with the whole fingerprint of each artifact that it starts from.

    ConfigError if digits are those of no artifact or of several, or if the alias has none; the registry's errors.
    """
    changed, imported = {}, imported_stages(config)
    for stage, section in SECTIONS.items():
        own = section_of(config, stage)
        if stage not in imported and own.start_from is not None and len(own.start_from) < _DIGITS:
            named = _aliased if own.start_from.startswith("models:") else _with_digits
            whole = named(config, stage, own.start_from)
            changed[section] = own.model_copy(update={"start_from": whole})
    return config.model_copy(update=changed)


def whole_start_sets(config: Config) -> list[str]:
    """The `--set`s, without that word, which give a config of whole starts its starts again."""
    return [
        f"{section}.start_from='{start}'"  # digits alone would be a number
        for stage, section in SECTIONS.items()
        if stage not in imported_stages(config) and (start := section_of(config, stage).start_from) is not None
    ]


def _with_digits(config: Config, stage: str, digits: str) -> str:
    storage = open_storage(config.root)
    names = [name for name in storage.folders(stage) if name.startswith(digits[:SHORT])]
    found = [whole for name in names if (whole := _committed(storage, stage, name)) and whole.startswith(digits)]
    if len(found) != 1:
        raise ConfigError(
            f"{SECTIONS[stage]}.start_from {digits}: {len(found) or 'no'} artifacts {stage}/{digits}... are at "
            f"{config.root}",
            "List them with `python -m pipeline artifact ls`.",
        )
    return found[0]


def _committed(storage: Storage, stage: str, name: str) -> str | None:
    """The whole fingerprint of the artifact in a folder; None if there is none yet."""
    try:
        return Manifest.model_validate_json(storage.read(f"{stage}/{name}/manifest.json")).fingerprint
    except (FileNotFoundError, ValueError):
        return None


def _aliased(config: Config, stage: str, uri: str) -> str:
    name, _, alias = uri.removeprefix("models:/").partition("@")
    tags = aliased_tags(tracking_uri(config), name, alias)
    if tags is None:
        raise ConfigError(
            f"{SECTIONS[stage]}.start_from {uri}: no version of the model {name} has the alias {alias}",
            "Give a fingerprint, or another alias.",
        )
    if input_tag(stage) not in tags:
        raise ConfigError(
            f"{SECTIONS[stage]}.start_from {uri}: its version does not say which {stage} it is made from",
            "Give a fingerprint.",
        )
    return tags[input_tag(stage)]


def start_of(config: Config, stage: str) -> Manifest | None:
    """The artifact that the training of this stage starts from; None if it has none, or does not need it any more.

    It needs it until it has a checkpoint of its own, and not if it goes on from a shorter training, which started from
    there. ConfigError if the artifact is missing at the root, ContractError if its network is another one.
    """
    section = SECTIONS[stage]
    whole, fingerprint = section_of(config, stage).start_from, stage_fingerprints(config)[stage]
    if whole is None or fingerprint is None or stage in imported_stages(config):
        return None
    storage = open_storage(config.root)
    if checkpoint_step(storage, work_path(stage, fingerprint)) is not None:
        return None
    if shorter_training(config, stage)[0] is not None:
        return None
    made = read_manifest(storage, stage, whole)
    if made is None:
        raise ConfigError(
            f"{section}.start_from {whole[:SHORT]} is not at {config.root}",
            "List what is there with `python -m pipeline artifact ls`.",
        )
    there, here = _network_of(made), _own_network(config, stage)
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise ContractError(
                f"{section}.start_from {whole[:SHORT]} has another network: {key} is {there.get(key)} there and "
                f"{here.get(key)} here",
                "Start from an artifact of the same network.",
            )
    return made


def remembered_start(storage: Storage, work: str, start: Manifest | None) -> Manifest | None:
    """The artifact that the training of this work folder began with, as it was then; None if it began without one.

    `start`: what `start_of` says now. It is kept in the work folder, since a training with a checkpoint has none.
    """
    path = f"{work}/{_START}"
    if start is not None:
        storage.write(path, start.model_dump_json().encode())
        return start
    try:
        return Manifest.model_validate_json(storage.read(path))
    except FileNotFoundError:
        return None


def starts_begun_with(storage: Storage) -> set[str]:
    """The fingerprints of the artifacts that the unfinished trainings at this root began with."""
    works = [work_path(stage, name) for stage in SECTIONS for name in storage.folders(f".work/{stage}")]
    return {start.fingerprint for work in works if (start := remembered_start(storage, work, None)) is not None}


def start_in(made: Manifest) -> str | None:
    """The fingerprint of the artifact that a training started from; None for any other artifact."""
    if made.stage not in SECTIONS:
        return None
    start: str | None = made.config.get(f"{SECTIONS[made.stage]}.start_from")
    return start


def start_faults(config: Config, stages: Collection[str]) -> Iterator[PipelineError]:
    """What is wrong with the artifacts that the trainings of these stages start from."""
    for stage in SECTIONS:
        if stage in stages:
            try:
                start_of(config, stage)
            except (ConfigError, ContractError) as error:
                yield error


def _network_of(made: Manifest) -> Mapping[str, Any]:
    """What an artifact says of its network; early ones have no patch size and no norms of queries and keys."""
    if made.stage == "train-sit":
        return {"patch_size": 1, "qk_norm": False, **sit_details(made)["network"]}
    return {"kind": made.details["kind"], **made.details["network"]}


def _own_network(config: Config, stage: str) -> Mapping[str, Any]:
    if stage == "train-sit":
        return config.sit_network
    return {"kind": config.tokenizer.kind, **config.tokenizer_network}
