"""Downloads third-party pretrained weights once per machine and verifies their hashes. No torch here."""

import hashlib
import os
from pathlib import Path

from pipeline.config import WeightFile
from pipeline.errors import ConfigError
from pipeline.storage import cache_folder, split_uri


def fetch_weights(file: WeightFile) -> Path:
    """A local copy of pretrained weights. ConfigError if they are missing or their sha256 differs."""
    storage, name = split_uri(file.uri)
    target = cache_folder() / "weights" / file.sha256
    try:
        if not target.exists():
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            storage.download(name, partial)
            partial.replace(target)
        with open(target, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        raise ConfigError(f"the weights {file.uri} are missing", "Correct the uri, or upload the file.") from None
    if digest != file.sha256:
        target.unlink()
        raise ConfigError(f"{file.uri} has sha256 {digest}, not {file.sha256}", "Correct the sha256 or the file.")
    return target
