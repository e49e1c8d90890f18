"""The files that the command `sample` writes: a PNG a picture, or one .npz in ADM's form, made of parts.

Legend: N pictures of a file, B of a batch, H W pixels.
"""

import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import StorageError
from pipeline.inference.drawing import Batch, Pixels, Request

_PART = re.compile(r"[0-9a-f]{12}-\d+-\d+\.npy(\.new)?")


@contextmanager
def output_errors(path: Path, option: str) -> Iterator[None]:
    """Turn an OSError, such as no permission or no space, into a StorageError that names the option."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", f"Choose another path with {option}.") from error


def ready_folder(path: Path, option: str) -> None:
    """Make a folder. StorageError if it cannot be made, or written to."""
    with output_errors(path, option):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise StorageError(f"{path} cannot be written", f"Choose another folder with {option}.")


def ready_file(path: Path, option: str) -> None:
    """Make the folder of a file that is to be written later. StorageError if it could not be."""
    ready_folder(path.parent, option)
    if path.is_dir():
        raise StorageError(f"{path} is a folder", f"Choose a file with {option}.")


def write_pngs(folder: Path, request: Request, batch: Batch) -> None:
    """Each picture as classLABEL-NUMBER.png, to the pixel."""
    for place, image_HWC in zip(range(batch.start, batch.stop), batch.images_BHWC, strict=True):
        path = folder / f"class{request.label(place):04d}-{request.number(place):04d}.png"
        with output_errors(path, "--out"):
            Image.fromarray(image_HWC).save(path)


def write_npz(
    file: Path, labels_N: npt.NDArray[np.int64], image_size: int, batches: Iterable[Pixels], option: str
) -> None:
    """Write an .npz as ADM's, whole or not at all: arr_0 uint8 (N, H, W, 3) of the batches (B, H, W, 3), arr_1 labels.

    One batch is in memory at a time. StorageError, which names the option, if it cannot be written.
    """
    shape = (len(labels_N), image_size, image_size, 3)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    new = file.with_name(f"{file.name}.new")
    with output_errors(file, option):
        try:
            with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    for images_BHWC in batches:
                        member.write(np.ascontiguousarray(images_BHWC).data)
                with archive.open("arr_1.npy", "w") as member:
                    np.lib.format.write_array(member, labels_N, allow_pickle=False)
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)


class Parts:
    """Batches kept beside an .npz until it is whole, so that a second run goes on: FILE.parts/DIGEST-START-STOP.npy.

    `digest`: of the request (`Request.digest`). Parts with another one are another command's and never read.
    """

    def __init__(self, file: Path, digest: str, image_size: int) -> None:
        self.file, self._digest, self._image_size = file, digest, image_size
        self.folder = file.with_name(f"{file.name}.parts")

    def load(self, start: int, stop: int) -> Pixels | None:
        """The batch of these places; None if it is not there, or not whole after a crash of the machine."""
        try:
            images_BHWC: Pixels = np.load(self._path(start, stop), allow_pickle=False)
        except (FileNotFoundError, EOFError, ValueError):
            return None
        size = self._image_size
        fits = images_BHWC.dtype == np.uint8 and images_BHWC.shape == (stop - start, size, size, 3)
        return images_BHWC if fits else None

    def save(self, batch: Batch) -> None:
        """Whole or not at all. StorageError if it cannot be written."""
        path = self._path(batch.start, batch.stop)
        with output_errors(path, "--npz"):
            self.folder.mkdir(exist_ok=True)
            new = path.with_name(f"{path.name}.new")
            with new.open("wb") as file:
                np.save(file, batch.images_BHWC, allow_pickle=False)
            new.replace(path)

    def finish(self, request: Request, batch_size: int) -> None:
        """Write the .npz of all batches: arr_0 uint8 (N, H, W, 3), arr_1 int64 (N,), the labels; then remove the parts.

        StorageError if it cannot be written.
        """
        labels_N = np.array([request.label(place) for place in range(len(request))], dtype=np.int64)
        write_npz(self.file, labels_N, self._image_size, self._batches(request, batch_size), "--npz")
        with output_errors(self.file, "--npz"):
            self._remove()

    def _remove(self) -> None:
        """All parts, also those of commands that were given up; the folder, unless something else is in it."""
        for path in self.folder.iterdir():
            if _PART.fullmatch(path.name):
                path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _batches(self, request: Request, batch_size: int) -> Iterator[Pixels]:
        for start in range(0, len(request), batch_size):
            stop = min(start + batch_size, len(request))
            images_BHWC = self.load(start, stop)
            if images_BHWC is None:
                raise StorageError(f"{self._path(start, stop)} is gone", "Run the same command again.")
            yield images_BHWC

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"{self._digest}-{start}-{stop}.npy"
