"""weights.yaml: which weights lie here, by name. Written by `weights fetch`, or by hand for weights of one's own."""

from collections.abc import Callable
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.storage import Storage, open_storage

FILE = "weights.yaml"
_HEADER = (
    "# Pretrained weights by name. Written by `python -m pipeline weights fetch`; a uri may be relative to this file.\n"
)
_ATTEMPTS = 20  # to write while others write too


class Recorded(BaseModel):
    """Weights that lie here: a safetensors file and where it came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str = Field(min_length=1)
    """file:// or s3://, or a path relative to weights.yaml."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    source: str | None = None
    """The publisher's address."""
    source_sha256: str | None = None
    """Of the publisher's file, before it became safetensors."""
    licence: str | None = None


def place_of(config: Config) -> Storage:
    """Where weights lie: `weights` of the config, by default the folder `weights` at the root."""
    if config.weights is not None:
        return open_storage(config.weights)
    return open_storage(f"{open_storage(config.root).root}/weights")


def read_recorded(place: Storage) -> dict[str, Recorded]:
    """What weights.yaml lists; nothing if there is none. ConfigError if it is not valid."""
    try:
        return _parsed(place, place.read(FILE))
    except FileNotFoundError:
        return {}


def absolute_uri(place: Storage, recorded: Recorded) -> str:
    return recorded.uri if "://" in recorded.uri else place.uri(recorded.uri)


def record(place: Storage, name: str, entry: Recorded) -> None:
    """Add or replace one entry, whoever else adds others at the same moment."""
    _change(place, lambda known: {**known, name: entry})


def check_writable(place: Storage) -> None:
    """StorageError if weights.yaml cannot be written there. It stays as it is, and is empty where there was none."""
    try:
        data, tag = place.read_tagged(FILE)
    except FileNotFoundError:
        place.write_new(FILE, _text({}))
    else:
        place.replace(FILE, data, tag)


def _change(place: Storage, change: Callable[[dict[str, Recorded]], dict[str, Recorded]]) -> None:
    for _ in range(_ATTEMPTS):
        try:
            data, tag = place.read_tagged(FILE)
        except FileNotFoundError:
            if place.write_new(FILE, _text(change({}))):
                return
            continue
        if place.replace(FILE, _text(change(_parsed(place, data))), tag):
            return
    raise ConfigError(f"{place.uri(FILE)} is changed by others all the time", "Run again.")


def _parsed(place: Storage, data: bytes) -> dict[str, Recorded]:
    where = place.uri(FILE)
    try:
        tree: Any = yaml.safe_load(data) or {}
        return {str(name): Recorded.model_validate(entry) for name, entry in tree.items()}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise ConfigError(
            f"{where} is not a YAML mapping of names", "Correct it, or fetch the weights again."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}", "Correct it, or fetch the weights again."
        ) from None


def _text(known: dict[str, Recorded]) -> bytes:
    tree = {name: entry.model_dump(exclude_none=True) for name, entry in sorted(known.items())}
    return (_HEADER + yaml.safe_dump(tree, sort_keys=False)).encode()
