"""What do the regularizers, S_l and G_l among them, add to a step of the tokenizer, and is S_l faster by the FFT?

Run: python -m benchmarks.tokenizer [--set a.b=c]...
Three parts, each of sides that alternate in one run:
* a step with each regularizer against the same step written plainly (`train_step.PlainTokenizer`, which computes the
  same losses) and against that with `none`, over the same steps' draws, at the quickstart's size and without D;
* S_l and G_l alone, forward and backward, against a step of it; and their share of a step at the paper's size, by FLOPs
  and by bytes moved. Those of S_l and G_l are closed forms for a level above 0, since level 0 does nothing. A step
  counts 3 forward passes of the tokenizer for FLOPs (without LPIPS and D); its bytes are those of all its operations,
  with LPIPS and without D, uncompiled (`counting.MovedBytes`);
* S_l as matrices, as `models.spectral` applies it, against a real FFT, by the latent's grid.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, alternate, median_ratio, medians, save, seconds
from benchmarks.counting import MovedBytes, fake_batch, fake_trainee
from benchmarks.train_step import Pair, inputs_of, make_pair
from models.choices import LEVELS
from models.metrics import from_uint8
from models.regularizers import REGULARIZERS, Draw, Regularizer
from models.sizes import filter_bytes
from models.spectral import LatentFilter
from pipeline import cluster
from pipeline.config import Config, load_config
from pipeline.workflow import tokenizer_step_gflops
from tests.support.artifacts import config_at

_PAPERS = "imagenet-f16d32"
_FP32, _TAPS = 4, 5  # bytes; of G_l
_LATENTS = (32, 16)  # images and channels, of those that are filtered


def measure_regularizers(root: Path, sets: list[str], rounds: int, batches: int) -> dict[str, dict[str, float]]:
    """A step's time by regularizer, and its ratios, each over as many draws as there are batches."""
    pairs = dict[str, Pair]()
    inputs = inputs_of(config_at(root, "quickstart", *sets), "train-tokenizer", root)
    for kind in REGULARIZERS:
        config = config_at(root, "quickstart", f"tokenizer.regularizer={kind}", *sets)
        pairs[kind] = make_pair(config, root, "tokenizer", "cpu", batches, inputs)
        pairs[kind].steps = range(batches)
        pairs[kind].losses()
    sides = {f"{kind}, {name}": side for kind, pair in pairs.items() for name, side in pair.sides().items()}
    measured = alternate(sides, rounds)
    middle = medians(measured)
    return {
        kind: {
            "ms": 1e3 * middle[f"{kind}, ours"],
            "ratio_to_plain": median_ratio(measured[f"{kind}, ours"], measured[f"{kind}, plain"]),
            "ratio_to_none": median_ratio(measured[f"{kind}, ours"], measured["none, ours"]),
        }
        for kind in pairs
    }


