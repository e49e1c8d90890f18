"""Retraining from the champion: the config that goes on from the registered model's trainings, and whether it has to.

What is compared are the fields that the champion's artifacts were made with, not fingerprints: an upgrade that computes
others costs no training.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.artifacts import SHORT, Manifest, read_manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError
from pipeline.storage import open_storage
from pipeline.tracking import CHAMPION, aliased_tags, input_tag, tracking_uri
from pipeline.workflow.fingerprints import counted_config, imported_stages
from pipeline.workflow.graph import SECTIONS, find_stage
from pipeline.workflow.starts import start_of

_MADE = ("prepare", "train-tokenizer", "encode", "train-sit")  # what a change of means another training
_STARTS = tuple(f"{section}.start_from" for section in SECTIONS.values())


class Continued(NamedTuple):
    """A config that goes on from the champion, and what it does, in a line."""

    config: Config
    text: str


def from_champion(config: Config, steps: int | None = None) -> Continued:
    """The config that goes on from the trainings of the champion of `config.register.name`.

    New images or another recipe: SiT starts from the champion's weights and trains `steps` steps (None: those of the
    config). The champion's tokenizer is used as it is, or, if its own recipe has changed, trained from its weights.
    Otherwise its trainings are used as they are, so that nothing trains: a start from itself would be another recipe
    after each promotion, and train for ever. Starts are not compared, and whether SiT has trained the steps of the
    config or `steps` makes no difference. Without a champion, the config as it is.

    Args:
        config: resolved, with the revision of its data.
        steps: of SiT from the champion; milestones beyond are left out.

    Raises ConfigError if SiT is not trained here, ContractError if the champion's artifacts are not at the root or of
    another network, PipelineError if MLflow does not answer.
    """
    if "train-sit" in imported_stages(config):
        raise ConfigError("sit.imported is used as it is, and not trained", "Leave out --from-champion.")
    made = _champion_made(config)
    if made is None:
        return Continued(config, f"no version of {config.register.name} is {CHAMPION}: the training is from nothing")
    again = config if steps is None else _with_steps(config, steps)
    as_it_was, changes = _changed(made, config), _changed(made, again)
    if not any(as_it_was.values()) or not any(changes.values()):
        used = config.sit.as_it_is(made["train-sit"].fingerprint)
        config = _with_tokenizer(config.model_copy(update={"sit": used}), made["train-tokenizer"], as_it_is=True)
        return Continued(config, f"the images and the recipe of {made['train-sit'].name}, of the champion, are these")
    names = sorted({name for names in changes.values() for name in names})
    own = again.sit.model_copy(update={"start_from": made["train-sit"].fingerprint})
    config = again.model_copy(update={"sit": own})
    config = _with_tokenizer(config, made["train-tokenizer"], as_it_is=not changes["train-tokenizer"])
    for stage in SECTIONS:
        start_of(config, stage)
    return Continued(config, f"starts from {made['train-sit'].name}, of the champion; changed: {', '.join(names)}")


def _champion_made(config: Config) -> dict[str, Manifest] | None:
    """The artifacts that the champion was made from, by stage; None without a champion."""
    name = config.register.name
    tags = aliased_tags(tracking_uri(config), name, CHAMPION)
    if tags is None:
        return None
    made = {}
    for stage in _MADE:
        fingerprint = tags.get(input_tag(stage))
        if fingerprint is None:
            raise ContractError(
                f"the champion of {name} does not say which {stage} it was made from", "Leave out --from-champion."
            )
        manifest = read_manifest(open_storage(config.root), stage, fingerprint)
        if manifest is None:
            raise ContractError(
                f"{stage}/{fingerprint[:SHORT]}, which the champion of {name} was made from, is not at {config.root}",
                "Give the root that it was trained at, or leave out --from-champion.",
            )
        made[stage] = manifest
    return made


def _changed(made: Mapping[str, Manifest], config: Config) -> dict[str, list[str]]:
    """By stage, the fields in which the config differs from what the champion's artifact was made with."""
    return {stage: _changes(made[stage], config) for stage in _MADE}


def _with_steps(config: Config, steps: int) -> Config:
    milestones = tuple(step for step in config.sit.milestones if step <= steps)
    return config.model_copy(update={"sit": config.sit.model_copy(update={"steps": steps, "milestones": milestones})})


def _changes(made: Manifest, config: Config) -> list[str]:
    """The fields, but for starts, in which the config differs from what the artifact was made with."""
    imported = imported_stages(config).get(made.stage)
    if imported is not None:
        return [] if made.fingerprint == imported else [f"{SECTIONS[made.stage]}.imported"]
    here, there = counted_config(find_stage(made.stage), config), made.config
    names = (here.keys() | there.keys()) - set(_STARTS)
    return sorted(name for name in names if here.get(name) != there.get(name))


def _with_tokenizer(config: Config, made: Manifest, as_it_is: bool) -> Config:
    """The config with the champion's tokenizer, or with one that starts from it; one that it imports itself stays."""
    if config.tokenizer.imported is not None:
        return config
    own = config.tokenizer
    start = own.model_copy(update={"start_from": made.fingerprint})
    return config.model_copy(update={"tokenizer": own.as_it_is(made.fingerprint) if as_it_is else start})
