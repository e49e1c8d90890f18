"""What the loader is measured against: the usual ways to keep and read examples, giving the very batches that it gives.

Each side has its files written beforehand. Legend: B rows, D channels, h w latent rows and columns.
"""

import importlib
import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset

from pipeline.data.decode import transform

Side = Callable[[], Iterable[Any]]
"""Gives batches; how fast they come is what is measured."""
Rows = Sequence[np.ndarray]
"""The row numbers of each batch."""


class Files(Dataset[Any]):
    """An item is read by `read` from the file of its number."""

    def __init__(self, paths: list[Path], read: Callable[[Path], Any]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Any:
        return self.read(self.paths[row])


class _Batches(torch.utils.data.Sampler[list[int]]):
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def torch_loader(files: Files, rows: Rows, collate: Callable[[list[Any]], Any]) -> Side:
    """A DataLoader of two workers, which are started before the measurement and stay."""
    loader = DataLoader(
        files,
        batch_sampler=_Batches(rows),
        num_workers=2,
        persistent_workers=True,
        prefetch_factor=2,
        collate_fn=collate,
    )
    for _ in loader:
        break
    return lambda: iter(loader)


class PixelsOf:
    """Reads an image file as pixels (H, W, 3); picklable, for the workers."""

    def __init__(self, size: int, center_crop: bool) -> None:
        self.size, self.center_crop = size, center_crop

    def __call__(self, image: Path | io.BytesIO) -> np.ndarray:
        return transform(Image.open(image).convert("RGB"), self.size, self.center_crop)


def image_rivals(images: list[bytes], rows: Rows, size: int, center_crop: bool, folder: Path) -> dict[str, Side]:
    """Pixels (B, H, W, 3) of a file an image."""
    folder.mkdir(parents=True)
    paths = [folder / f"{i}" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    read = PixelsOf(size, center_crop)

    def plain() -> Iterator[np.ndarray]:
        for chosen in rows:
            yield np.stack([read(io.BytesIO(images[i])) for i in chosen])

    return {"plain PIL loop": plain, "DataLoader of 2 workers": torch_loader(Files(paths, read), rows, np.stack)}


def latent_rivals(mean: np.ndarray, logvar: np.ndarray, rows: Rows, folder: Path) -> dict[str, Side]:
    """Both moments beside each other, (B, 2 D, h, w), of: arrays in memory, a .npy a latent, safetensors, and MDS."""
    folder.mkdir(parents=True)
    both = np.concatenate([mean, logvar], axis=1)
    paths = [folder / f"{i}.npy" for i in range(len(both))]
    for path, latent in zip(paths, both, strict=True):
        np.save(path, latent)
    save_file({"latents": both}, folder / "all.safetensors")
    sides: dict[str, Side] = {
        "plain gather": lambda: _gathered(mean, logvar, rows),
        "one .npy each": lambda: (np.stack([np.load(paths[i]) for i in chosen]) for chosen in rows),
        "DataLoader of 2 workers": torch_loader(Files(paths, np.load), rows, np.stack),
        "safetensors": lambda: _from_safetensors(folder / "all.safetensors", rows),
    }
    if importlib.util.find_spec("streaming") is not None:
        sides["MDS"] = _mds(both, rows, folder / "mds")
    return {**sides, "memcpy": lambda: _copies(mean, logvar, rows)}


def _gathered(mean: np.ndarray, logvar: np.ndarray, rows: Rows) -> Iterator[Any]:
    for chosen in rows:
        yield np.take(mean, chosen, axis=0), np.take(logvar, chosen, axis=0)


def _copies(mean: np.ndarray, logvar: np.ndarray, rows: Rows) -> Iterator[Any]:
    """As many neighbours as there are rows in a batch: no gather at all."""
    size = len(rows[0])
    for step in range(len(rows)):
        first = step * size % (len(mean) - size + 1)
        yield mean[first : first + size].copy(), logvar[first : first + size].copy()


def _from_safetensors(path: Path, rows: Rows) -> Iterator[np.ndarray]:
    with safe_open(path, "np") as file:
        part = file.get_slice("latents")
        for chosen in rows:
            yield np.concatenate([part[int(i) : int(i) + 1] for i in chosen])


def _mds(both: np.ndarray, rows: Rows, folder: Path) -> Side:
    streaming: Any = importlib.import_module("streaming")  # of mosaicml-streaming, which is not among the extras

    with streaming.MDSWriter(out=str(folder), columns={"latent": "bytes"}) as writer:
        for latent in both:
            writer.write({"latent": latent.tobytes()})
    source = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=1)

    def read() -> Iterator[np.ndarray]:
        for chosen in rows:
            latents = [np.frombuffer(source[int(i)]["latent"], both.dtype).reshape(both.shape[1:]) for i in chosen]
            yield np.stack(latents)

    return read
