"""The lineage of artifacts: their ancestors, the config that produced them, and artifacts that are unneeded."""

from collections.abc import Iterable

from pipeline.artifacts import SHORT, Manifest, all_manifests
from pipeline.config import Config, flattened, unflattened, values_as_before
from pipeline.errors import ConfigError, ContractError
from pipeline.storage import Storage
from pipeline.workflow.fingerprints import is_read, stage_fingerprints
from pipeline.workflow.graph import ALL_STAGES, SECTIONS, find_stage, section_of
from pipeline.workflow.importing import was_imported
from pipeline.workflow.starts import start_in, starts_begun_with


def find_artifact(storage: Storage, name: str) -> Manifest:
    """The artifact STAGE/FINGERPRINT, which may be abbreviated. ConfigError unless exactly one matches."""
    stage, _, digits = name.partition("/")
    find_stage(stage)
    found = [
        m for m in all_manifests(storage) if m.stage == stage and digits and m.fingerprint.startswith(digits[:SHORT])
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found) or 'no'} artifacts match {name}", "List them with `python -m pipeline artifact ls`."
        )
    return found[0]


def ancestors(storage: Storage, manifest: Manifest) -> list[Manifest]:
    """The artifact and all that it was produced from, with what trainings started from, nearest first."""
    known = {m.fingerprint: m for m in all_manifests(storage)}
    found, frontier = {manifest.fingerprint: manifest}, [manifest]
    while frontier:
        made = frontier.pop(0)
        for fingerprint in (*made.inputs.values(), start_in(made)):
            if fingerprint is not None and fingerprint in known and fingerprint not in found:
                found[fingerprint] = known[fingerprint]
                frontier.append(known[fingerprint])
    return list(found.values())


def config_of(storage: Storage, manifest: Manifest, place: Config, given: Iterable[str] = ()) -> Config:
    """The config that an artifact was produced with; cluster, root and tracking are those of `place`.

    So are the `given` fields, by dotted name, that do not count: a source may have moved. ContractError if its
    fingerprint differs: the code has changed, or an ancestor is missing.
    """
    here = flattened(place)
    fields, uncounted = dict(here), set[str]()
    made, foreign = _made_of(storage, manifest)
    for stage in ALL_STAGES:
        if stage.name in made:
            # A field that is not in the manifest was added later; it gets the value of the old behaviour.
            fields |= {name: value for name, value in values_as_before().items() if is_read(stage, name)}
            own = made[stage.name].config | made[stage.name].uncounted
            prefix = f"{SECTIONS[stage.name]}." if stage.name in foreign else ""
            fields |= {name: value for name, value in own.items() if name.startswith(prefix)}
            uncounted |= made[stage.name].uncounted.keys()
    fields |= {name: here[name] for name in given if name in uncounted}
    config = Config.model_validate(unflattened(fields))
    for trainer in foreign:
        used = section_of(config, trainer).as_it_is(made[trainer].fingerprint)
        config = config.model_copy(update={SECTIONS[trainer]: used})
    if stage_fingerprints(config)[manifest.stage] != manifest.fingerprint:
        raise ContractError(
            f"{manifest.name} was produced by other code, or one of its ancestors is missing",
            "Check out the commit in its manifest (git_sha), or run the preset again.",
        )
    return config


def _made_of(storage: Storage, manifest: Manifest) -> tuple[dict[str, Manifest], list[str]]:
    """The artifacts that one was made of, itself among them, by stage; and the trainers' that were imported.

    A trainer's is imported if it was not trained here, or if it was made of others than the rest: of other images, say.
    """
    known = {one.fingerprint: one for one in all_manifests(storage)}
    made, foreign = {manifest.stage: manifest}, []
    for stage in reversed(ALL_STAGES):  # so that what uses an artifact comes before what that was made of
        if stage.name not in made:
            continue
        inputs = made[stage.name].inputs
        others = any(name in made and made[name].fingerprint != fingerprint for name, fingerprint in inputs.items())
        if stage.name in SECTIONS and (others or was_imported(made[stage.name])):
            foreign.append(stage.name)
        else:
            made |= {name: known[fingerprint] for name, fingerprint in inputs.items() if fingerprint in known}
    return made, foreign


def unneeded(storage: Storage, kept: set[str]) -> list[Manifest]:
    """The artifacts that are ancestors of neither a registered model nor one of the `kept` fingerprints.

    Nor of what an unfinished training started from, which it could not begin again without.
    """
    manifests, kept = all_manifests(storage), kept | starts_begun_with(storage)
    needed: set[str] = set()
    for manifest in manifests:
        if manifest.stage == "register" or manifest.fingerprint in kept:
            needed |= {ancestor.fingerprint for ancestor in ancestors(storage, manifest)}
    return [manifest for manifest in manifests if manifest.fingerprint not in needed]
