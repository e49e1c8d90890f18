"""The code in a registered model: a copy of the package `models`, under a name that is unique to its content."""

import hashlib
import shutil
from pathlib import Path

import models

MODEL_FILE = Path(__file__).with_name("registered_model.py")
_PACKAGE = Path(models.__file__).parent


def model_package() -> str:
    """The name of the copy: `denoising_vae_models_` and a digest of its files."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return f"denoising_vae_models_{digest.hexdigest()[:12]}"


def copy_model_package(folder: Path) -> Path:
    """Copy the package below `folder`; returns the copy's path."""
    target = folder / model_package()
    for path in _files():
        copy = target / path.relative_to(_PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


def _files() -> list[Path]:
    return sorted(_PACKAGE.rglob("*.py"))
