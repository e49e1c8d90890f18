"""From an artifact back to what made it: its config, its ancestors, and what nobody needs any more."""

from pipeline.artifacts import SHORT, Manifest, all_manifests
from pipeline.config import Config, flattened, unflattened, values_as_before
from pipeline.errors import ConfigError, ContractError
from pipeline.storage import Storage
from pipeline.workflow.fingerprints import is_counted, stage_fingerprints
from pipeline.workflow.graph import find_stage


def find_artifact(storage: Storage, name: str) -> Manifest:
    """The artifact STAGE/FINGERPRINT (its first digits will do). ConfigError when there is none, or more than one."""
    stage, _, digits = name.partition("/")
    find_stage(stage)
    found = [
        m for m in all_manifests(storage) if m.stage == stage and digits and m.fingerprint.startswith(digits[:SHORT])
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found) or 'no'} artifacts are called {name}", "`python -m pipeline artifact ls` lists them."
        )
    return found[0]


def ancestors(storage: Storage, manifest: Manifest) -> list[Manifest]:
    """The artifact and everything it was made from, the nearest first."""
    known = {m.fingerprint: m for m in all_manifests(storage)}
    found, frontier = {manifest.fingerprint: manifest}, [manifest]
    while frontier:
        for fingerprint in frontier.pop(0).inputs.values():
            if fingerprint in known and fingerprint not in found:
                found[fingerprint] = known[fingerprint]
                frontier.append(known[fingerprint])
    return list(found.values())


def config_of(storage: Storage, manifest: Manifest, place: Config) -> Config:
    """The config that an artifact was made under; cluster, root and tracking are those of `place`.

    ContractError when it does not lead to the same fingerprint: the code has moved on, or an ancestor is gone.
    """
    fields = flattened(place)
    for ancestor in reversed(ancestors(storage, manifest)):
        stage = find_stage(ancestor.stage)
        # A field that is not in the manifest came after it, and was done as before.
        fields |= {name: value for name, value in values_as_before().items() if is_counted(stage, name)}
        fields |= ancestor.config
    config = Config.model_validate(unflattened(fields))
    if stage_fingerprints(config)[manifest.stage] != manifest.fingerprint:
        raise ContractError(
            f"{manifest.name} is of other code, or an artifact it came from is gone",
            "Check out the commit in its manifest (git_sha), or run the preset anew.",
        )
    return config


def unneeded(storage: Storage, kept: set[str]) -> list[Manifest]:
    """The artifacts that neither a registered model nor one of the `kept` fingerprints goes back to."""
    manifests = all_manifests(storage)
    needed: set[str] = set()
    for manifest in manifests:
        if manifest.stage == "register" or manifest.fingerprint in kept:
            needed |= {ancestor.fingerprint for ancestor in ancestors(storage, manifest)}
    return [manifest for manifest in manifests if manifest.fingerprint not in needed]
