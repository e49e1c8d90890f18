"""A version of the registered model, from its files on this disk, as a source to draw from. Its own code draws."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, ContractError
from pipeline.inference.drawing import Opened, Pixels, Source


def registered_source(folder: Path, uri: str) -> Source:
    """The model in `folder`, as MLflow lays it out. ContractError, with `uri`, if it is not one of `register`."""
    path = folder / "artifacts" / "model.json"
    try:
        facts = json.loads(path.read_text())
        sampling = dict(facts["sampling"])
        low, high = sampling["guidance_interval"]
        return Source(
            classes=facts["sit"]["classes"],
            class_names=facts["class_names"] or [],
            image_size=facts["tokenizer"]["image_size"],
            sampling={**sampling, "guidance_interval": (low, high)},
            batch_size=facts["batch_size"],
            open=lambda: _open_registered(folder),
        )
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"{uri} is not a model of this pipeline: {path.name} is missing or of another form",
            "Choose a model that the stage register has made.",
        ) from error


def _open_registered(folder: Path) -> Opened:
    import mlflow.pyfunc
    import torch

    model = mlflow.pyfunc.load_model(str(folder)).unwrap_python_model()

    def draw(labels: Sequence[int], indices: Sequence[int], sampling: Mapping[str, Any]) -> Pixels:
        try:
            own = model.sampling_of(**sampling)
        except ValueError as error:  # a method that came after this version
            raise ConfigError(f"this version of the model: {error}", "Choose another --method.") from error
        images_BCHW = model.generator.draw(torch.tensor(labels), indices, own)
        pixels: Pixels = images_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return pixels

    packed = (folder / "MLmodel").read_bytes()  # it has an id of its own, new whenever a model is packed
    return Opened(hashlib.sha256(packed).hexdigest(), draw)
