"""How fast do images become latents? Against the script that everybody has, and against decoding and encoding alone.

Run: python -m benchmarks.encode [--rounds 3] [--images 4028] [--sleeping 300 3000] [--nodes] [--before COMMIT]
The images are photographs at 256 px, made from those of DVAE_TEST_DATA; the tokenizer has width 64 and depth 1. Rates
are in images a second. Those with start-up count from the command to its end; those without are taken from the
difference to a run of a few images. All sides of a round run one after the other.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import alternate, median_ratio, medians, save, seconds
from benchmarks.drivers.encode import SETS
from pipeline.data.chunks import Decoding
from pipeline.data.decode import decode_image, transform

HERE = Path(__file__).parent
FILE_ROWS = 2048  # of prepared data
FEW = 64  # images of the run that shows what start-up takes
BATCH = 16
SIZE = 256
_BATCHES = (8, 16, 32, 128)


def make_images(folder: Path, count: int) -> Path:
    """`count` photographs in two classes; those of the sample come again, encoded with another quality."""
    sample = sorted(Path(os.environ["DVAE_TEST_DATA"], "imagenet-sample").rglob("*.*"))
    for index in range(count):
        target = folder / f"class{index % 2}" / f"{index:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        source, turn = sample[index % len(sample)], index // len(sample)
        if turn == 0 and source.suffix.lower() in (".jpg", ".jpeg"):
            target.write_bytes(source.read_bytes())
        else:
            Image.open(source).convert("RGB").save(target, quality=max(70, 96 - turn))
    return folder


class Pipeline:
    """The stage encode of one checkout, at a root of its own, with its inputs."""

    def __init__(self, checkout: Path, root: Path, images: Path, *sets: str) -> None:
        self.checkout, self.root, self.images = checkout, root, images
        self.sets = [word for pair in sets for word in ("--set", pair)]
        self.drive("prepare")

    def drive(self, what: str, *words: str, **environment: str) -> None:
        command = [sys.executable, str(HERE / "drivers" / "encode.py"), what, str(self.root), str(self.images)]
        subprocess.run(
            [*command, *self.sets, *words], check=True, cwd=self.checkout, stdout=subprocess.DEVNULL,
            env={**os.environ, **environment, "PYTHONPATH": str(self.checkout)},
        )  # fmt: skip

    def seconds(self, *words: str, **environment: str) -> float:
        return seconds(lambda: self.drive("run", *words, **environment))


def script(images: Path, out: Path, workers: int) -> None:
    """What everybody writes: a DataLoader, batches of 16, one .npy an image."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from models.metrics import from_uint8
    from models.tokenizers.vit import Tokenizer

    paths = sorted(images.rglob("*.jpg"))

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image = transform(Image.open(paths[index]).convert("RGB"), SIZE, True)
            return torch.from_numpy(image.transpose(2, 0, 1).copy()), index

    network = tokenizer()
    assert isinstance(network, Tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for pixels, indices in DataLoader(Images(), BATCH, num_workers=workers):
            mean, logvar = network.encode(from_uint8(pixels))
            moments = torch.stack([mean, logvar], dim=1).half().numpy()
            for one, index in zip(moments, indices.tolist(), strict=True):
                np.save(out / f"{index:06d}.npy", one)


def tokenizer() -> Any:
    from models.tokenizers.vit import Tokenizer

    sizes = {name.removeprefix("tokenizer."): int(value) for name, value in (one.split("=") for one in SETS[:4])}
    return Tokenizer(image_size=SIZE, patch_size=16, latent_dim=16, **sizes).eval()


def script_seconds(images: Path, folder: Path, workers: int) -> float:
    words = ["script", str(images), str(folder / "npy"), str(workers)]
    command = [sys.executable, "-c", "import sys; from benchmarks.encode import *; "
               "script(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))", *words]  # fmt: skip
    return seconds(lambda: subprocess.run(command, check=True, cwd=HERE.parent))


def decode_rate(images: list[bytes], processes: int) -> float:
    """All processes together."""
    parts = [images[index::processes] for index in range(processes)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(_decode, [part[:4] for part in parts])
        return len(images) / seconds(lambda: pool.map(_decode, parts, chunksize=1))


def _decode(images: list[bytes]) -> None:
    decoding = Decoding(SIZE, True, 2**26)
    for image in images:
        transform(decode_image(image, decoding.max_pixels), decoding.image_size, decoding.center_crop)


def encode_rate(count: int, processes: int) -> float:
    """All processes together, each with one thread, at its best batch."""
    program = f"from benchmarks.encode import *; print(best_batch({count // processes}))"
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in running)


def best_batch(count: int) -> float:
    import torch

    from models.metrics import from_uint8

    torch.set_num_threads(1)
    network, rates = tokenizer(), []
    for size in _BATCHES:
        pixels = torch.zeros(size, 3, SIZE, SIZE, dtype=torch.uint8)
        with torch.inference_mode():
            network.encode(from_uint8(pixels))
            begin, times = time.perf_counter(), max(1, count // size)
            for _ in range(times):
                network.encode(from_uint8(pixels))
            rates.append(size * times / (time.perf_counter() - begin))
    return max(rates)


def measure(folder: Path, count: int, few: int, rounds: int, before: Path | None) -> dict[str, Any]:
    """Rates of every side, and ratios of ours to the others and to what the cores could do."""
    cores = len(os.sched_getaffinity(0))
    images = {n: make_images(folder / f"images{n}", n) for n in (count, few)}
    ours = {n: Pipeline(HERE.parent, folder / f"ours{n}", path, _a_shard_a_core(n)) for n, path in images.items()}
    loaded = [path.read_bytes() for path in sorted(images[count].rglob("*.jpg"))]
    sides: dict[str, Any] = {
        "ours": lambda: ours[count].seconds(), "ours, few": lambda: ours[few].seconds(),
        "script": lambda: script_seconds(images[count], folder, cores),
        "script, few": lambda: script_seconds(images[few], folder, cores),
        "decoding": lambda: len(loaded) / decode_rate(loaded, cores),
        "encoding": lambda: count / encode_rate(count // 2, cores),
    }  # fmt: skip
    if before is not None:
        old = {n: Pipeline(before, folder / f"old{n}", path) for n, path in images.items()}
        sides.update({"before": lambda: old[count].seconds(), "before, few": lambda: old[few].seconds()})
    measured = alternate(sides, rounds)
    rates = {
        "decoding alone, all cores": [count / value for value in measured["decoding"]],
        "encoding alone, all cores": [count / value for value in measured["encoding"]],
    }
    for side in [name for name in sides if f"{name}, few" in sides]:
        rates[f"{side}, with start-up"] = [count / value for value in measured[side]]
        pairs = zip(measured[side], measured[f"{side}, few"], strict=True)
        rates[f"{side}, without"] = [(count - few) / max(1e-9, long - short) for long, short in pairs]
    both = zip(rates["decoding alone, all cores"], rates["encoding alone, all cores"], strict=True)
    possible = [1 / (1 / decoding + 1 / encoding) for decoding, encoding in both]
    return {
        "images_per_second": {**medians(rates), "possible": float(np.median(possible))},
        "ratio to the script, with start-up": median_ratio(measured["script"], measured["ours"]),
        "ratio to the script, without": median_ratio(rates["ours, without"], rates["script, without"]),
        "ratio to what is possible, without": median_ratio(rates["ours, without"], possible),
    }


def _a_shard_a_core(count: int) -> str:
    """Few images are in one file, which is cut. Many are in files of 2,048, which are not: a rest would be a shard."""
    return f"encode.shard_rows={count // len(os.sched_getaffinity(0)) + 1 if count <= FILE_ROWS else FILE_ROWS}"


def measure_sleeping(folder: Path, count: int, few: int, rates: list[int]) -> dict[str, Any]:
    """An encoder that sleeps in a GPU's place: the share of the slower one, decoding or it, that is reached."""
    cores, results = len(os.sched_getaffinity(0)), {}
    images = {n: make_images(folder / f"images{n}", n) for n in (count, few)}
    loaded = [path.read_bytes() for path in sorted(images[count].rglob("*.jpg"))]
    rows = {n: f"encode.shard_rows={min(FILE_ROWS // 2, n // cores + 1)}" for n in images}  # several for each decoder
    made = {n: Pipeline(HERE.parent, folder / f"sleeping{n}", path, rows[n]) for n, path in images.items()}
    for rate in rates:
        sleeping = {"SLEEPING": str(rate)}
        long, short = (made[n].seconds("--gpus", "1", **sleeping) for n in (count, few))
        reached, decoding = (count - few) / max(1e-9, long - short), decode_rate(loaded, cores)
        results[str(rate)] = {
            "images_per_second": reached, "decoding alone": decoding, "share": reached / min(rate, decoding)
        }  # fmt: skip
    return results


def measure_nodes(folder: Path, count: int, few: int, rate: float) -> dict[str, float]:
    """Two nodes against one, with decoders and encoders that sleep, so that this machine's cores do not decide.

    The decoders sleep besides their work, so `rate` has to be far below what the cores could decode.
    """
    images = {n: make_images(folder / f"images{n}", n) for n in (count, few)}
    rows = f"encode.shard_rows={max(1, count // 16)}"
    made = {n: Pipeline(HERE.parent, folder / f"nodes{n}", path, rows) for n, path in images.items()}
    sleeping = {"SLEEPING": str(rate), "DECODING": str(2 * rate)}
    reached = {}
    for nodes in (1, 2):
        with cluster_of(nodes) as address:
            long, short = (made[n].seconds("--address", address, **sleeping) for n in (count, few))
        reached[nodes] = (count - few) / max(1e-9, long - short)
    return {"one": reached[1], "two": reached[2], "ratio": reached[2] / reached[1]}


@contextmanager
def cluster_of(nodes: int) -> Iterator[str]:
    """A Ray cluster on this machine, of nodes with one core each and a head without."""
    from pipeline import cluster

    cluster.set_environment()
    os.environ["PYTHONPATH"] = str(HERE.parent)  # for the nodes' workers
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=1, object_store_memory=100 * 1024**2)
        made.wait_for_nodes()
        yield made.address
    finally:
        made.shutdown()


@contextmanager
def checkout(commit: str | None, folder: Path) -> Iterator[Path | None]:
    """A work tree of an older commit, with the support of its tests."""
    if commit is None:
        yield None
        return
    git = ["git", "-C", str(HERE.parent), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder / "before"), commit], check=True, capture_output=True)
    try:
        yield folder / "before"
    finally:
        subprocess.run([*git, "remove", "--force", str(folder / "before")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4028)
    parser.add_argument("--few", type=int, default=FEW)
    parser.add_argument("--sleeping", type=int, nargs="*", default=[], metavar="RATE")
    parser.add_argument("--nodes", action="store_true")
    parser.add_argument("--before", metavar="COMMIT")
    options = parser.parse_args()
    counts = (options.images, options.few)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with checkout(options.before, folder) as before:
            result = measure(folder, *counts, options.rounds, before)
        if options.sleeping:
            result["sleeping"] = measure_sleeping(folder, *counts, options.sleeping)
        if options.nodes:
            result["nodes"] = measure_nodes(folder, *counts, rate=50.0)
    print(json.dumps(result, indent=1))
    print(save("encode", {"images": options.images, **result}))


if __name__ == "__main__":
    main()
