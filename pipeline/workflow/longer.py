"""Longer training: the finished one of fewer steps, at this root, whose last state a training can go on from.

It can if it is this very training up to its last step: then what comes out is what all steps at once would give, to the
bit, and the fingerprint is the same.
"""

from collections.abc import Collection, Iterator

from models.schedule import same_rates
from pipeline.artifacts import Manifest, manifests_of, read_manifest, work_path
from pipeline.config import Config, SitConfig, TokenizerConfig
from pipeline.storage import Storage, open_storage
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import SECTIONS, find_stage, section_of
from pipeline.workflow.work_folder import changed_inputs, checkpoint_step

_MAY_DIFFER = ("steps", "warmup", "milestones")  # fields of trainings of which one may be the beginning of the other


def shorter_training(config: Config, stage: str) -> tuple[Manifest | None, str | None]:
    """The longest training of fewer steps that this one can go on from; or why it can from none of those that exist."""
    reasons, own = [], section_of(config, stage)
    for manifest in _shorter(config, stage, open_storage(config.root)):
        reason = _obstacle(own, manifest, SECTIONS[stage])
        if reason is None:
            return manifest, None
        reasons.append(f"{stage} begins at the first step, and not after {manifest.name}: {reason}")
    return None, reasons[0] if reasons else None


def beginnings(config: Config, stages: Collection[str]) -> dict[str, tuple[Manifest | None, str | None]]:
    """What `shorter_training` finds for each training among the stages that will run, if it has no checkpoint yet.

    Not for one whose inputs will be made, too: on their contents depends of what training it is the longer one.
    """
    return {
        stage: shorter_training(config, stage)
        for stage in SECTIONS
        if stage in stages
        and not set(stages) & set(find_stage(stage).inputs_with(config))
        and resumed_step(config, stage) is None
    }


def resumed_step(config: Config, stage: str) -> int | None:
    """The step of the checkpoint that an attempt has left and the next one resumes; None if there is none."""
    fingerprint, storage = stage_fingerprints(config)[stage], open_storage(config.root)
    if fingerprint is None:
        return None
    work = work_path(stage, fingerprint)
    if changed_inputs(storage, work, _input_contents(config, stage, storage)):
        return None
    return checkpoint_step(storage, work)


def steps_of(manifest: Manifest) -> int:
    """The steps of a trainer's artifact."""
    return int(manifest.config[f"{SECTIONS[manifest.stage]}.steps"])


def _shorter(config: Config, stage: str, storage: Storage) -> Iterator[Manifest]:
    """The current artifacts of fewer steps that differ from the stage's in these fields alone; the longest first."""
    section = SECTIONS[stage]
    own = section_of(config, stage)
    contents = _input_contents(config, stage, storage)
    found = [made for made in manifests_of(storage, stage) if f"{section}.steps" in made.config]
    for made in sorted(found, key=steps_of, reverse=True):
        if steps_of(made) < own.steps and made.input_contents == contents:
            fields = {name: made.config.get(f"{section}.{name}") for name in _MAY_DIFFER if hasattr(own, name)}
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
            as_it_was = config.model_copy(update={section: own.model_copy(update=fields)})
            if stage_fingerprints(as_it_was)[stage] == made.fingerprint:
                yield made


def _input_contents(config: Config, stage: str, storage: Storage) -> dict[str, str]:
    """The contents of the stage's inputs that are there."""
    prints = stage_fingerprints(config)
    inputs = {name: read_manifest(storage, name, prints[name] or "") for name in find_stage(stage).inputs_with(config)}
    return {name: made.content for name, made in inputs.items() if made is not None}


def _obstacle(own: TokenizerConfig | SitConfig, made: Manifest, section: str) -> str | None:
    """Why a training cannot go on from this shorter one, with the numbers; None if it can."""
    steps, warmup = steps_of(made), float(made.config[f"{section}.warmup"])
    if own.decay != "constant":
        return (
            f"{section}.decay {own.decay} ends at {section}.steps, so {steps} steps of {own.steps} have other learning "
            f"rates than {steps} of {steps}"
        )
    if not same_rates(own.learning_rate, own.steps, own.warmup, steps, warmup):
        return (
            f"{section}.warmup {own.warmup:g} of {own.steps} steps is {own.warmup * own.steps:g}, and there it was "
            f"{warmup * steps:g}"
        )
    if isinstance(own, SitConfig):
        lacking = [step for step in own.milestones if step < steps and step not in made.config["sit.milestones"]]
        if lacking:
            return f"it has no milestone {lacking[0]}"
    if not any(name.startswith("state/") for name in made.files):
        return "it kept no state (sit.keep_state)" if section == "sit" else "a tokenizer's training keeps no state"
    return None