def apply_operators(regularizer: Regularizer, z_BDhw: Tensor, x_BCHW: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """S_l, forward and backward, and G_l, of which no gradient is asked: the results."""
    z_BDhw = z_BDhw.detach().requires_grad_()
    target_BCHW = regularizer.image(x_BCHW, Draw(level=level))
    filtered_BDhw = regularizer.latent(z_BDhw, Draw(level=level))
    torch.autograd.grad(filtered_BDhw, z_BDhw, z_BDhw.detach())
    return filtered_BDhw, target_BCHW


def measure_share(root: Path, sets: list[str], rounds: int, batches: int) -> dict[str, float]:
    """The time of S_l and G_l, mean over the levels, as a share of a step's."""
    config = config_at(root, "quickstart", "tokenizer.regularizer=spectral", *sets)
    pair = make_pair(config, root, "tokenizer", "cpu", batches)
    pair.steps = range(batches)
    x_BCHW, regularizer = from_uint8(pair.batches[0][0]), pair.trainee.objective.regularizer
    z_BDhw = torch.randn(len(x_BCHW), *pair.trainee.tokenizer.latent_shape)

    def operators() -> float:
        def each() -> None:
            for level in batches * list(range(LEVELS)):
                apply_operators(regularizer, z_BDhw, x_BCHW, level)

        return seconds(each) / (batches * LEVELS)

    sides = {"step": pair.sides()["ours"], "operators": operators}
    for side in sides.values():
        side()
    measured = alternate(sides, rounds)
    middle = medians(measured)
    return {
        "ms_step": 1e3 * middle["step"],
        "ms_operators": 1e3 * middle["operators"],
        "share": median_ratio(measured["operators"], measured["step"]),
    }


def operator_flops(grid: int, latent_dim: int, image_size: int) -> dict[str, float]:
    """Of an image, at a level above 0: a matrix product and its derivative; products and sums of the taps."""
    padded = image_size + _TAPS - 1
    values = 3 * image_size * (padded + image_size)
    return {"S_l": 2 * 2.0 * latent_dim * grid**4, "G_l": 2.0 * _TAPS * values}


def operator_bytes(grid: int, latent_dim: int, image_size: int, batch: int) -> dict[str, float]:
    """Moved for an image, at a level above 0, by fp32 operations one after the other.

    S_l reads the latent and writes it, forward and backward, and reads its matrix for the batch. G_l pads the image;
    along each axis a tap's product reads and writes it, as does the first sum, and the others read two.
    """
    padded = image_size + _TAPS - 1
    rows, image, whole = (_FP32 * 3 * a * b for a, b in ((image_size, padded), (image_size,) * 2, (padded,) * 2))
    passes = 2 * _TAPS + 2 + 3 * (_TAPS - 1)
    latent = _FP32 * latent_dim * grid**2
    return {
        "S_l": 2.0 * (2 * latent + _FP32 * grid**4 / batch),
        "G_l": float(image + whole + passes * (rows + image)),
    }


def step_bytes(config: Config) -> int:
    """Moved by a whole step of the trainer before D starts, with the optimizer's and the average's."""
    with fake_trainee(config) as trainee:
        batch = fake_batch(config, config.tokenizer.batch_size)
        trainee.step(batch, 0)  # which makes the optimizer's state
        moved = MovedBytes()
        with moved:
            trainee.step(batch, 0)
    return moved.total


def papers_share(batch: int, *sets: str) -> dict[str, Any]:
    """The shares of S_l and G_l in a step of `batch` images on one device at the paper's size."""
    config = load_config(_PAPERS, [f"tokenizer.batch_size={batch}", *sets])
    shape = config.grid, config.tokenizer.latent_dim, config.data.image_size
    flops, moved = operator_flops(*shape), operator_bytes(*shape, batch)
    step = {"flops": 3e9 * tokenizer_step_gflops(config, attention=True), "bytes": step_bytes(config) / batch}
    return {
        "preset": _PAPERS,
        "batch": batch,
        "flops_of_an_image": {**flops, "step": step["flops"]},
        "bytes_of_an_image": {**moved, "step": step["bytes"]},
        "share_by_flops": sum(flops.values()) / step["flops"],
        "share_by_bytes": sum(moved.values()) / step["bytes"],
        "bytes_held": filter_bytes(config.grid),
    }


def by_fft(z_BDhw: Tensor, half_hw: Tensor) -> Tensor:
    """S_l by a real FFT, `half_hw` being the mask of the half spectrum; in fp32, as the matrices are applied."""
    with torch.autocast(z_BDhw.device.type, enabled=False):
        spectrum = torch.fft.rfft2(z_BDhw.float())
        filtered_BDhw: Tensor = torch.fft.irfft2(spectrum * half_hw, s=z_BDhw.shape[-2:])
    return filtered_BDhw.to(z_BDhw.dtype)


def half_mask(matrix_NN: Tensor) -> Tensor:
    """(h, h/2 + 1): the mask of a level, of which the first column of its matrix is the response to an impulse."""
    grid = round(len(matrix_NN) ** 0.5)
    spectrum: Tensor = torch.fft.rfft2(matrix_NN[:, 0].double().view(grid, grid))
    return spectrum.real.float()


def measure_filters(grids: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """S_l (level 2, forward) of a batch of latents by its matrix and by FFT, which must give the same."""
    rows = {}
    for grid in grids:
        latent_filter = LatentFilter(grid)
        half_hw = half_mask(latent_filter.matrices[2])
        z_BDhw = torch.randn(*_LATENTS, grid, grid)
        outputs: dict[str, Callable[[], Tensor]] = {
            "matrix": partial(latent_filter, z_BDhw, 2),
            "fft": partial(by_fft, z_BDhw, half_hw),
        }
        with torch.no_grad():
            difference = float((outputs["matrix"]() - outputs["fft"]()).abs().max())
            assert difference < 1e-4, f"the FFT gives another S_l: {difference} off"
            sides: dict[str, Callable[[], float]] = {name: partial(seconds, each) for name, each in outputs.items()}
            measured = alternate(sides, rounds)
        middle = medians(measured)
        rows[f"{grid} x {grid}"] = {
            "ms_matrix": 1e3 * middle["matrix"],
            "ms_fft": 1e3 * middle["fft"],
            "ratio": median_ratio(measured["matrix"], measured["fft"]),
            "bytes_matrices": filter_bytes(grid),
            "bytes_masks": LEVELS * half_hw.nbytes,
            "largest_difference": difference,
        }
    return rows


def main(arguments: list[str] | None = None, folder: Path = RESULTS) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="of the quickstart")
    parser.add_argument("--papers-set", action="append", default=[], help=f"of {_PAPERS}")
    parser.add_argument("--papers-batch", type=int, default=32, help="images a device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=24, help="steps in a round, each with draws of its own")
    parser.add_argument("--grids", type=int, nargs="+", default=[8, 16, 32, 64])
    given = parser.parse_args(arguments)
    cluster.set_environment()
    result: dict[str, Any] = {"sets": given.sets}
    with tempfile.TemporaryDirectory() as root:
        rows = result["regularizers"] = measure_regularizers(Path(root), given.sets, given.rounds, given.batches)
        for kind, row in rows.items():
            ratios = f"{row['ratio_to_plain']:.3f} of plain, {row['ratio_to_none']:.3f} of none"
            print(f"{kind:16}{row['ms']:8.1f} ms  {ratios}")
        share = result["operators"] = measure_share(Path(root), given.sets, given.rounds, given.batches)
    print(f"S_l and G_l: {share['ms_operators']:.3f} of {share['ms_step']:.1f} ms, {share['share']:.2%}", flush=True)
    papers = result["papers_size"] = papers_share(given.papers_batch, *given.papers_set)
    print(f"at the paper's size: {papers['share_by_flops']:.3%} of FLOPs, {papers['share_by_bytes']:.2%} of bytes")
    filters = result["filters"] = measure_filters(given.grids, 4 * given.rounds)
    for grid, row in filters.items():
        times = f"{row['ms_matrix']:9.2f} ms, FFT {row['ms_fft']:8.2f} ms, ratio {row['ratio']:.2f}"
        print(f"S_l on {grid:8}{times}, {row['bytes_matrices'] / 1e6:.1f} MB")
    path = save("tokenizer", result, folder=folder)
    print(path.name)
    return path


if __name__ == "__main__":
    main()
