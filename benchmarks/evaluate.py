"""What does the evaluation cost above the feature network itself, and does it give the numbers of others?

Run: python -m benchmarks.evaluate [--rounds 5] [--images 2112] [--side 32]
Inception has random weights, the same for all; the two sets of images are noise of two kinds. Each side takes their FID
in a process of its own, with its time and peak memory: ours, torch-fidelity, torchmetrics. Ours is what the stages do:
features in files, the distance, and its interval of 100 resamples, whose seconds are told apart too. The Frechet
distance of 2048 features stands beside one by scipy's sqrtm. Ratios are of sides that alternate.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.common import alternate, median_ratio, medians, save
from models import inception
from models.metrics import FrechetReference
from pipeline.config import EvaluateConfig, WeightFile
from pipeline.evaluation import Network, all_features, extract, gathered, resampled_frechet, write_features
from pipeline.evaluation.networks import feature_network
from pipeline.storage import open_storage

BATCH = 64
_TIMED = 4 * BATCH  # images of which a speed is taken
_OURS, _THEIRS = "inception.safetensors", "inception.pth"


def noise(images: int, side: int, seed: int, contrast: int) -> Tensor:
    """uint8 (N, 3, side, side): noise around grey."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(128 - contrast, 128 + contrast, (images, 3, side, side), generator=generator).to(torch.uint8)


def write_inception(folder: Path) -> None:
    """Inception with random weights, in the files that ours and the others take.

    They are He's: with torch's own, activations shrink from layer to layer, and distances are those of rounding.
    """
    generator = torch.Generator().manual_seed(0)
    state = inception._network().state_dict()
    for value in state.values():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    save_file(state, folder / _OURS)
    torch.save(state, folder / _THEIRS)


def our_inception(folder: Path) -> Network:
    path = folder / _OURS
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Network("inception", "inception", 299, WeightFile(uri=path.as_uri(), sha256=sha256), "")


def measure_features(network: Network, images: Tensor, rounds: int) -> dict[str, float]:
    """Images a second by the evaluation's `extract`, against the bare network on the same batches."""
    device, settings = torch.device("cpu"), EvaluateConfig(batch_size=BATCH)
    read = feature_network(network, device)

    def bare() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            for batch in torch.split(images, BATCH):
                read(batch)
        return len(images) / (time.perf_counter() - begin)

    def ours() -> float:
        begin = time.perf_counter()
        extract(images, [network], settings)
        return len(images) / (time.perf_counter() - begin)

    torch.set_num_threads(1)  # as `extract` has it
    measured = alternate({"ours": ours, "bare": bare}, rounds)
    speeds = medians(measured)
    return {
        "images_per_s": speeds["ours"],
        "images_per_s_bare": speeds["bare"],
        "ours_to_bare": median_ratio(measured["ours"], measured["bare"]),
    }


def our_fid(folder: Path, one: Tensor, other: Tensor) -> dict[str, float]:
    """As the stages take it: features to files, a task's images at a time; the distance of all with its interval."""
    network, storage = our_inception(folder), open_storage(str(folder / "work"))
    settings = EvaluateConfig(batch_size=BATCH)

    def features(name: str, images: Tensor) -> list[str]:
        parts = list(torch.split(images, 8 * BATCH))
        for index, part in enumerate(parts):
            write_features(storage, f"{name}-{index:06d}.npz", extract(part, [network], settings))
        return [f"{name}-{index:06d}.npz" for index in range(len(parts))]

    measured, compared = features("measured", one), gathered(storage, features("compared", other), network)
    begin = time.perf_counter()
    distance, _ = resampled_frechet(all_features(storage, measured, "inception/pool"), compared.moments["pool"])
    return {"fid": distance, "interval_s": time.perf_counter() - begin}


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def torch_fidelity_fid(folder: Path, one: Tensor, other: Tensor) -> dict[str, float]:
    import torch_fidelity

    found = torch_fidelity.calculate_metrics(
        input1=_Images(one), input2=_Images(other), fid=True, cuda=False, batch_size=BATCH, cache=False, verbose=False,
        feature_extractor_weights_path=str(folder / _THEIRS),
    )  # fmt: skip
    return {"fid": float(found["frechet_inception_distance"])}


