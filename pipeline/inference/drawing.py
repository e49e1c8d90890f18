"""The command `sample`: generates images of one class from trained artifacts, in this process, as PNG files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from models.generator import Sampling
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.errors import ContractError, StorageError
from pipeline.inference.networks import load_generator, task_device
from pipeline.storage import open_storage


def draw(
    config: Config, artifacts: dict[str, Manifest], label: int, count: int, guidance: float | None, out: Path
) -> list[Path]:
    """Generate `count` images of class `label`, image i from the noise of (sample.seed, i); returns their paths.

    `artifacts`: the existing ones, by stage. ContractError if the generator has not been trained, or lacks the average.
    """
    for name in ("train-tokenizer", "train-sit"):
        if name not in artifacts:
            raise ContractError(f"the {name} artifact of this preset is missing", "Run `python -m pipeline run` first.")
    with _output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    own = config.sample
    sampling = Sampling(**own.sampling(guidance=own.guidance if guidance is None else guidance))
    generator = load_generator(open_storage(config.root), artifacts, task_device(), own.ema_decay)
    paths = []
    for first in range(0, count, own.batch_size):
        indices = list(range(first, min(first + own.batch_size, count)))
        images = generator.draw(torch.full((len(indices),), label), indices, sampling)
        for index, image in zip(indices, images.cpu(), strict=True):
            path = out / f"class{label:04d}-{index:04d}.png"
            with _output_errors(out):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
            paths.append(path)
    return paths


@contextmanager
def _output_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror or error}", "Choose another folder with --out.") from error
