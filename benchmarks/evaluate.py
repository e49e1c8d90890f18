"""What does the evaluation cost above the feature network itself, and does it give the numbers of others?

Run: python -m benchmarks.evaluate [--rounds 5] [--images 512] [--side 32]
Inception has random weights, the same for all; the two sets of images are noise of two kinds. Where torch-fidelity and
torchmetrics are installed, their FID is taken on the same images, and so is its time; the Frechet distance of 2,048
features stands beside one by scipy's sqrtm. Ratios are of sides that alternate.
"""

import argparse
import hashlib
import json
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
from models.metrics import FeatureMoments, FrechetReference, frechet_distance
from pipeline.config import EvaluateConfig, WeightFile
from pipeline.evaluation import Network, extract
from pipeline.evaluation.networks import feature_network

BATCH = 64
Moments = tuple[Tensor, Tensor]


def noise(images: int, side: int, seed: int, contrast: int) -> Tensor:
    """uint8 (N, 3, side, side): noise around grey."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(128 - contrast, 128 + contrast, (images, 3, side, side), generator=generator).to(torch.uint8)


def random_inception(folder: Path) -> tuple[Network, Path]:
    """Inception with random weights: as our network, and as a file of torch for others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = inception._network().state_dict()
    ours, theirs = folder / "inception.safetensors", folder / "inception.pth"
    save_file(state, ours)
    torch.save(state, theirs)
    sha256 = hashlib.sha256(ours.read_bytes()).hexdigest()
    return Network("inception", "inception", 299, WeightFile(uri=ours.as_uri(), sha256=sha256), ""), theirs


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


def moments(network: Network, images: Tensor) -> Moments:
    features_NF = extract(images, [network], EvaluateConfig(batch_size=BATCH))["inception/pool"]
    total = FeatureMoments(features_NF.shape[1])
    total.update(features_NF)
    return total.result()


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def torch_fidelity_fid(weights: Path, one: Tensor, other: Tensor) -> float:
    import torch_fidelity

    found = torch_fidelity.calculate_metrics(
        input1=_Images(one), input2=_Images(other), fid=True, cuda=False, batch_size=BATCH, cache=False, verbose=False,
        feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    return float(found["frechet_inception_distance"])


def torchmetrics_fid(weights: Path, one: Tensor, other: Tensor) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights)).set_dtype(torch.float64)
    for images, real in ((one, False), (other, True)):
        for batch in torch.split(images, BATCH):
            metric.update(batch, real=real)
    return float(metric.compute())


def compare_others(network: Network, weights: Path, one: Tensor, other: Tensor) -> dict[str, dict[str, float]]:
    """FID of the same images by each, its difference from ours, and the seconds that it took."""
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: frechet_distance(*moments(network, one), *moments(network, other)),
        "torch-fidelity": lambda: torch_fidelity_fid(weights, one, other),
        "torchmetrics": lambda: torchmetrics_fid(weights, one, other),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, side in sides.items():
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what they deprecate
            value = side()
        rows[name] = {"fid": value, "seconds": time.perf_counter() - begin}
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
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    options = parser.parse_args()
    one, other = noise(options.images, options.side, 0, 40), noise(options.images, options.side, 1, 90)
    with tempfile.TemporaryDirectory() as folder:
        network, weights = random_inception(Path(folder))
        result: dict[str, Any] = {
            "images": options.images,
            "side": options.side,
            "features": measure_features(network, one, options.rounds),
            "others": compare_others(network, weights, one, other),
            "frechet": measure_frechet(2048, options.rounds),
        }
    print(json.dumps(result, indent=1))
    print(save("evaluate", result))


if __name__ == "__main__":
    main()