def torchmetrics_fid(folder: Path, one: Tensor, other: Tensor) -> dict[str, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    weights = str(folder / _THEIRS)
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=weights).set_dtype(torch.float64)
    for images, real in ((one, False), (other, True)):
        for batch in torch.split(images, BATCH):
            metric.update(batch, real=real)
    return {"fid": float(metric.compute())}


SIDES: dict[str, Callable[[Path, Tensor, Tensor], dict[str, float]]] = {
    "ours": our_fid,
    "torch-fidelity": torch_fidelity_fid,
    "torchmetrics": torchmetrics_fid,
}


def alone(name: str, folder: Path, images: int, side: int) -> dict[str, float]:
    """FID by one side in this process: its value, the seconds that it took, and the process's peak memory.

    Of ours also `interval_s`: those of its seconds that the distance and its resamples took.
    """
    one, other = noise(images, side, 0, 40), noise(images, side, 1, 90)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they deprecate
        found = SIDES[name](folder, one, other)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux has kB
    return {**found, "seconds": seconds, "images_per_s": 2 * images / seconds, "peak_mb": peak}


def compare_others(folder: Path, images: int, side: int) -> dict[str, dict[str, float]]:
    """FID of the same images by each side, in a process of its own, and its difference from ours."""
    rows = {}
    for name in SIDES:
        command = [sys.executable, "-m", "benchmarks.evaluate", "--images", str(images), "--side", str(side)]
        command += ["--alone", name, "--folder", str(folder)]
        rows[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for row in rows.values():
        row["relative_to_ours"] = row["fid"] / rows["ours"]["fid"] - 1
    return rows


def measure_frechet(features: int, rounds: int) -> dict[str, float]:
    """Seconds of a Frechet distance of so many features by eigenvalues, and by scipy's sqrtm."""
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2 * features, features, generator=generator, dtype=torch.float64) for _ in range(2))
    mean_a, cov_a, mean_b, cov_b = a.mean(0), a.T.cov(), b.mean(0) + 0.1, b.T.cov()
    found: dict[str, float] = {}

    def by_eigenvalues() -> None:
        found["ours"] = FrechetReference(mean_a, cov_a).distance(mean_b, cov_b)

    def by_sqrtm() -> None:
        root = torch.from_numpy(sqrtm((cov_a @ cov_b).numpy()).real)
        found["sqrtm"] = float((mean_a - mean_b).square().sum() + (cov_a + cov_b - 2 * root).trace())

    def timed(action: Callable[[], None]) -> Callable[[], float]:
        def side() -> float:
            begin = time.perf_counter()
            action()
            return time.perf_counter() - begin

        return side

    measured = alternate({"ours": timed(by_eigenvalues), "sqrtm": timed(by_sqrtm)}, rounds)
    times = medians(measured)
    return {
        "features": features,
        "s_ours": times["ours"],
        "s_sqrtm": times["sqrtm"],
        "ours_to_sqrtm": median_ratio(measured["ours"], measured["sqrtm"]),
        "relative_difference": found["ours"] / found["sqrtm"] - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2112, help="more than features, or theirs is off by rounding")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--alone", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone, options.folder, options.images, options.side)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inception(folder)
        result: dict[str, Any] = {
            "images": options.images,
            "side": options.side,
            "features": measure_features(our_inception(folder), noise(_TIMED, options.side, 0, 40), options.rounds),
            "others": compare_others(folder, options.images, options.side),
            "frechet": measure_frechet(2048, options.rounds),
        }
    print(json.dumps(result, indent=1))
    print(save("evaluate", result))


if __name__ == "__main__":
    main()
