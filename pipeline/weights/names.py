"""From the names of weights in a config to files: which are used, which are here, which are missing."""

from collections.abc import Iterator

from pipeline.config import Config, WeightFile
from pipeline.errors import ConfigError
from pipeline.storage import Storage
from pipeline.weights.catalogue import CATALOGUE, find_entry
from pipeline.weights.fitting import check_name
from pipeline.weights.recorded import Recorded, absolute_uri, place_of, read_recorded
from pipeline.weights.used import Use, weights_used


def resolve_weights(config: Config) -> Config:
    """The config with the files of all named weights, as far as they are known here.

    ConfigError if neither weights.yaml nor the catalogue has a name, or its weights are of another network.
    """
    named = [use for use in weights_used(config) if use.file.name is not None]
    if not named:
        return config
    for use in named:
        check_name(use, config)
    place = place_of(config)
    recorded = read_recorded(place)
    changed: dict[str, dict[str, WeightFile]] = {}
    for use in named:
        changed.setdefault(use.section, {})[use.field] = _resolved(use, place, recorded)
    return config.model_copy(
        update={section: getattr(config, section).model_copy(update=fields) for section, fields in changed.items()}
    )


def _resolved(use: Use, place: Storage, recorded: dict[str, Recorded]) -> WeightFile:
    name = use.file.name
    assert name is not None
    given = use.file.sha256
    if given is not None and (name not in recorded or recorded[name].sha256 != given):
        return use.file  # what is given counts: the sender's file of a config that was sent, or one's own
    if name in recorded:
        found = recorded[name]
        return use.file.model_copy(update={"uri": absolute_uri(place, found), "sha256": found.sha256})
    try:
        entry = find_entry(name, tuple(recorded))
    except ConfigError as error:
        raise ConfigError(f"{use.section}.{use.field}: {error.what}", error.hint) from None
    if entry.package is not None:  # the package's own file, wherever it is installed
        return use.file.model_copy(update={"uri": f"package:{entry.package}", "sha256": entry.package_sha256})
    return use.file


def check_known(config: Config) -> None:
    """ConfigError if weights that the config names are not here."""
    names = list(dict.fromkeys(use.file.name for use in _missing(config)))
    if names:
        place = place_of(config).root
        raise ConfigError(
            f"pretrained weights are missing at {place}: {', '.join(map(str, _missing(config)))}",
            f"Get them with `python -m pipeline weights fetch {' '.join(map(str, names))} --to {place}`.",
        )


def missing_weights(config: Config) -> Iterator[str]:
    """`check_known` as lines of a plan."""
    try:
        check_known(config)
    except ConfigError as error:
        yield str(error)


def _missing(config: Config) -> list[Use]:
    return [use for use in weights_used(config) if use.file.sha256 is None]


def wanted(config: Config) -> list[str]:
    """The names in the catalogue that the config uses and that a publisher has, each once."""
    names = dict.fromkeys(use.file.name for use in weights_used(config))
    return [name for name in names if name in CATALOGUE and CATALOGUE[name].files]
