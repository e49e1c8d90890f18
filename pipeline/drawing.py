"""`sample`: pictures of one class from the trained artifacts, in this process, as PNG files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from pipeline.config import Config
from pipeline.errors import ContractError, StorageError
from pipeline.graph import Node
from pipeline.networks import load_generator, task_device
from pipeline.storage import open_storage


def draw(config: Config, nodes: list[Node], label: int, count: int, guidance: float | None, out: Path) -> list[Path]:
    """`count` pictures of class `label`; picture i starts from the noise of (sample.seed, i).

    ContractError when the generator has not been trained yet.
    """
    inputs = {node.stage.name: node.manifest for node in nodes if node.manifest is not None}
    for name in ("train-tokenizer", "train-sit"):
        if name not in inputs:
            raise ContractError(f"there is no {name} artifact for this preset", "Run `python -m pipeline run` first.")
    with _refused_here(out):
        out.mkdir(parents=True, exist_ok=True)
    own, device = config.sample, task_device()
    generator = load_generator(open_storage(config.root), inputs, device)
    paths = []
    for first in range(0, count, own.batch_size):
        indices = list(range(first, min(first + own.batch_size, count)))
        with torch.autocast(device.type, torch.bfloat16, enabled=own.precision == "bf16"):
            images = generator.generate(
                torch.full((len(indices),), label),
                seed=own.seed,
                indices=indices,
                method=own.method,
                steps=own.steps,
                guidance_scale=own.guidance if guidance is None else guidance,
                guidance_interval=own.guidance_interval,
            )
        for index, image in zip(indices, images.cpu(), strict=True):
            path = out / f"class{label:04d}-{index:04d}.png"
            with _refused_here(out):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
            paths.append(path)
    return paths


@contextmanager
def _refused_here(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror or error}", "Choose another folder with --out.") from error
