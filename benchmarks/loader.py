"""How fast do examples come from the mirror to a batch? Against the usual ways to keep them, and the code of before.

Run: python -m benchmarks.loader [--rounds 5] [--before COMMIT]. DVAE_TEST_DATA, when set, adds its photographs at
256 x 256. Rates are medians; ratios are medians over rounds in which all sides ran one after the other.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from benchmarks.common import alternate, median_ratio, medians, save
from benchmarks.loader_side import Side, image_rivals, latent_rivals
from pipeline.config.schema import Config
from pipeline.data.loader import ImageLoader, LatentLoader, Plan
from pipeline.storage.uri import open_storage
from pipeline.training.examples import reading_plan, training_images, training_latents
from pipeline.training.world import World
from tests.support.artifacts import config_at, prepared, trainer_inputs

_REPOSITORY = Path(__file__).parent.parent
# Runs in a checkout of another commit: this benchmark over that code, measured once for each line, up to an empty one:
# the pipe does not end where the rivals' processes were forked, since each has a copy of it.
_BEFORE = """
import sys, types
from pathlib import Path
package = sys.modules["benchmarks"] = types.ModuleType("benchmarks")
package.__path__ = [sys.argv[1]]
from benchmarks.loader import cases, rate
made = cases(Path(sys.argv[2]), int(sys.argv[3]))
print("ready", flush=True)
while line := sys.stdin.readline().strip():
    case = made[line]
    print(rate(case.loader, case.examples), flush=True)
"""


class Case(NamedTuple):
    """What is measured of one kind of example."""

    loader: Side
    examples: int
    rivals: Callable[[], dict[str, Side]]  # with their files, which are written when this is called


def images(config: Config, batch_size: int, batches: int, scratch: Path) -> Case:
    """Pixels (B, 3, H, W) of our loader, (B, H, W, 3) of its rivals."""
    store = training_images(open_storage(config.root), prepared(config), config)
    plan = reading_plan(config, config.seed, batch_size, config.data.shard_rows, World.alone())
    size, crop = config.data.image_size, config.data.center_crop

    def ours() -> Iterator[Any]:
        with ImageLoader(
            store, plan, image_size=size, center_crop=crop, horizontal_flip=False, start_step=0, stop_step=batches,
            threads=config.cluster.loader_threads,
        ) as loader:  # fmt: skip
            for pixels, _ in loader:
                yield pixels

    def rivals() -> dict[str, Side]:
        encoded = [bytes(image) for image in store.take(np.arange(len(store)))[0]]
        return image_rivals(encoded, _rows(plan, batches, len(store)), size, crop, scratch)

    return Case(ours, batch_size * batches, rivals)


def latents(config: Config, rows: int, batch_size: int, batches: int, scratch: Path) -> Case:
    """Mean and log-variance."""
    inputs = trainer_inputs(config, "train-sit", scratch, rows)
    store = training_latents(open_storage(config.root), inputs["encode"], config)
    plan = reading_plan(config, config.seed, batch_size, config.encode.shard_rows, World.alone())

    def ours() -> Iterator[Any]:
        with LatentLoader(store, plan, start_step=0, stop_step=batches) as loader:
            for means, logvars, _ in loader:
                yield means, logvars

    def rivals() -> dict[str, Side]:
        mean, logvar, _ = store.take(np.arange(len(store)))
        return latent_rivals(mean, logvar, _rows(plan, batches, len(store)), scratch / "rivals")

    return Case(ours, batch_size * batches, rivals)


def _rows(plan: Plan, batches: int, total: int) -> list[np.ndarray]:
    return [plan.rows(step, total) for step in range(batches)]


def rate(side: Side, examples: int) -> float:
    """Examples a second."""
    begin = time.perf_counter()
    for _ in side():
        pass
    return examples / (time.perf_counter() - begin)


def cases(folder: Path, batches: int, latent_rows: int = 8192) -> dict[str, Case]:
    """Digits, photographs if they are at hand, and random latents."""
    digits = config_at(folder / "digits", "quickstart", "data.classes=10")
    found = {"digits, 32 px": images(digits, 48, batches, folder / "digit-files")}
    if "DVAE_TEST_DATA" in os.environ:
        uri = Path(os.environ["DVAE_TEST_DATA"], "imagenet-sample").absolute().as_uri()
        sets = (f"data.uri={uri}", "data.validation_share=0.1", "data.classes=256")
        photographs = config_at(folder / "photographs", "imagenet-f16d16", *sets)
        found["photographs, 256 px"] = images(photographs, 32, max(1, batches // 4), folder / "photograph-files")
    sets = ("data.image_size=64", "tokenizer.latent_dim=32", "data.classes=10")
    config = config_at(folder / "latents", "quickstart", *sets)
    found["latents, 32 x 16 x 16"] = latents(config, latent_rows, 256, batches, folder / "scratch")
    return found


@contextmanager
def loader_of(commit: str, folder: Path, batches: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that measures the loader of another commit, whose files are made in `folder`."""
    tree = folder / "tree"
    git = ["git", "-C", str(_REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--detach", str(tree), commit], check=True, capture_output=True)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _BEFORE, str(Path(__file__).parent), str(folder), str(batches)],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            if answer_of(process) != "ready":
                raise RuntimeError(f"the loader of {commit} cannot be measured")
            yield process
            _pipe(process.stdin).write("\n")
            _pipe(process.stdin).flush()
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


def answer_of(process: "subprocess.Popen[str]", request: str = "") -> str:
    """The next line of the process, after this request."""
    if request:
        _pipe(process.stdin).write(f"{request}\n")
        _pipe(process.stdin).flush()
    return _pipe(process.stdout).readline().strip()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def measure(folder: Path, rounds: int, batches: int, before: str | None) -> dict[str, dict[str, float]]:
    """Rates and ratios of each case."""
    results = {}
    with ExitStack() as stack:
        other = stack.enter_context(loader_of(before, folder / "before", batches)) if before else None
        for name, case in cases(folder / "now", batches).items():
            sides = {"loader": case.loader, **case.rivals()}
            actions: dict[str, Callable[[], float]] = {
                side: partial(rate, batch, case.examples) for side, batch in sides.items()
            }
            if other is not None:
                actions["loader before"] = partial(_rate_of, other, name)
            measured = alternate(actions, rounds)
            ratios = {
                f"ratio to {side}": median_ratio(measured["loader"], measured[side])
                for side in measured
                if side != "loader"
            }
            results[name] = {**medians(measured), **ratios}
    return results


def _rate_of(process: "subprocess.Popen[str]", case: str) -> float:
    return float(answer_of(process, case))


def main(words: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--before", help="a commit whose loader is measured beside this one's")
    options = parser.parse_args(words if words is None else list(words))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options.rounds, options.batches, options.before)
    for name, values in results.items():
        print(f"{name:<24}", "  ".join(f"{side} {value:,.4g}" for side, value in values.items()))
    print(save("loader", {"before": options.before, "examples_per_second": results}))


if __name__ == "__main__":
    main()
