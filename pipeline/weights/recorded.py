"""weights.yaml: which weights lie here, by name. Written by `weights fetch`, or by hand for weights of one's own."""

import re

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config import Config, parse_yaml
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
    """Add or replace one entry, whoever else adds others at the same moment. The rest of the file stays as it is."""
    for _ in range(_ATTEMPTS):
        try:
            data, tag = place.read_tagged(FILE)
        except FileNotFoundError:
            if place.write_new(FILE, (_HEADER + _lines(name, entry)).encode()):
                return
            continue
        if place.replace(FILE, _with_entry(place, data, name, entry), tag):
            return
    raise ConfigError(f"{place.uri(FILE)} is changed by others all the time", "Run again.")


def _with_entry(place: Storage, data: bytes, name: str, entry: Recorded) -> bytes:
    """The file with the entry: its own lines are replaced, or it is added at the end."""
    expected = {**_parsed(place, data), name: entry}
    text = data.decode()
    own = re.compile(rf"^(['\"]?){re.escape(name)}\1:.*\n?(?:[ \t]+.*\n?)*", re.MULTILINE)
    if own.search(text):
        text = own.sub(lambda _: _lines(name, entry), text, count=1)
    else:
        text = f"{text.rstrip()}\n{_lines(name, entry)}" if expected.keys() != {name} else _HEADER + _lines(name, entry)
    made = text.encode()
    if _parsed(place, made) != expected:
        raise ConfigError(
            f"{place.uri(FILE)} is written in a way that {name} cannot be added to",
            f"Add it by hand: {_lines(name, entry).strip()}",
        )
    return made


def _lines(name: str, entry: Recorded) -> str:
    return yaml.safe_dump({name: entry.model_dump(exclude_none=True)}, sort_keys=False)


def check_writable(place: Storage) -> None:
    """StorageError if weights.yaml cannot be written there. It stays as it is, and is empty where there was none."""
    try:
        data, tag = place.read_tagged(FILE)
    except FileNotFoundError:
        place.write_new(FILE, _HEADER.encode())
    else:
        place.replace(FILE, data, tag)


def _parsed(place: Storage, data: bytes) -> dict[str, Recorded]:
    where = place.uri(FILE)
    try:
        tree = parse_yaml(data.decode(), where)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8", "Correct it, or fetch the weights again.") from error
    found = {}
    for name, entry in tree.items():
        try:
            found[str(name)] = Recorded.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, (name, *first["loc"])))
            raise ConfigError(f"{where}: {field}: {first['msg']}", "Correct it, or fetch the weights again.") from None
    return found
